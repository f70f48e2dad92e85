"""Feed-forward policies with the trunk of the other networks: the counterparts of a diffusion policy.

Shapes: ``*B`` batch, ``O`` observation, ``A`` action.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.nn import InteractionType, NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_edp.modules.mish import Mish
from torchrl_edp.modules.networks import mlp


def tanh_actor(
    observation_size: int,
    action_size: int,
    *,
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: type[nn.Module] = Mish,
    layer_norm: bool = False,
) -> TensorDictModule:
    """A deterministic policy: observation [*B, O] to action [*B, A] in (-1, 1), the tanh of an MLP.

    Args:
        observation_size: O.
        action_size: A.
        hidden_sizes: widths of the hidden layers.
        activation: class of the activation.
        layer_norm: normalise every hidden layer before its activation.

    Examples:
        >>> from tensordict import TensorDict
        >>> import torch
        >>> tanh_actor(11, 3)(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])

    Source: https://arxiv.org/abs/2106.06860.
    """
    trunk = mlp(observation_size, action_size, hidden_sizes, activation, layer_norm)
    return TensorDictModule(nn.Sequential(trunk, nn.Tanh()), in_keys=["observation"], out_keys=["action"])


def tanh_gaussian_actor(
    observation_size: int,
    action_size: int,
    *,
    hidden_sizes: Sequence[int] = (256, 256, 256),
    activation: type[nn.Module] = Mish,
    layer_norm: bool = False,
) -> ProbabilisticActor:
    """A policy that draws tanh(z), z from a Gaussian whose mean and deviation an MLP gives.

    Unless an exploration type says otherwise it acts deterministically, by the tanh of the mean. The deviation is
    TorchRL's usual function of the network's output: 1 at 0, and at least 0.01. Arguments are those of
    :func:`tanh_actor`.

    Examples:
        >>> from tensordict import TensorDict
        >>> import torch
        >>> tanh_gaussian_actor(11, 3)(TensorDict({"observation": torch.zeros(4, 11)}, [4]))["action"].shape
        torch.Size([4, 3])

    Source: https://arxiv.org/abs/1801.01290.
    """
    trunk = mlp(observation_size, 2 * action_size, hidden_sizes, activation, layer_norm)
    network = nn.Sequential(trunk, NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        default_interaction_type=InteractionType.DETERMINISTIC,
    )
