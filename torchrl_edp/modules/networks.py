"""Networks: the noise predictor of the paper, and Q and V networks of the same shape.

Shapes: ``*B`` batch, ``O`` observation, ``A`` action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import MLP

from torchrl_edp.modules.fused_mlp import FUSED, apply, can_fuse, has_hooks, is_chain, run_mlp
from torchrl_edp.modules.mish import Mish

ELEMENTWISE = (Mish, nn.Mish, nn.ReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Tanh)


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of the diffusion step, refined by a two-layer network.

    Args:
        size: features of the sinusoid and of the result (16 in the reference code); even, at least 4.
        hidden: width of the layer in between, twice ``size`` by default.

    Examples:
        >>> StepEmbedding(16)(torch.tensor([0.0, 500.0])).shape
        torch.Size([2, 16])

    Source: reference code of https://arxiv.org/abs/2305.20081 (cosines, then sines).
    """

    def __init__(self, size: int = 16, hidden: int | None = None) -> None:
        super().__init__()
        if size < 4 or size % 2:
            raise ValueError(f"The embedding size must be even and at least 4, got {size}.")
        hidden = 2 * size if hidden is None else hidden
        self.size = size
        self.net = nn.Sequential(nn.Linear(size, hidden), Mish(), nn.Linear(hidden, size))

    def forward(self, diffusion_step: Tensor) -> Tensor:
        """Embed steps [*B] (float, 0..K-1) into features [*B, size]."""
        half = self.size // 2
        # A constant, not a buffer: losses treat every entry of a network's state as something to train.
        steps = diffusion_step.to(torch.promote_types(diffusion_step.dtype, torch.float32))
        rates = torch.arange(half, device=steps.device, dtype=steps.dtype)
        rates = torch.exp(rates * (-math.log(10_000.0) / (half - 1)))
        angles = steps.unsqueeze(-1) * rates
        features = torch.cat([angles.cos(), angles.sin()], -1)
        return self.net(features.to(cast(nn.Linear, self.net[0]).weight.dtype))  # too narrow to gain by one node


class NoisePredictionMLP(nn.Module):
    """The paper's noise network: an MLP of the noisy action, the step embedding and the observation.

    Args:
        observation_size: O.
        action_size: A.
        hidden_sizes: widths of the hidden layers (paper: three of 256).
        activation: class of the activation (paper: Mish).
        layer_norm: normalise every hidden layer before its activation (default False, as in the paper).
        embedding_size: features of the step embedding (reference code: 16).

    Examples:
        >>> network = NoisePredictionMLP(11, 3)
        >>> network(torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, 11)).shape
        torch.Size([4, 3])

    Source: App. B of https://arxiv.org/abs/2305.20081 and its reference code.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        activation: type[nn.Module] = Mish,
        layer_norm: bool = False,
        embedding_size: int = 16,
    ) -> None:
        super().__init__()
        self.action_size = action_size
        self.embedding = StepEmbedding(embedding_size)
        self.net = mlp(
            observation_size + action_size + embedding_size, action_size, hidden_sizes, activation, layer_norm
        )

    def forward(self, noisy_action: Tensor, diffusion_step: Tensor, observation: Tensor) -> Tensor:
        """Predict the noise [*B, A] in ``noisy_action`` [*B, A] at ``diffusion_step`` [*B], given [*B, O]."""
        return run_mlp(self.net, torch.cat([noisy_action, self.embedding(diffusion_step), observation], -1))

    def condition(self, observation: Tensor, steps: Sequence[float]) -> Callable[[Tensor, float], Tensor]:
        """The network at a fixed ``observation`` [*B, O]: a function of noisy action [*B, A] and one of ``steps``.

        A solver's calls differ in action and step only, and its steps are known before. So the shares that observation
        and steps have in the first layer are computed once, here. A network whose ``forward`` or first layer does more,
        by a subclass, a wrapper or a hook, is called as it is.
        """
        _, *rest = cast(Iterable[Any], self.net)
        if not self.is_plain():
            return lambda action, step: self(action, _steps(step, action, action.shape[:-1]), observation)
        every_step = torch.cat([_steps(step, observation, (1,)) for step in steps])  # on a GPU without a sync
        by_action, share, biases = self.first_layer(observation, every_step)
        bias = dict(zip(steps, biases.unbind(), strict=True))

        def predict(noisy_action: Tensor, diffusion_step: float) -> Tensor:
            features = F.linear(noisy_action, by_action, bias[diffusion_step]) + share
            for layer in rest:
                features = layer(features)
            return features

        return predict

    def is_plain(self) -> bool:
        """Whether no subclass, wrapper or hook changes what ``forward`` and the first layer do."""
        first = cast(Any, self.net)[0]
        plain = type(self).forward is NoisePredictionMLP.forward and type(first).forward is nn.Linear.forward
        return plain and type(self.net) is MLP and not has_hooks(self, self.net, first)

    def first_layer(self, observation: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the first layer adds up: its weight for actions [H, A], the shares of observations and of ``steps``.

        The share of observations [*B, O], with the bias, is [*B, H], or [1, ..., H] where those along the first
        dimension are one that was expanded; that of ``steps`` [calls] is [calls, H].
        """
        first: Any = self.net[0]
        sizes = [self.action_size, self.embedding.size, observation.shape[-1]]
        by_action, by_step, by_observation = first.weight.split(sizes, 1)
        if observation.ndim > 1 and observation.stride(0) == 0:  # candidates of the same observation
            observation = observation[:1]
        step_shares = F.linear(self.embedding(steps), by_step)
        return by_action, F.linear(observation, by_observation, first.bias), step_shares


