"""Small losses, buffers and policies for the tests of training."""

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

from torchrl_edp import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.data import ActionScaler, ObservationNormalizer, from_arrays, make_replay_buffer
from torchrl_edp.objectives.common import EDPLoss
from torchrl_edp.training import (
    DiffusionSettings,
    EDPTargetUpdate,
    EnvironmentPolicy,
    NetworkSettings,
    SelectionSettings,
    TrainState,
    build_actor,
    build_qvalue,
    build_selector,
    build_value,
    prepare_data,
    state,
)

OBSERVATIONS, ACTIONS = 3, 2
LOSSES = {"iql": EDPIQLLoss, "td3": EDPTD3Loss, "crr": EDPCRRLoss}
NETWORK = NetworkSettings(hidden_sizes=[16, 16])
DIFFUSION = DiffusionSettings(num_steps=50, prediction="velocity", solver="dpm_solver_pp", num_calls=3)
SELECTION = SelectionSettings(num_action_samples=4)


def make_loss(name: str = "iql", **options) -> EDPLoss:
    torch.manual_seed(0)
    actor = build_actor(OBSERVATIONS, ACTIONS, NETWORK, DIFFUSION)
    networks = [actor, [build_qvalue(OBSERVATIONS, ACTIONS, NETWORK) for _ in range(2)]]
    if name == "iql":
        networks.append(build_value(OBSERVATIONS, NETWORK))
    return LOSSES[name](*networks, **options).make_value_estimator(gamma=0.9)


def make_data(rows: int = 64, **options):
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(rows, OBSERVATIONS, generator=generator) * 3 + 1
    actions = torch.rand(rows, ACTIONS, generator=generator) * 4 - 2
    ends = (torch.arange(rows) % 16 == 15).int()
    dataset = from_arrays(
        observations, actions, torch.randn(rows, generator=generator), ends, ends * 0, action_low=-2.0, action_high=2.0
    )
    return prepare_data(dataset, batch_size=16, **options)


def make_state(
    name: str = "iql", dtype: torch.dtype = torch.float32, *, actor_start: int = 0, return_steps: int = 1, **options
) -> TrainState:
    loss = make_loss(name).to(dtype)
    rows = make_data(return_steps=return_steps, gamma=0.9).buffer[:]
    transitions = rows.apply(lambda value: value.to(dtype) if value.is_floating_point() else value)
    buffer = make_replay_buffer(transitions, batch_size=16, generator=torch.Generator().manual_seed(0))
    return TrainState(loss, buffer, EDPTargetUpdate(loss, actor_start=actor_start), **options)


def run(state: TrainState, updates: int):
    """All weights after some updates from a fixed seed, the last metrics, and the generator's next number."""
    torch.manual_seed(7)
    for _ in range(updates):
        metrics = state.update()
    weights = [*state.loss.parameters(), *state.loss.buffers()]
    return torch.cat([tensor.detach().flatten() for tensor in weights]), metrics, torch.rand(1)


def make_policy(loss: EDPLoss) -> EnvironmentPolicy:
    selector = build_selector(
        loss.actor_network,
        loss.qvalue_network,
        SELECTION,
        actor_params=loss.target_actor_network_params,
        qvalue_params=loss.target_qvalue_network_params,
    )
    normalizer = ObservationNormalizer([1.0] * OBSERVATIONS, [3.0] * OBSERVATIONS)
    return EnvironmentPolicy(selector, normalizer, ActionScaler([-2.0] * ACTIONS, [2.0] * ACTIONS))


def compile_and_count(function, count, *inputs, onednn=False):
    """What ``function`` gives, compiled as an update is, and ``count(graph)`` before and after the update's passes."""
    counts = []

    class Count(CustomGraphPass):
        def __call__(self, graph):
            counts.append(count(graph))

        def uuid(self):
            return None  # nothing is taken from the cache, where no pass would run

    options = state.cpu_options(onednn=onednn)
    options["post_grad_custom_post_pass"] = [Count(), *options["post_grad_custom_post_pass"], Count()]
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        return torch.compile(function, fullgraph=True, dynamic=False, options=options)(*inputs), counts
