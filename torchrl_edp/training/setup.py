"""Choices and preparations at the start of a run."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
from torchrl.data import TensorDictReplayBuffer

from torchrl_edp.data import (
    ActionScaler,
    ObservationNormalizer,
    OfflineDataset,
    apply_reward_rule,
    make_replay_buffer,
    multi_step,
)
from torchrl_edp.objectives.ensemble import check_choice

COMPILE_FROM = 5_000  # updates; below, compiling takes longer than it saves
MOST_CALLS = 30  # of the network in one sampling, which compiled is unrolled: 100 are not done in many minutes

MATMUL_PRECISIONS = ("highest", "high", "medium")  # of torch.set_float32_matmul_precision


@dataclass
class PreparedData:
    """A replay buffer of normalised data, and what maps between it and the environment."""

    buffer: TensorDictReplayBuffer
    observation_normalizer: ObservationNormalizer
    action_scaler: ActionScaler


def prepare_data(
    dataset: OfflineDataset,
    *,
    reward_rule: str = "raw",
    normalize_observations: bool = True,
    action_limit: float = 0.999,
    return_steps: int = 1,
    gamma: float = 0.99,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> PreparedData:
    """Scale actions to [-1, 1], normalise observations, apply the reward rule, fill a replay buffer on ``device``.

    With ``return_steps`` above 1 its rows look further ahead, see :func:`~torchrl_edp.data.multi_step`.

    Args:
        dataset: validated transitions.
        reward_rule: a name in ``torchrl_edp.data.REWARD_RULES``.
        normalize_observations: to mean 0 and deviation 1 over the data.
        action_limit: scaled actions are clipped to +- this (reference code: 0.999).
        return_steps: rewards of the data that are added up before the critics take over.
        gamma: discount of that sum: the loss's.
        batch_size: rows of a batch.
        device: of the storage and its batches.
        seed: of the sampler's own generator.

    Examples:
        >>> from torchrl_edp.data import from_arrays
        >>> ends = [0] * 8 + [1]
        >>> data = from_arrays(torch.rand(9, 3), torch.rand(9, 2), torch.rand(9), ends, [0] * 9)
        >>> prepare_data(data, batch_size=4).buffer.sample()["action"].shape
        torch.Size([4, 2])
    """
    transitions = apply_reward_rule(reward_rule, dataset).transitions.clone()
    if normalize_observations:
        normalizer = ObservationNormalizer.from_data(transitions["observation"])
    else:
        normalizer = ObservationNormalizer.identity(dataset.observation_size)
    scaler = ActionScaler(dataset.action_low, dataset.action_high)
    transitions["action"] = scaler(transitions["action"]).clamp(-action_limit, action_limit)
    for key in ("observation", ("next", "observation")):
        transitions[key] = normalizer(transitions[key])
    if return_steps != 1:
        transitions = multi_step(transitions, return_steps, gamma)
    device = torch.device("cpu" if device is None else device)
    generator = torch.Generator(device=device).manual_seed(seed)
    buffer = make_replay_buffer(transitions, batch_size=batch_size, device=device, generator=generator)
    return PreparedData(buffer, normalizer.to(device), scaler.to(device))


def choose_device(name: str | None) -> torch.device:
    """The named device, or a GPU if there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def choose_compile(wanted: bool | None, gradient_steps: int) -> bool:
    """Whether to compile: as ``wanted``, else for long runs, and only with a working compiler."""
    if wanted is False or (wanted is None and gradient_steps < COMPILE_FROM):
        return False
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.zeros(2))
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a compiler, training can go on
        warnings.warn(f"No working compiler, so updates run eagerly, at about half the speed: {error}", stacklevel=2)
        return False
    return True


def set_matmul_precision(precision: str = "highest", *, onednn: bool = False) -> None:
    """Say how this process computes float32 matrix products, before a :class:`TrainState` compiles its update for it.

    oneDNN takes float32 products only once it is allowed to round them to bfloat16. Where it would do so, on processors
    with AMX, AMX is switched off; that has an effect before the process's first product by oneDNN only, so what
    products are is looked at, and products that are rounded are left to the default library.

    Args:
        precision: ``"highest"`` (float32), ``"high"`` or ``"medium"``, as in ``torch.set_float32_matmul_precision``:
            the last two round to TF32 on GPUs, the last one to bfloat16 on CPUs with AMX.

    Keyword Args:
        onednn: on a CPU, in place of the default library (MKL on x86): on some of AMD's processors twice as fast.

    Raises:
        ValueError: for other names, which torch only warns of.

    Examples:
        >>> set_matmul_precision("highest", onednn=True)
        >>> a = torch.rand(256, 256)
        >>> torch.testing.assert_close(a @ a, (a.double() @ a.double()).float())
        >>> set_matmul_precision()
    """
    check_choice("precision", precision, MATMUL_PRECISIONS)
    torch.set_float32_matmul_precision(precision)
    if not onednn or precision == "medium":  # which is oneDNN's already
        return
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # the last one without AMX
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    products.fp32_precision = "bf16"
    numbers = torch.arange(256 * 256.0).view(256, 256).cos()
    exact = numbers.double() @ numbers.double()
    if not torch.allclose((numbers @ numbers).double(), exact, atol=1e-3):
        products.fp32_precision = "ieee"
        message = "oneDNN rounds products to bfloat16 here, so the default library computes them."
        remedy = "ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16 in the environment has oneDNN compute them in float32."
        warnings.warn(f"{message} {remedy}", stacklevel=2)
