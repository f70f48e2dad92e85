"""Several seeds in one train state: every seed's update is the one it would have alone."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from training_helpers import ACTIONS, DIFFUSION, make_data, make_loss, run

from torchrl_edp.data import make_replay_buffer
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.training import EDPTargetUpdate, TrainState

SEEDS, BATCH = 3, 16


def make_losses(name: str = "iql", dtype: torch.dtype = torch.float64) -> MultiSeedLoss:
    """``make_loss`` seeds itself: here seeds differ by factors of their parameters."""
    seeds = iter(range(SEEDS))

    def make():
        loss, factor = make_loss(name).to(dtype), 1 + 0.1 * next(seeds)
        for parameter in loss.parameters():
            parameter.data.mul_(factor)
        return loss

    return MultiSeedLoss(make, range(SEEDS))


def make_rows(dtype: torch.dtype = torch.float64):
    """Transitions with the draws of the diffusion loss, so that IQL draws nothing itself."""
    rows = make_data().buffer[:][: SEEDS * BATCH]
    rows = rows.apply(lambda value: value.to(dtype) if value.is_floating_point() else value)
    generator = torch.Generator().manual_seed(2)
    rows["diffusion_step"] = torch.randint(DIFFUSION.num_steps, (len(rows),), generator=generator)
    rows["diffusion_noise"] = torch.randn(len(rows), ACTIONS, dtype=dtype, generator=generator)
    return rows


def in_order(rows) -> TensorDictReplayBuffer:
    """A buffer that gives its rows in their order."""
    storage = LazyTensorStorage(len(rows))
    buffer = TensorDictReplayBuffer(storage=storage, sampler=SamplerWithoutReplacement(shuffle=False), batch_size=BATCH)
    buffer.extend(rows)
    return buffer


def make_state(name="iql", dtype=torch.float64, **options) -> TrainState:
    loss = make_losses(name, dtype)
    buffer = make_replay_buffer(make_rows(dtype), batch_size=BATCH, generator=torch.Generator().manual_seed(0))
    return TrainState(loss, buffer, EDPTargetUpdate(loss, actor_start=3), **options)


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_every_seed_trains_as_alone(order):
    """Losses, norms, clipping by its own norm, moments, averages."""
    options = {"update_order": order, "clip_grad": 0.5, "decay": "cosine", "gradient_steps": 20, "policy_every": 2}
    rows, loss = make_rows(), make_losses()
    together = TrainState(loss, in_order(rows), EDPTargetUpdate(loss, actor_start=3), **options)
    alone = [
        TrainState(own, in_order(batch), EDPTargetUpdate(own, actor_start=3), **options)
        for own, batch in zip(make_losses().losses, rows.split(BATCH), strict=True)
    ]
    for _ in range(10):
        found, expected = together.update(), [state.update() for state in alone]
        assert set(found) == set(expected[0])
        for name, values in found.items():
            torch.testing.assert_close(values, torch.stack([one[name] for one in expected]), msg=name)
    assert any((one["grad_norm_qvalue"] > 0.5) for one in expected)
    for seed, state in enumerate(alone):
        expected = state.state_dict()
        for name, value in together.state_dict().items():
            if name.startswith(("loss.", "optimizer.")) and value.ndim and "gamma" not in name:
                torch.testing.assert_close(value[seed], expected[name], rtol=1e-9, atol=1e-12, msg=name)


def test_every_seed_has_batches_of_its_own():
    state, seen = make_state(), []
    original = state.loss.forward
    state.loss.forward = lambda batch: seen.append(batch) or original(batch)
    state.update()
    assert seen[0].batch_size == (SEEDS, BATCH)
    assert len(seen[0]["diffusion_noise"].flatten(0, 1).unique(dim=0)) > BATCH
    assert not torch.equal(seen[0]["action"][0], seen[0]["action"][1])


@pytest.mark.parametrize("name", ["iql", "td3", "crr"])
def test_a_loaded_state_goes_on(name):
    state, other = make_state(name), make_state(name)
    torch.manual_seed(3)
    for _ in range(3):
        state.update()
    other.load_state_dict({key: value.clone() for key, value in state.state_dict().items()})
    ends = []
    for one in (state, other):
        torch.manual_seed(4)
        one.update()
        ends.append(one.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_no_seed_steps_where_one_is_not_finite():
    state = make_state()
    state.loss.losses[1].qvalue_network_params.data.apply_(lambda value: value.fill_(torch.nan))
    kept = ("loss.", "optimizer.")
    before = {name: value.clone() for name, value in state.state_dict().items() if name.startswith(kept)}
    with pytest.raises(FloatingPointError, match=r"loss_qvalue = \[\d.*, nan, \d.*\].*qvalue network are not finite"):
        state.update()
    after = state.state_dict()
    for name, value in before.items():
        assert torch.allclose(value, after[name], rtol=0, atol=0, equal_nan=True), name
    assert any(value[[0, 2]].isfinite().all() and value[1].isnan().all() for value in before.values() if value.ndim)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using lock_")  # tensordict, when to_module is compiled
@pytest.mark.parametrize(
    ("name", "order", "dtype", "tolerance"),
    [
        ("iql", "sequential", torch.float64, 1e-10),
        ("td3", "joint", torch.float32, 1e-5),
        ("crr", "joint", torch.float64, 1e-10),
    ],
)
def test_the_compiled_update_is_the_eager_one(name, order, dtype, tolerance):
    results = [run(make_state(name, dtype, compile=compile, update_order=order), 50) for compile in (False, True)]
    (eager, eager_metrics, eager_draw), (compiled, metrics, draw) = results
    assert ((compiled - eager).norm() / eager.norm()).item() < tolerance
    assert {key: value.shape for key, value in metrics.items()} == {key: (SEEDS,) for key in eager_metrics}
    assert draw == eager_draw
