"""The update: against the same step written by hand, and each of its options."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tensordict import NonTensorStack, assert_close
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.modules import ValueOperator
from torchrl.objectives import SoftUpdate
from training_helpers import ACTIONS, OBSERVATIONS, make_data, make_loss, make_state, run

from torchrl_edp import EDPActor, EDPTD3Loss, NoiseSchedule
from torchrl_edp.modules import kernels
from torchrl_edp.training import EDPTargetUpdate, TrainState
from torchrl_edp.training.batches import take_rows


def parameters(loss) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loss.named_parameters()}


def test_joint_update_is_adam_on_the_sum_of_the_losses():
    state = make_state(lr=1e-2, critic_lr=3e-3, clip_grad=None)
    expected = make_loss()
    EDPTargetUpdate(expected)
    actor = [p for n, p in expected.named_parameters() if n.startswith("actor")]
    critics = [p for n, p in expected.named_parameters() if not n.startswith("actor") and p.requires_grad]
    adam = torch.optim.Adam([{"params": actor, "lr": 1e-2}, {"params": critics, "lr": 3e-3}])
    buffer = make_data().buffer
    torch.manual_seed(5)
    for _ in range(3):
        state.update()
    torch.manual_seed(5)
    for _ in range(3):
        output = expected(buffer.sample())
        (output["loss_actor"] + output["loss_qvalue"] + output["loss_value"]).backward()
        adam.step()
        adam.zero_grad()
        for source, target in (("qvalue_network_params", 0.005), ("actor_network_params", 0.005)):
            getattr(expected, f"target_{source}").data.lerp_(getattr(expected, source).data, target)
    for name, value in parameters(state.loss).items():
        torch.testing.assert_close(value, dict(expected.named_parameters())[name].detach(), msg=name)


def test_sequential_update_weights_the_policy_by_the_new_value():
    state = make_state(update_order="sequential", lr=0.05)
    values = []
    original = state.loss.actor_loss

    def spy(batch):
        values.append(state.loss._value(batch).detach().clone())
        return original(batch)

    fresh = make_loss()
    state.loss.actor_loss = spy
    batch = copy.copy(make_data().buffer).sample()
    state.update()
    assert not torch.allclose(values[0], fresh._value(batch).detach())


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_every_network_learns_in_either_order(order):
    state = make_state(update_order=order)
    before = parameters(state.loss)
    metrics = state.update()
    assert all(not torch.equal(before[n], p) for n, p in parameters(state.loss).items() if "target" not in n)
    assert {"loss_actor", "loss_qvalue", "loss_value", "grad_norm_actor", "grad_norm_qvalue"} <= set(metrics)


def test_gradients_are_clipped_network_by_network():
    state = make_state(clip_grad=1e-3)
    metrics = state.update()
    for optimizer in state.optimizers.values():
        # After one step Adam's first moment is a tenth of the gradient it was given.
        norm = torch.cat([moment.flatten() for moment in optimizer.exp_avgs]).norm().item()
        assert norm == pytest.approx(1e-4, rel=1e-2)
    assert metrics["grad_norm_qvalue"] > 1e-2  # what is reported is the norm before clipping


def test_cosine_decay_lowers_only_the_policys_rate():
    state = make_state(lr=1.0, decay="cosine", gradient_steps=4)
    rates = []
    for _ in range(4):
        state.update()
        rates.append([optimizer.lr.item() for optimizer in state.optimizers.values()])
    assert [r[0] for r in rates] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-5)
    assert all(r[1:] == [1.0, 1.0] for r in rates)


def test_same_seed_same_weights():
    results = []
    for _ in range(2):
        state = make_state()
        torch.manual_seed(3)
        for _ in range(5):
            state.update()
        results.append(parameters(state.loss))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using lock_")  # tensordict, when to_module is compiled
@pytest.mark.parametrize(
    ("name", "order", "dtype", "tolerance", "onednn"),
    [
        ("iql", "joint", torch.float32, 1e-5, False),
        ("iql", "sequential", torch.float64, 1e-10, False),
        ("td3", "joint", torch.float64, 1e-10, False),
        ("td3", "joint", torch.float32, 1e-5, False),
        ("td3", "sequential", torch.float64, 1e-10, True),
        ("crr", "sequential", torch.float32, 1e-5, False),
    ],
)
def test_the_compiled_update_is_the_eager_one(name, order, dtype, tolerance, onednn, monkeypatch):
    if onednn:  # as it looks to the update: the products themselves, which may be rounded, are not oneDNN's here
        monkeypatch.setattr(torch.backends.mkldnn, "matmul", SimpleNamespace(fp32_precision="bf16"))
    options = {"update_order": order, "decay": "cosine", "gradient_steps": 200, "actor_start": 3}
    options["return_steps"] = 1 if name == "iql" else 3
    results = [run(make_state(name, dtype, compile=compile, **options), 100) for compile in (False, True)]
    (eager, eager_metrics, eager_draw), (compiled, metrics, draw) = results
    assert eager.dtype == dtype
    assert ((compiled - eager).norm() / eager.norm()).item() < tolerance
    assert set(metrics) == set(eager_metrics)
    assert draw == eager_draw  # both took the same numbers from the generator


@pytest.mark.parametrize("name", ["iql", "td3", "crr"])
def test_the_kernels_change_nothing(name, monkeypatch):
    used, _, used_draw = run(make_state(name, torch.float32), 100)
    monkeypatch.setattr(kernels, "library", lambda: None)
    plain, _, plain_draw = run(make_state(name, torch.float32), 100)
    assert not torch.equal(used, plain)  # it was there
    assert ((used - plain).norm() / plain.norm()).item() < 1e-5
    assert used_draw == plain_draw


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using lock_")
def test_compiled_states_in_one_process_keep_to_themselves():
    joint, sequential = (make_state(compile=True, update_order=order) for order in ("joint", "sequential"))
    joint.update()
    before = parameters(joint.loss)
    eager = make_state(update_order="sequential")
    for state in (eager, sequential):
        torch.manual_seed(3)
        for _ in range(20):  # Adam's first step is nearly the same whatever the order of the terms
            state.update()
    assert all(torch.equal(value, before[name]) for name, value in parameters(joint.loss).items())
    for name, value in parameters(eager.loss).items():
        torch.testing.assert_close(parameters(sequential.loss)[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_buffer_with_its_own_way_of_drawing_is_sampled_by_itself():
    data = make_data().buffer
    sampler = SamplerWithoutReplacement()
    buffer = TensorDictReplayBuffer(storage=data.storage, sampler=sampler, batch_size=16)
    loss = make_loss()
    state = TrainState(loss, buffer, EDPTargetUpdate(loss))
    before = parameters(loss)
    state.update()
    assert any(not torch.equal(before[name], value) for name, value in parameters(loss).items())
    drawn = torch.cat([buffer.sample()["action"] for _ in range(3)])
    assert len(drawn.unique(dim=0)) == 48  # the update has drawn the first 16 of an epoch of 64


class Zeroed(TensorDictReplayBuffer):
    def sample(self, *args, **kwargs):
        return super().sample(*args, **kwargs).set(("next", "reward"), torch.zeros(16, 1))


def _without_rewards(batch):
    """Of a batch; the whole data stay as they are."""
    return batch.copy().set(("next", "reward"), torch.zeros(16, 1)) if len(batch) == 16 else batch


@pytest.mark.parametrize("buffer_class", [TensorDictReplayBuffer, Zeroed])
def test_what_a_buffer_does_to_its_batches_is_done(buffer_class):
    options = {"collate_fn": _without_rewards} if buffer_class is TensorDictReplayBuffer else {}
    buffer = buffer_class(storage=make_data().buffer.storage, batch_size=16, **options)
    loss = make_loss("td3").make_value_estimator(gamma=0.0)
    assert TrainState(loss, buffer, EDPTargetUpdate(loss)).update()["target_value"] == 0


def test_a_batch_is_the_rows_of_everything_that_is_a_tensor():
    data = make_data().buffer[:]
    data["next", "name"] = NonTensorStack(*map(str, range(64)))
    index = torch.tensor([3, 3, 0])
    assert_close(take_rows(data, index), data[index].exclude(("next", "name")), rtol=0, atol=0)
    seeds = torch.stack([index, index + 1])
    assert_close(
        take_rows(data, seeds).exclude(("next", "name")), data.exclude(("next", "name"))[seeds], rtol=0, atol=0
    )


def test_a_storage_may_have_two_dimensions():
    rows = make_data().buffer[:]
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64, ndim=2), batch_size=16)
    buffer.extend(rows.reshape(4, 16))
    loss = make_loss()
    assert TrainState(loss, buffer, EDPTargetUpdate(loss)).update()["loss_actor"].isfinite()


def test_buffers_without_batch_size_and_losses_of_every_sample_are_refused():
    buffer = make_data().buffer
    loss = make_loss()
    with pytest.raises(ValueError, match="give the buffer a batch_size"):
        TrainState(loss, TensorDictReplayBuffer(storage=buffer.storage), EDPTargetUpdate(loss))
    loss = make_loss(reduction="none")
    with pytest.raises(ValueError, match="reduction='mean' or 'sum'"):
        TrainState(loss, buffer, EDPTargetUpdate(loss))


class WithTrunk(torch.nn.Module):
    """A noise network or a critic on features of the observation that others may share."""

    action_size = ACTIONS

    def __init__(self, trunk, inputs, outputs):
        super().__init__()
        self.trunk, self.head = trunk, torch.nn.Linear(inputs + 4, outputs)

    def forward(self, *values):
        observation, others = (values[-1], values[:1]) if len(values) == 3 else (values[0], values[1:])
        return self.head(torch.cat([*others, self.trunk(observation)], -1))


def shared_state(seed):
    torch.manual_seed(seed)
    trunk = torch.nn.Linear(OBSERVATIONS, 4)
    actor = EDPActor(WithTrunk(trunk, ACTIONS, ACTIONS), schedule=NoiseSchedule(50), num_calls=3)
    critic = ValueOperator(WithTrunk(trunk, ACTIONS, 1), in_keys=["observation", "action"])
    loss = EDPTD3Loss(actor, critic, separate_losses=True).make_value_estimator(gamma=0.9)
    return TrainState(loss, make_data().buffer, EDPTargetUpdate(loss))


def test_a_state_of_networks_that_share_layers_is_loaded():
    first, second = shared_state(0), shared_state(1)
    first.update()
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    outcomes = [run(state, 2)[0] for state in (first, second)]
    assert torch.equal(*outcomes)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("update_order", "backwards"),
        ("decay", "linear"),
        ("lr", -1e-3),
        ("critic_lr", 0.0),
        ("clip_grad", float("nan")),
        ("gradient_steps", 0),
        ("policy_every", 0),
    ],
)
def test_wrong_options_are_refused(option, value):
    loss = make_loss()
    targets = EDPTargetUpdate(loss)
    with pytest.raises(ValueError, match=option):
        TrainState(loss, make_data().buffer, targets, **{option: value})


def test_a_policy_that_cannot_learn_is_refused():
    loss = make_loss()
    for parameter in loss.actor_network_params.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="actor parameters"):
        TrainState(loss, make_data().buffer, EDPTargetUpdate(loss))


def test_other_target_updaters_are_refused():
    loss, buffer = make_loss("td3"), make_data().buffer
    with pytest.raises(TypeError, match=r"targets must be an EDPTargetUpdate\(loss, tau=...\), got SoftUpdate"):
        TrainState(loss, buffer, SoftUpdate(loss, tau=0.005))
