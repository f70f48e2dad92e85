"""Energy-based action selection: many candidates from the policy, one chosen by the critic."""

from __future__ import annotations

from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_edp.diffusion import check_interval
from torchrl_edp.modules.actor import EDPActor
from torchrl_edp.modules.parameters import parameters_in

SelectionMode = Literal["sample", "argmax"]


class EnergyBasedActionSelector(TensorDictModuleBase):
    """Draw N actions, keep one with probability proportional to exp(Q / temperature).

    All candidates of all observations go through actor and critics in one batched pass; the energy is the minimum
    over critics. A loss trains copies of its critics: after training give ``qvalue_params``, as in the example, for
    ``qvalue_network`` alone is as it was before.

    Under exploration type DETERMINISTIC, MODE or MEAN the actor's candidates are all the same, and so is the choice.

    Args:
        actor_network: reads observations, writes the action; must sample (an :class:`EDPActor` does).
        qvalue_network: reads observations and action, writes ``state_action_value``.

    Keyword Args:
        actor_params: parameters for ``actor_network``, such as ``loss.target_actor_network_params``; None uses its own.
        qvalue_params: parameters of E critics stacked along the first dimension (or of one), such as
            ``loss.target_qvalue_network_params``; None uses the network's own.
        num_action_samples: N. Paper: 10; reference code: 50.
        temperature: divides Q. Default 1 (paper and reference code).
        mode: ``"sample"`` (Alg. 2) or ``"argmax"``, the best candidate.
        standardize: subtract the candidates' mean Q and divide by their deviation first, so that the choice does not
            depend on the scale of the rewards.
        min_noise_scale: of the first candidate's initial noise in (0, 1], the others' scales grow evenly to 1 for the
            last: likely actions and unusual ones to choose from (examples/reproduce). It multiplies the actor's own
            ``initial_noise_scale``; one candidate alone has scale 1. Default 1 (paper): the same for all.
        action_key: where the actor writes and the critic reads the action.
        value_key: where the critic writes its value.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_edp import EDPTD3Loss
        >>> from torchrl_edp.modules import EDPActor, NoisePredictionMLP, QValueNetwork
        >>> actor = EDPActor(NoisePredictionMLP(11, 3))
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = EDPTD3Loss(actor, qvalue)
        >>> targets = SoftUpdate(loss, tau=0.005)  # train, then:
        >>> policy = EnergyBasedActionSelector(actor, qvalue, qvalue_params=loss.target_qvalue_network_params)
        >>> policy(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])

    Source: Alg. 2 of https://arxiv.org/abs/2305.20081.
    """

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: TensorDictModule,
        *,
        actor_params: TensorDictParams | None = None,
        qvalue_params: TensorDictParams | None = None,
        num_action_samples: int = 10,
        temperature: float = 1.0,
        mode: SelectionMode = "sample",
        standardize: bool = False,
        min_noise_scale: float = 1.0,
        action_key: NestedKey = "action",
        value_key: NestedKey = "state_action_value",
    ) -> None:
        super().__init__()
        if num_action_samples < 1:
            raise ValueError(f"num_action_samples must be at least 1, got {num_action_samples}.")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}: use mode='argmax' for its limit 0.")
        if mode not in ("sample", "argmax"):
            raise ValueError(f"mode must be 'sample' or 'argmax', got {mode!r}.")
        check_interval("min_noise_scale", min_noise_scale, "(0, 1]")
        if min_noise_scale < 1 and not isinstance(actor_network, EDPActor):
            raise ValueError(f"min_noise_scale needs an EDPActor, got {type(actor_network).__name__}: leave it at 1.")
        for name, key, network in (
            ("action_key", action_key, actor_network),
            ("value_key", value_key, qvalue_network),
        ):
            if unravel_key(key) not in map(unravel_key, network.out_keys):
                raise ValueError(f"{name} must be one of the network's out_keys {network.out_keys}, got {key!r}.")
        self.actor_network = actor_network
        self.qvalue_network = qvalue_network
        self.actor_params = actor_params
        self.qvalue_params = qvalue_params
        self.num_action_samples = num_action_samples
        self.temperature = temperature
        self.mode = mode
        self.standardize = standardize
        self.min_noise_scale = min_noise_scale
        self.action_key = action_key
        self.value_key = value_key
        observation_keys = getattr(actor_network, "observation_keys", actor_network.in_keys)
        keys = dict.fromkeys([*observation_keys, *qvalue_network.in_keys])
        self.in_keys = [key for key in keys if key != action_key]
        self.out_keys = [action_key]

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the selected action into ``tensordict`` [*B] and return it."""
        inputs = tensordict.select(*self.in_keys, strict=False)
        if self.num_action_samples == 1:
            action = self._call(self.actor_network, inputs, self.actor_params).get(self.action_key)
            return tensordict.set(self.action_key, action)
        candidates = inputs.expand(self.num_action_samples, *tensordict.batch_size).clone(recurse=False)
        if self.min_noise_scale < 1:
            self._spread_noise(candidates)
        candidates = self._call(self.actor_network, candidates, self.actor_params)
        actions = candidates.get(self.action_key)
        chosen = self._choose(self._energies(candidates))
        index = chosen.reshape(1, *chosen.shape, 1).expand(1, *actions.shape[1:])
        return tensordict.set(self.action_key, actions.gather(0, index)[0])

    def _spread_noise(self, candidates: TensorDictBase) -> None:
        """Give the candidates [N, *B] initial noise, the first one the least."""
        actor: Any = self.actor_network
        noise = actor.module.initial_noise(candidates.get(actor.observation_keys[0]))
        scales = torch.linspace(self.min_noise_scale, 1, len(noise), dtype=noise.dtype, device=noise.device)
        candidates.set(actor.initial_noise_key, noise * scales.reshape(-1, *[1] * (noise.ndim - 1)))

    def _energies(self, candidates: TensorDictBase) -> Tensor:
        """Minimum over critics of the candidates' values, [N, *B]."""
        action = candidates.get(self.action_key)
        candidates = fold_candidates(candidates.select(*self.qvalue_network.in_keys), action)

        def value(params: TensorDictBase | None) -> Tensor:
            return self._call(self.qvalue_network, candidates.copy(), params).get(self.value_key)

        params = self.qvalue_params
        critics = [params] if params is None or params.ndim == 0 else params.unbind(0)
        values = torch.stack([value(params) for params in critics]).squeeze(-1).amin(0)
        return values.unflatten(0, action.shape[:-1][:2])

    def _choose(self, energies: Tensor) -> Tensor:
        """Index [*B] of the chosen candidate, from energies [N, *B]."""
        if self.standardize:
            deviation = energies.std(0, keepdim=True).clamp_min(torch.finfo(energies.dtype).eps)
            energies = (energies - energies.mean(0, keepdim=True)) / deviation
        if self.mode == "sample":
            # Adding Gumbel noise and taking the maximum draws from the softmax. Relative to the best energy, because
            # next to large values the noise would be rounded away.
            gumbel = -torch.empty_like(energies).exponential_().log()
            energies = (energies - energies.amax(0, keepdim=True)) / self.temperature + gumbel
        return energies.argmax(0)

    @staticmethod
    def _call(network: TensorDictModule, tensordict: TensorDictBase, params: TensorDictBase | None) -> TensorDictBase:
        if params is None:
            return network(tensordict)
        with parameters_in(network, params):
            return network(tensordict)


def fold_candidates(tensordict: TensorDictBase, action: Tensor) -> TensorDictBase:
    """Candidates [N, *B] as so many rows: convolutions and BatchNorm know one batch dimension.

    Args:
        tensordict: every entry [N, *B, ...].
        action: an entry, [N, *B, A]; without a batch the candidates are one already.

    Examples:
        >>> from tensordict import TensorDict
        >>> candidates = TensorDict({"action": torch.zeros(10, 4, 3)}, [10, 4])
        >>> fold_candidates(candidates, candidates["action"])["action"].shape
        torch.Size([40, 3])
    """
    if action.ndim < 3:
        return tensordict
    rows = {key: value.flatten(0, 1) for key, value in tensordict.items(True, True)}
    return TensorDict(rows, [action.shape[0] * action.shape[1]])
