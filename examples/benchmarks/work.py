"""The update that the speed benchmarks time: its sizes, networks, train states and list of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_edp import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.data import from_arrays, make_replay_buffer
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.training import (
    DiffusionSettings,
    EDPTargetUpdate,
    NetworkSettings,
    TrainState,
    build_actor,
    build_qvalue,
    build_value,
)

LOSSES = {"td3": EDPTD3Loss, "iql": EDPIQLLoss, "crr": EDPCRRLoss}
PAPER: dict[str, dict[str, Any]] = {"crr": {"sample_from": "approximation", "num_action_samples": 10}}
ADAM: dict[str, Any] = {"lr": 3e-4, "clip_grad": 5.0}


@dataclass
class Work:
    """Sizes of one update. Defaults: the paper's networks and sampler on data shaped like HalfCheetah's."""

    observation_size: int = 17
    action_size: int = 6
    batch_size: int = 256
    rows: int = 100_000
    network: NetworkSettings = field(default_factory=NetworkSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    device: str | None = None

    def with_diffusion(self, **changes: Any) -> Work:
        """The same work with other diffusion settings."""
        return replace(self, diffusion=replace(self.diffusion, **changes))


def tiny_work() -> Work:
    """The same work at a size that takes no time."""
    network = NetworkSettings(hidden_sizes=[16, 16])
    return Work(batch_size=8, rows=64, network=network, diffusion=DiffusionSettings(num_steps=25, num_calls=3))


def make_buffer(work: Work) -> TensorDictReplayBuffer:
    """Random transitions in a replay buffer."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(work.rows, work.observation_size, generator=generator)
    actions = torch.rand(work.rows, work.action_size, generator=generator) * 2 - 1
    rewards = torch.randn(work.rows, generator=generator)
    ends = torch.zeros(work.rows, dtype=torch.bool)
    ends[999::1000] = ends[-1] = True
    data = from_arrays(observations, actions, rewards, ends, torch.zeros_like(ends))
    return make_replay_buffer(data.transitions, batch_size=work.batch_size, device=work.device)


def make_loss(work: Work, name: str, **options: Any) -> EDPLoss:
    """An EDP loss on new networks, with the paper's discount and, for CRR, its samples."""
    torch.manual_seed(0)
    sizes = work.observation_size, work.action_size
    networks = [build_actor(*sizes, work.network, work.diffusion), build_qvalue(*sizes, work.network)]
    if name == "iql":
        networks.append(build_value(work.observation_size, work.network))
    return LOSSES[name](*networks, **(PAPER.get(name, {}) | options)).make_value_estimator(gamma=0.99).to(work.device)


def edp_state(
    work: Work, name: str, *, compile: bool = False, compile_network: bool = False, **options: Any
) -> TrainState:
    """The train state of an EDP loss, whose ``update`` is timed; of long chains the network alone can be compiled."""
    loss = make_loss(work, name, **options)
    if compile_network:
        loss.actor_network.module.noise_network.compile(fullgraph=True, dynamic=False)
    return TrainState(loss, make_buffer(work), EDPTargetUpdate(loss), compile=compile, **ADAM)


def seeds_state(work: Work, name: str, seeds: int, *, compile: bool = False) -> TrainState:
    """The train state of several seeds, which here start from the same parameters."""
    loss = MultiSeedLoss(lambda: make_loss(work, name), range(seeds))
    return TrainState(loss, make_buffer(work), EDPTargetUpdate(loss), compile=compile, **ADAM)


# --- matrix products alone


def product_list(work: Work, name: str) -> list[tuple[str, int, int, int, int]]:
    """What one update multiplies, nothing hoisted or shared: (of what, times, rows, in, out)."""
    sizes, batch = list(work.network.hidden_sizes), work.batch_size
    embedding = work.network.embedding_size
    actor = [work.observation_size + work.action_size + embedding, *sizes, work.action_size]
    critic = [work.observation_size + work.action_size, *sizes, 1]
    value = [work.observation_size, *sizes, 1]
    calls, samples = work.diffusion.num_calls or work.diffusion.num_steps, 11  # CRR: the data-set action and ten more
    products: list[tuple[str, int, int, int, int]] = []

    def forward(what: str, layers: list[int], rows: int, times: int) -> None:
        pairs = zip(layers, layers[1:], strict=False)
        products.extend((f"{what}, forward", times, rows, size, out) for size, out in pairs)

    def backward(what: str, layers: list[int], rows: int, *, weights: bool, inputs: bool) -> None:
        for i, (size, out) in enumerate(zip(layers, layers[1:], strict=False)):
            if weights:
                products.append((f"{what}, weight gradient", 1, size, rows, out))
            if i > 0 or inputs:
                products.append((f"{what}, input gradient", 1, rows, out, size))

    forward("noise network", actor, batch, 1)
    backward("noise network", actor, batch, weights=True, inputs=False)
    for head in ("Q1", "Q2"):
        forward(head, critic, batch, 1)
        backward(head, critic, batch, weights=True, inputs=False)
        forward(f"target {head}", critic, batch, 1)
    if name == "iql":
        forward("V", value, batch, 1)
        backward("V", value, batch, weights=True, inputs=False)
        forward("V at the next state", value, batch, 1)
        return products
    forward("next actions", actor, batch, calls)
    if name == "td3":
        forward("Q of the approximated action", critic, batch, 1)
        backward("Q of the approximated action", critic, batch, weights=False, inputs=True)
    else:
        forward("Q1 of the samples", critic, samples * batch, 1)
        forward("Q2 of the samples", critic, samples * batch, 1)
    return products


def gflop(work: Work, name: str) -> float:
    """Billions of floating-point operations in the products of one update."""
    return sum(2e-9 * times * rows * size * out for _, times, rows, size, out in product_list(work, name))


def products(work: Work, name: str) -> Callable[[], None]:
    """A function that does these products by ``torch.mm`` into buffers made before, and nothing else."""
    pairs: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for _, times, rows, size, out in product_list(work, name):
        shapes = (rows, size), (size, out), (rows, out)
        pairs.append((times, *(torch.randn(*shape, device=work.device) for shape in shapes)))

    def run() -> None:
        for times, left, right, result in pairs:
            for _ in range(times):
                torch.mm(left, right, out=result)

    return run
