"""The behaviour policies that ship with the package and make its local data sets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_edp.data.checks import problem

BEHAVIOR_DIR = Path(__file__).parent / "behaviors"
LOG_SCALE_BOUNDS = (-5.0, 2.0)
SCALE_MAPPING = "scale = exp(clip(raw_scale, -5, 2))"


class BehaviorPolicy(nn.Module):
    """A tanh-normal policy: ``action = tanh(loc + scale * eps)``, in [-1, 1].

    An MLP with ReLU gives ``loc`` and ``raw_scale`` (halves of its output);
    ``scale = exp(clip(raw_scale, -5, 2))``.

    Args:
        observation_size: O.
        action_size: A.
        hidden_sizes: widths of the hidden layers.
        card: how the policy was trained and what it scores; ``env_id`` names its environment.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import BehaviorPolicy
        >>> BehaviorPolicy(11, 3)(torch.zeros(5, 11), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: tuple[int, ...] = (256, 256),
        card: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden_sizes:
            layers += [nn.Linear(observation_size, width), nn.ReLU()]
            observation_size = width
        self.layers = nn.Sequential(*layers, nn.Linear(observation_size, 2 * action_size))
        self.card = card or {}

    def forward(
        self, observation: Tensor, generator: torch.Generator | None = None, deterministic: bool = False
    ) -> Tensor:
        """Sampled actions ``[*B, A]`` for observations ``[*B, O]``; ``deterministic``: no noise."""
        loc, raw_scale = self.layers(observation).chunk(2, -1)
        if deterministic:
            return loc.tanh()
        noise = torch.randn(loc.shape, generator=generator, device=loc.device, dtype=loc.dtype)
        return torch.tanh(loc + raw_scale.clamp(*LOG_SCALE_BOUNDS).exp() * noise)

    def fingerprint(self) -> str:
        """SHA-256 of the weights, by which a cached data set knows the policy that made it."""
        digest = hashlib.sha256()
        for name, value in self.layers.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()


def list_behaviors(folder: Path | None = None) -> dict[str, list[str]]:
    """Levels of the stored policies by task, e.g. ``{"hopper": ["expert", "medium"]}``."""
    tasks: dict[str, list[str]] = {}
    for path in sorted(Path(folder or BEHAVIOR_DIR).glob("*-*.safetensors")):
        task, level = path.stem.rsplit("-", 1)
        tasks.setdefault(task, []).append(level)
    return tasks


def load_behavior(task: str, level: str, folder: Path | None = None) -> BehaviorPolicy:
    """A stored behaviour policy, from ``{task}-{level}.safetensors`` and its JSON card.

    Args:
        task: e.g. ``"hopper"``.
        level: ``"medium"`` or ``"expert"``.
        folder: default: the ones that ship with the package.

    Raises:
        DatasetError: where there is none of that name, or the files are damaged; the message lists what
            exists.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    stem = f"{task}-{level}"
    folder = Path(folder or BEHAVIOR_DIR)
    if level not in list_behaviors(folder).get(task, []):
        existing = [f"{t}-{n}" for t, levels in list_behaviors(folder).items() for n in levels]
        remedy = "Choose one of these, or train one with examples/train_behavior.py."
        raise problem("behaviour policy", f"one of {existing}", repr(stem), remedy)
    try:
        card = json.loads((folder / f"{stem}.json").read_text())
        if card["scale_mapping"] != SCALE_MAPPING:
            raise ValueError(f"the card's scale_mapping is not the known {SCALE_MAPPING!r}")
        if not isinstance(card["env_id"], str):
            raise ValueError("the card's env_id is no string")
        weights = load((folder / f"{stem}.safetensors").read_bytes())
        if not all(value.isfinite().all() for value in weights.values()):
            raise ValueError("weights with NaN or infinity")
        hidden = tuple(card["hidden_sizes"])
        sizes = weights["0.weight"].shape[1], len(weights[f"{2 * len(hidden)}.bias"]) // 2
        policy = BehaviorPolicy(*sizes, hidden, card)
        policy.layers.load_state_dict(weights)
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        remedy = "Restore both files from the package, or train the policy again."
        raise problem(f"behaviour policy {stem}", "weights and a card that fit", repr(error), remedy) from error
    return policy.requires_grad_(False).eval()
