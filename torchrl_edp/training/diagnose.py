"""A look at a run from outside: what critics, weights and policy do on fixed rows of its data."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from tensordict import TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import IQLLoss, LossModule
from torchrl.objectives.utils import _vmap_func
from tqdm import tqdm

from torchrl_edp.evaluation.rollout import forked_rng
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.objectives import CRRLoss, clipped_share_by_step, qvalue_bound, qvalue_spread, weight_saturation
from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.objectives.likelihood import LikelihoodLoss

EXPLODED = """\
Q explodes{who}: at update {update} the mean |Q| of the data's actions is {size:.3g}, but with rewards of at most
{reward:.3g} and gamma {gamma:g} targets allow no more than {bound:.3g}. The critics learn from their own errors at
actions that the data do not have. Try network.critic_layer_norm=true, a lower optim.critic_lr or optim.tau, a policy
closer to the data (smaller loss.guidance_weight or loss.alpha), or data.reward_rule=return_range."""


class Diagnosis:
    """What a loss does on fixed rows of its data, as numbers for a row of metrics; it warns once when Q explodes.

    The rows are the same in every run on the same data, and all draws come from a stream of their own: training goes on
    as if nobody had looked. A look costs no more than an update whose batch has this many rows.

    The columns, each under ``diagnose/``; those that a loss has no use for are left out:

    - ``q_data``, ``q_policy``: mean Q of the data's and of the policy's actions; with ``_std`` its deviation over rows,
      with ``_disagreement`` the deviation among critics. ``q_bound``: the largest |Q| that the targets allow.
    - ``td_error``: root mean square distance of the critics to their targets.
    - ``weight_at_cap``, ``weight_effective``: see :func:`~torchrl_edp.objectives.weight_saturation`.
    - ``clipped_01`` ... ``clipped_10``: see :func:`~torchrl_edp.objectives.clipped_share_by_step`.
    - ``action_distance``: root mean square distance of the policy's action to the data's, over rows and action entries.

    The policy's action is one draw of the policy that acts, before critics choose among several.

    Args:
        loss: an EDP loss, or one of the feed-forward ones.
        buffer: a replay buffer with the data.
        actor_params: parameters of ``loss.actor_network`` that act; those being trained if None.
        exploration_type: whether the policy draws its actions.
        num_rows: at most, drawn without replacement.

    Examples:
        >>> from torchrl_edp import EDPTD3Loss
        >>> from torchrl_edp.data import from_arrays, make_replay_buffer
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_edp.training import DiffusionSettings, NetworkSettings, build_actor, build_qvalue
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), [0] * 8 + [1], [0] * 9)
        >>> network = NetworkSettings(hidden_sizes=[8])
        >>> loss = EDPTD3Loss(build_actor(3, 2, network, DiffusionSettings()), build_qvalue(3, 2, network))
        >>> loss, targets = loss.make_value_estimator(gamma=0.99), SoftUpdate(loss, tau=0.005)
        >>> diagnosis = Diagnosis(loss, make_replay_buffer(data.transitions, batch_size=4))
        >>> [name for name in diagnosis(update=0) if "clipped" not in name][:3]
        ['diagnose/action_distance', 'diagnose/q_bound', 'diagnose/q_data']
    """

    def __init__(
        self,
        loss: LossModule,
        buffer: TensorDictReplayBuffer,
        *,
        actor_params: TensorDictParams | None = None,
        exploration_type: ExplorationType = ExplorationType.RANDOM,
        num_rows: int = 512,
    ) -> None:
        self.loss, self.exploration_type = loss, exploration_type
        self.actor_params = loss.actor_network_params if actor_params is None else actor_params
        generator = torch.Generator().manual_seed(0)
        data = buffer[:]
        rows = torch.randperm(len(data), generator=generator)[:num_rows]
        self._batch = data[rows.to(data["action"].device)].clone()
        if isinstance(loss, EDPLoss):
            self._fix_diffusion(loss, generator)
        if hasattr(loss, "qvalue_network"):
            reward, self._gamma = data["next", "reward"], float(loss.value_estimator.gamma)
            self._reward = reward.abs().max()
            self._bound = qvalue_bound(reward, self._gamma, data.get("steps_to_next_obs", 1))
        self._warned: set[str] = set()

    def _fix_diffusion(self, loss: EDPLoss, generator: torch.Generator) -> None:
        """The same noise at every look, and every diffusion step equally often: only training changes the numbers."""
        keys, action = loss.tensor_keys, self._batch["action"]
        rows, num_steps = len(action), loss.actor_network.module.num_steps
        self._batch[keys.diffusion_step] = (torch.arange(rows) * num_steps // rows).to(action.device)
        self._batch[keys.diffusion_noise] = torch.randn(action.shape, generator=generator).to(action)

    @torch.no_grad()
    def __call__(self, update: int, who: str = "") -> dict[str, float]:
        """The columns after ``update`` updates; numbers that are not finite are left out.

        Args:
            update: number of updates so far.
            who: a name for the warning, where the loss is another's at every call; each is warned of once.
        """
        batch = self._batch.clone()
        with forked_rng(0, batch["action"].device), set_exploration_type(self.exploration_type):
            action = self._policy_action(batch)
            found = {"action_distance": (action - batch["action"]).square().mean().sqrt()}
            if hasattr(self.loss, "qvalue_network"):
                found |= self._critics(batch, action, update, who)
            if (saturation := self._weights(batch)) is not None:
                found["weight_at_cap"], found["weight_effective"] = saturation
            if isinstance(self.loss, EDPLoss) and self.loss.guidance_start == "data" and self.loss._bounds is not None:
                shares = clipped_share_by_step(self.loss, batch)
                found |= {f"clipped_{i:02d}": share for i, share in enumerate(shares, 1)}
        values = torch.stack([value.double() for value in found.values()]).tolist()
        return {f"diagnose/{name}": x for name, x in zip(found, values, strict=True) if math.isfinite(x)}

    def _policy_action(self, batch: TensorDictBase) -> Tensor:
        """One action [B, A] of the policy that acts for every row."""
        network = self.loss.actor_network
        with parameters_in(network, self.actor_params):
            return network(batch.select(*network.in_keys, strict=False))[self.loss.tensor_keys.action]

    def _critics(self, batch: TensorDictBase, action: Tensor, update: int, who: str) -> dict[str, Tensor]:
        values = {"q_data": self._qvalues(batch, batch["action"]), "q_policy": self._qvalues(batch, action)}
        self._warn(update, values["q_data"].abs().mean().item(), who)
        found = {"q_bound": action.new_tensor(self._bound)}
        for name, qvalues in values.items():
            found |= dict(zip((name, f"{name}_std", f"{name}_disagreement"), qvalue_spread(qvalues), strict=True))
        _, metrics = self.loss.qvalue_loss(batch.clone())
        return found | {"td_error": metrics["td_error"].mean().sqrt()}

    def _qvalues(self, batch: TensorDictBase, action: Tensor, params: TensorDictParams | None = None) -> Tensor:
        """Values [E, B] of ``action`` [B, A], by the critics being trained or by those of ``params``."""
        network, keys = self.loss.qvalue_network, self.loss.tensor_keys
        inputs = batch.select(*network.in_keys).set(keys.action, action)
        params = self.loss.qvalue_network_params if params is None else params
        return _vmap_func(network, (None, 0))(inputs, params)[keys.state_action_value].squeeze(-1)

    def _weights(self, batch: TensorDictBase) -> tuple[Tensor, Tensor] | None:
        """Share of advantage weights at their cap and effective share; None for losses without such weights."""
        loss = self.loss
        if isinstance(loss, (LikelihoodLoss, CRRLoss)):
            _, metrics = loss.actor_loss(batch.clone())
            settings = loss.temperature, loss.weight_cap, loss.weight_normalization, loss.weight_function
            return weight_saturation(metrics["advantage"], *settings)
        if not isinstance(loss, IQLLoss):
            return None
        with parameters_in(loss.value_network, loss.value_network_params):
            value = loss.value_network(batch.select(*loss.value_network.in_keys))[loss.tensor_keys.value].squeeze(-1)
        qvalue = self._qvalues(batch, batch["action"], loss.target_qvalue_network_params).amin(0)
        return weight_saturation(qvalue - value, loss.temperature, cap=100.0)  # TorchRL's cap is fixed

    def _warn(self, update: int, size: float, who: str = "") -> None:
        """Say so, once, where mean |Q| ``size`` is half as much again as any policy's, and 1: a fit has errors."""
        if who in self._warned or size <= 1.5 * self._bound + 1:  # NaN is no smaller
            return
        self._warned.add(who)
        about: dict[str, Any] = {"reward": float(self._reward), "gamma": self._gamma, "bound": self._bound}
        about["who"] = f" ({who})" if who else ""
        tqdm.write(EXPLODED.format(update=update, size=size, **about), file=sys.stderr)
