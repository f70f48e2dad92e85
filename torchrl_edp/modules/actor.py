"""EDPActor: a diffusion policy as a TorchRL module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.modules import SafeModule

from torchrl_edp.diffusion import Bounds, NoiseSchedule
from torchrl_edp.modules.sampler import DiffusionSampler, Prediction


class EDPActor(SafeModule):
    """A diffusion policy: observation to action by any solver.

    Under exploration type RANDOM (or None) it samples; under DETERMINISTIC, MODE and MEAN it starts from zero noise and
    adds none, which gives a repeatable action of high likelihood (App. C.4 of the paper). The initial noise may be
    given in the tensordict under ``initial_noise``.

    Args:
        noise_network: ``noise_network(noisy_action [*B, A], diffusion_step [*B], observation [*B, O]) -> [*B, A]``;
            ``diffusion_step`` is float32 or better, in 0..K-1, fractional under ODE solvers.

    Keyword Args:
        action_size: A; taken from ``spec`` or ``noise_network.action_size`` if omitted.
        schedule: noise schedule, by default :class:`NoiseSchedule` with K = 1000, linear (the paper's).
        prediction: what the network's output means: ``"noise"`` (the paper) or ``"velocity"``, sqrt(abar) eps -
            sqrt(1 - abar) a, from which noise and action both follow without dividing by small numbers
            (https://arxiv.org/abs/2202.00512).
        solver: ``"dpm_solver"``, ``"dpm_solver_pp"``, ``"ddim"`` or ``"ddpm"``.
        num_calls: network calls per action (paper: 15); None for all K, with ``"ddpm"``.
        solver_kwargs: further options of the solver function, such as ``order`` or ``spacing``.
        clip_actions: clip the implied action at every call, and the result, to the bounds (reference code: True).
        initial_noise_scale: factor of the initial noise in [0, 1] (App. C.4); 1 samples the policy.
        policy_scale: factor of the predicted noise while sampling (App. C.4).
        in_keys: observations, concatenated in this order; ``["observation"]`` by default.
        out_keys: ``["action"]`` by default.
        spec: action spec; bounds are taken from it when it is bounded, else they are [-1, 1].
        initial_noise_key: optional input with the noise to start from.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_edp.modules import NoisePredictionMLP
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> actor(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])

    Source: Sec. 4 of https://arxiv.org/abs/2305.20081.
    """

    def __init__(
        self,
        noise_network: nn.Module,
        *,
        action_size: int | None = None,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction = "noise",
        solver: str = "dpm_solver",
        num_calls: int | None = 15,
        solver_kwargs: dict[str, Any] | None = None,
        clip_actions: bool = True,
        initial_noise_scale: float = 1.0,
        policy_scale: float = 1.0,
        in_keys: Sequence[NestedKey] | None = None,
        out_keys: Sequence[NestedKey] | None = None,
        spec: TensorSpec | None = None,
        initial_noise_key: NestedKey = "initial_noise",
        **kwargs: Any,
    ) -> None:
        in_keys = ["observation"] if in_keys is None else list(in_keys)
        out_keys = ["action"] if out_keys is None else list(out_keys)
        action_spec = spec[out_keys[0]] if isinstance(spec, Composite) else spec
        if action_spec is not None and not action_spec.dtype.is_floating_point:
            raise ValueError(f"EDPActor has continuous actions, got the spec {type(action_spec).__name__}.")
        if spec is not None and not isinstance(spec, Composite):
            spec = Composite({out_keys[0]: spec})
        sizes: dict[str, Any] = {
            "action_size": action_size,
            "spec": None if action_spec is None else action_spec.shape[-1],
            "noise_network": getattr(noise_network, "action_size", None),
        }
        sizes = {name: size for name, size in sizes.items() if size is not None}
        if not sizes:
            raise ValueError("The action size is unknown: pass action_size, or spec.")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The action size must be the same everywhere, got {sizes}.")
        sampler = DiffusionSampler(
            noise_network,
            action_size=next(iter(sizes.values())),
            schedule=schedule,
            prediction=prediction,
            solver=solver,
            num_calls=num_calls,
            solver_kwargs=solver_kwargs,
            bounds=_bounds(action_spec) if clip_actions else None,
            initial_noise_scale=initial_noise_scale,
            policy_scale=policy_scale,
        )
        super().__init__(sampler, in_keys=[*in_keys, initial_noise_key], out_keys=out_keys, spec=spec, **kwargs)

    @property
    def observation_keys(self) -> list[NestedKey]:
        """The input keys without that of the initial noise."""
        return self.in_keys[:-1]

    @property
    def initial_noise_key(self) -> NestedKey:
        """The optional input with the noise to start from."""
        return self.in_keys[-1]


def spec_bounds(spec: Bounded) -> tuple[Tensor, Tensor]:
    """The bounds [A] that every row of a spec [*B, A] has.

    Raises:
        ValueError: if rows differ.

    Examples:
        >>> spec_bounds(Bounded(-1, 1, shape=(5, 2)))
        (tensor([-1., -1.]), tensor([1., 1.]))
    """
    low, high = (bound.reshape(-1, spec.shape[-1]) for bound in (spec.space.low, spec.space.high))
    if bool((low != low[0]).any() or (high != high[0]).any()):
        raise ValueError(f"Expected the same action bounds in every row of the spec, got {low} and {high}.")
    return low[0], high[0]


def _bounds(spec: TensorSpec | None) -> Bounds:
    if not isinstance(spec, Bounded):
        return (-1.0, 1.0)
    low, high = spec_bounds(spec)
    if not bool(low.isfinite().all() and high.isfinite().all()):
        raise ValueError(f"The action's bounds must be finite, or clip_actions=False; got {low} and {high}.")
    if bool((low == low[0]).all() and (high == high[0]).all()):
        return (float(low[0]), float(high[0]))
    return (low, high)
