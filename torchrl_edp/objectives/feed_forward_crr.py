"""CRRLoss: critic-regularised regression with a feed-forward policy, the counterpart of EDPCRRLoss."""

from __future__ import annotations

from typing import get_args

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torch.distributions import Distribution

from torchrl_edp.diffusion import check_interval
from torchrl_edp.modules.parameters import parameters_in
from torchrl_edp.objectives.critics import CriticEnsembleLoss
from torchrl_edp.objectives.crr import Baseline
from torchrl_edp.objectives.ensemble import check_choice
from torchrl_edp.objectives.functional import (
    Aggregation,
    LossFunction,
    WeightFunction,
    WeightNormalization,
    advantage_weight,
)


class CRRLoss(CriticEnsembleLoss):
    """Critic-regularised regression whose policy gives a distribution, such as a tanh-Gaussian.

    The policy minimises -E[f log pi(a | s)], f = exp(temperature * A). The advantage A = Q(s, a) - mean_i Q(s, a_i)
    compares the data-set action with ``num_action_samples`` actions of the policy. The critics minimise the TD error
    to r + gamma min_j Q'_j(s', a'), a' drawn from the target policy, as in :class:`~torchrl_edp.EDPCRRLoss`.

    Args:
        actor_network: a probabilistic actor, ``torchrl.modules.ProbabilisticActor`` or alike; the log-probability of
            an action must be one number.
        qvalue_network: Q(s, a); one module (copied ``num_qvalue_nets`` times, each copy initialised anew) or a list.

    Keyword Args:
        num_qvalue_nets: number of critics E. Default 2.
        loss_function: distance of the TD error, ``"l2"`` (default), ``"l1"`` or ``"smooth_l1"``.
        temperature: multiplies the advantage: the inverse of the paper's beta. Default 1.
        weight_function: ``"exp"`` (default), or ``"step"``: 1 for a positive advantage, else 0.
        baseline: what the sampled actions' values become: ``"mean"`` (default) or ``"max"``.
        num_action_samples: actions a_i per state. Default 10 (:class:`~torchrl_edp.EDPCRRLoss`: 2, which cost more).
        weight_cap: largest advantage weight. Default 20; None for no cap.
        weight_normalization: None (default), ``"mean"`` (weights of mean 1) or ``"softmax"`` over the batch.
        qvalue_aggregation: how the critics' values become one: ``"min"`` (default), ``"mean"``, or ``"lcb"``, the mean
            less ``pessimism`` deviations.
        pessimism: of ``"lcb"``. Default 1.
        delay_actor: keep averaged actor parameters in ``target_actor_network_params``. Default True.
        delay_qvalue: keep averaged critics; False uses the critics themselves. Default True.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        scalar_output_mode: with ``reduction="none"``: None returns metrics per sample, ``"exclude"`` leaves them out,
            ``"non_tensor"`` returns their means as non-tensor data.
        deactivate_vmap: loop over critics instead of vmap.
        use_prioritized_weights: use importance weights when present ("auto"), always (True) or never (False).

    Returns (``forward``): ``loss_actor``, ``loss_qvalue``, and the detached metrics ``log_prob``, ``advantage``,
    ``advantage_weight``, ``pred_value``, ``next_state_value``, ``target_value``.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torchrl.modules import ValueOperator
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_edp.modules import QValueNetwork, tanh_gaussian_actor
        >>> qvalue = ValueOperator(QValueNetwork(11, 3), in_keys=["observation", "action"])
        >>> loss = CRRLoss(tanh_gaussian_actor(11, 3), qvalue)
        >>> targets = SoftUpdate(loss, tau=0.005)
        >>> data = TensorDict({
        ...     "observation": torch.randn(4, 11), "action": torch.rand(4, 3) - 0.5,
        ...     "next": {"observation": torch.randn(4, 11), "reward": torch.randn(4, 1),
        ...              "done": torch.zeros(4, 1, dtype=torch.bool),
        ...              "terminated": torch.zeros(4, 1, dtype=torch.bool)}}, [4])
        >>> loss(data)["loss_actor"].backward()

    Source: https://arxiv.org/abs/2006.15134.
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "log_prob",
        "advantage",
        "advantage_weight",
        "pred_value",
        "next_state_value",
        "target_value",
    ]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        num_qvalue_nets: int = 2,
        loss_function: LossFunction = "l2",
        temperature: float = 1.0,
        weight_function: WeightFunction = "exp",
        baseline: Baseline = "mean",
        num_action_samples: int = 10,
        weight_cap: float | None = 20.0,
        weight_normalization: WeightNormalization | None = None,
        qvalue_aggregation: Aggregation = "min",
        pessimism: float = 1.0,
        delay_actor: bool = True,
        delay_qvalue: bool = True,
        reduction: str | None = None,
        scalar_output_mode: str | None = None,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
    ) -> None:
        super().__init__(
            qvalue_aggregation=qvalue_aggregation,
            pessimism=pessimism,
            loss_function=loss_function,
            reduction=reduction,
            scalar_output_mode=scalar_output_mode,
            deactivate_vmap=deactivate_vmap,
            use_prioritized_weights=use_prioritized_weights,
        )
        check_choice("weight_function", weight_function, get_args(WeightFunction))
        check_choice("weight_normalization", weight_normalization, (None, *get_args(WeightNormalization)))
        check_choice("baseline", baseline, get_args(Baseline))
        check_interval("num_action_samples", num_action_samples, "[1, inf)")
        check_interval("temperature", temperature, "[0, inf)")
        if weight_cap is not None:
            check_interval("weight_cap", weight_cap, "(0, inf)")
        if not hasattr(actor_network, "get_dist"):
            found = type(actor_network).__name__
            raise TypeError(f"CRRLoss needs an actor that gives a distribution (get_dist), got {found}.")
        self.temperature = temperature
        self.weight_function = weight_function
        self.baseline = baseline
        self.num_action_samples = num_action_samples
        self.weight_cap = weight_cap
        self.weight_normalization = weight_normalization
        self.delay_actor = delay_actor
        self.convert_to_functional(actor_network, "actor_network", create_target_params=delay_actor)
        self._set_qvalue(qvalue_network, num_qvalue_nets, delay_qvalue, None)

    def _set_in_keys(self) -> None:
        keys, observations = self.tensor_keys, list(self.actor_network.in_keys)
        action = unravel_key(keys.action)
        states = [*observations, *[key for key in self.qvalue_network.in_keys if unravel_key(key) != action]]
        following: list[NestedKey] = [keys.reward, keys.done, keys.terminated, *states]
        optional = [keys.priority_weight, "steps_to_next_obs"]
        self._in_keys = list(
            dict.fromkeys([keys.action, *[unravel_key(("next", key)) for key in following], *states, *optional])
        )

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """-f log pi(a | s), the weight f without gradient."""
        action = tensordict[self.tensor_keys.action]
        distribution = self._policy(tensordict, self.actor_network_params)
        log_prob = distribution.log_prob(action)
        if log_prob.shape != action.shape[:-1]:
            raise ValueError(
                f"The actor's log-probability: expected one number per action, shape {list(action.shape[:-1])}, got "
                f"{list(log_prob.shape)}; use a distribution whose last dimension is an event."
            )
        with torch.no_grad():
            advantage = self._advantage(tensordict, action, distribution.sample((self.num_action_samples,)))
        weight = advantage_weight(
            advantage,
            self.temperature,
            self.weight_cap,
            self.weight_normalization,
            self._mask(tensordict, advantage),
            self.weight_function,
        )
        weights = self._maybe_get_priority_weight(tensordict)
        loss = self._reduce_loss(-weight * log_prob, tensordict=tensordict, weights=weights)
        self._clear_weakrefs(tensordict, *self._params_names())
        metrics = {"log_prob": log_prob.detach(), "advantage": advantage, "advantage_weight": weight}
        return loss, metrics

    def _policy(self, tensordict: TensorDictBase, params: TensorDictParams) -> Distribution:
        """The policy's distribution over actions [*B, A]; nothing is written into ``tensordict``."""
        inputs = tensordict.select(*self.actor_network.in_keys)
        with parameters_in(self.actor_network, params):
            return self.actor_network.get_dist(inputs)

    def _advantage(self, tensordict: TensorDictBase, action: Tensor, samples: Tensor) -> Tensor:
        """Q of the data-set ``action`` [*B, A] less the baseline over ``samples`` [N, *B, A]."""
        # The data-set action goes along as one more candidate: a single call of the critics.
        actions = torch.cat([action.unsqueeze(0), samples])
        values = self._aggregate(self._qvalues_of_several(tensordict, self.qvalue_network_params, actions))
        others = values[1:]
        return values[0] - (others.mean(0) if self.baseline == "mean" else others.amax(0))

    def _next_value(self, next_tensordict: TensorDictBase) -> Tensor:
        """The critics' value [*B] of an action that the target policy draws at the next state."""
        action = self._policy(next_tensordict, self.target_actor_network_params).sample()
        return self._aggregate(self._qvalues(next_tensordict, self.target_qvalue_network_params, action))