class QValueNetwork(nn.Module):
    """Q(s, a): an MLP of observation and action.

    Args:
        observation_size: O.
        action_size: A.
        hidden_sizes: widths of the hidden layers (paper: three of 256).
        activation: class of the activation (paper: Mish).
        layer_norm: normalise every hidden layer before its activation; it keeps critics from diverging.

    Examples:
        >>> QValueNetwork(11, 3)(torch.zeros(4, 11), torch.zeros(4, 3)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        activation: type[nn.Module] = Mish,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.net = mlp(observation_size + action_size, 1, hidden_sizes, activation, layer_norm)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """The value [*B, 1] of ``action`` [*B, A] at ``observation`` [*B, O]."""
        return run_mlp(self.net, torch.cat([observation, action], -1))

    def ensemble(self, params: TensorDictBase, observation: Tensor, action: Tensor, *, frozen: Any = None) -> Tensor:
        """Values [E, *B, 1] under E stacked sets of parameters, for networks that are :meth:`plain <is_plain>`.

        It is what ``torch.vmap`` over parameters gives, without its cost, which eagerly is that of the products.
        Samples are columns in between: so the gradients of weights come in the weights' layout.

        Args:
            params: those of this module, stacked along the first dimension.
            observation: [*B, O].
            action: [*B, A].
            frozen: index of the first dimension; only these sets are used, and get no gradient. None for all.
        """
        features = torch.cat([observation, action], -1)
        rows = features if features.ndim == 2 else features.reshape(-1, features.shape[-1])
        layers = dict(params.get("net").items())
        linear = [name for name, layer in self.net._modules.items() if type(layer) is nn.Linear]  # also one used twice
        values = [value for name in linear for value in _weight_and_bias(layers[name])]
        if frozen is not None:
            with torch.no_grad():
                values = [value[frozen] for value in values]
        if all(type(layer) in (nn.Linear, *FUSED) for layer in self.net) and can_fuse(features, values):
            rows = apply(rows, values)
        else:
            columns, given = rows.T, iter(values)
            for layer in self.net:
                if type(layer) is nn.Linear:
                    weight, bias = next(given), next(given)
                    columns = columns.expand(len(weight), *columns.shape[-2:])
                    columns = torch.baddbmm(bias.unsqueeze(-1), weight, columns)
                else:
                    columns = layer(columns)
            rows = columns.mT
        return rows if features.ndim == 2 else rows.reshape(len(rows), *features.shape[:-1], rows.shape[-1])

    def is_plain(self) -> bool:
        """Whether this is a chain of linear layers and elementwise activations that nothing changes."""
        plain = type(self).forward is QValueNetwork.forward and not has_hooks(self)
        return plain and is_chain(self.net, ELEMENTWISE)


class ValueNetwork(nn.Module):
    """V(s): an MLP of the observation; arguments as :class:`QValueNetwork`.

    Examples:
        >>> ValueNetwork(11)(torch.zeros(4, 11)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        observation_size: int,
        *,
        hidden_sizes: Sequence[int] = (256, 256, 256),
        activation: type[nn.Module] = Mish,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.net = mlp(observation_size, 1, hidden_sizes, activation, layer_norm)

    def forward(self, observation: Tensor) -> Tensor:
        """The value [*B, 1] of ``observation`` [*B, O]."""
        return run_mlp(self.net, observation)


def _weight_and_bias(layer: TensorDictBase) -> tuple[Tensor, Tensor]:
    values = dict(layer.items())
    return values["weight"], values["bias"]


def _steps(step: float, like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.full(shape, step, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def mlp(in_size: int, out_size: int, hidden_sizes: Sequence[int], activation: type[nn.Module], layer_norm: bool) -> MLP:
    """The trunk of all networks.

    Examples:
        >>> mlp(11, 3, (256, 256), nn.ReLU, layer_norm=False)(torch.zeros(4, 11)).shape
        torch.Size([4, 3])
    """
    if any(width < 1 for width in hidden_sizes):
        raise ValueError(f"hidden_sizes must be positive widths, got {list(hidden_sizes)}.")
    return MLP(
        in_features=in_size,
        out_features=out_size,
        num_cells=list(hidden_sizes),
        activation_class=activation,
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=[{"normalized_shape": width} for width in hidden_sizes] if layer_norm else None,
    )
