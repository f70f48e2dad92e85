"""The update: against the same step written by hand, and each of its options."""

import copy

import pytest
import torch
from training_helpers import make_data, make_loss, make_state

from torchrl_edp.training import EDPTargetUpdate, TrainState


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
    norms = {}
    step = state.optimizer.step

    def record():
        for name, group in state.networks.items():
            norms[name] = torch.stack([p.grad.norm() for p in group]).norm().item()
        step()

    state.optimizer.step = record
    metrics = state.update()
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in norms.values())
    assert metrics["grad_norm_qvalue"] > 1e-2  # what is reported is the norm before clipping


def test_cosine_decay_lowers_only_the_policys_rate():
    state = make_state(lr=1.0, decay="cosine", gradient_steps=4)
    rates = []
    for _ in range(4):
        state.update()
        rates.append([group["lr"] for group in state.optimizer.param_groups])
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
def test_compiled_update_follows_the_eager_one():
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        state = make_state(compile=compile)
        # Compiled code draws its random numbers differently: give both the same draws.
        step, noise = torch.randint(50, (16,)), torch.randn(16, 2)
        sample = state.buffer.sample
        state.buffer.sample = lambda sample=sample, step=step, noise=noise: sample().update(
            {"diffusion_step": step, "diffusion_noise": noise}
        )
        for _ in range(5):
            state.update()
        results.append(parameters(state.loss))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("option", "value"), [("update_order", "backwards"), ("decay", "linear")])
def test_wrong_options_are_refused(option, value):
    loss = make_loss()
    targets = EDPTargetUpdate(loss)
    with pytest.raises(ValueError, match=option):
        TrainState(loss, make_data().buffer, targets, **{option: value})
