"""The LossModule contract, for every loss: reductions, masks, weights and layouts."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import as_kwargs, gradients, make_data, make_loss, seeded, spread, total
from tensordict import TensorDict, assert_close
from torchrl.modules import ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_edp import EDPActor, EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.diffusion import NoiseSchedule
from torchrl_edp.modules import NoisePredictionMLP, QValueNetwork, ValueNetwork


def losses(case, data, state=None, **kwargs) -> TensorDict:
    loss = make_loss(case, **kwargs)
    if state is not None:
        loss.load_state_dict(state)
    return seeded(loss, data)


def test_reductions(case):
    state, data = spread(make_loss(case)).state_dict(), make_data([3, 4])
    none = losses(case, data, state, reduction="none")
    assert none.batch_size == (3, 4)
    mean, default, added = (losses(case, data, state, reduction=r) for r in ("mean", None, "sum"))
    assert_close(mean, default)
    assert mean.batch_size == () and set(none.keys()) == set(mean.keys())
    for key in none.keys():
        assert none[key].shape == (3, 4)
        torch.testing.assert_close(mean[key], none[key].mean())
        # metrics are means whatever the losses are
        torch.testing.assert_close(added[key], none[key].sum() if key in case.terms else none[key].mean())


@pytest.mark.parametrize("mode", ["exclude", "non_tensor"])
def test_scalar_output_modes(case, mode):
    state, data = spread(make_loss(case)).state_dict(), make_data()
    mean = losses(case, data, state)
    loss = make_loss(case, reduction="none", scalar_output_mode=mode)
    loss.load_state_dict(state)
    output = seeded(loss, data)
    tensors = {key for key, value in output.items() if isinstance(value, torch.Tensor) and value.shape == (4,)}
    assert tensors == set(case.terms)
    if mode == "exclude":
        assert set(output.keys()) == set(case.terms) == set(loss.out_keys)
        assert len(loss(**as_kwargs(data, loss))) == len(case.terms)
        assert_close(losses(case, data, state, scalar_output_mode=mode), mean)
    else:
        for key in set(mean.keys()) - set(case.terms):
            torch.testing.assert_close(output.get_non_tensor(key), mean[key])


@pytest.mark.parametrize("key", [("collector", "mask"), "shifted_valid", "valid"], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_masked_samples_change_nothing(case_over_batch, key, reduction):
    case, setting = case_over_batch
    loss = spread(make_loss(case, reduction=reduction, **setting))
    if key == "valid":
        loss.loss_mask_key = key
    data = make_data([6])
    mask = torch.tensor([True, False, True, True, False, True])
    expected = seeded(loss, data[mask])
    data[key] = mask.unsqueeze(-1)
    for part in (data["action"], data["observation"], data["next", "observation"]):
        part[~mask] = 3.0  # far from everything else
    found = seeded(loss, data)
    if reduction == "none":
        for term in case.terms:
            assert (found[term][~mask] == 0).all()
        found = found[mask]
    assert_close(found, expected)
    loss.loss_mask_key = None
    assert (total(seeded(loss, data)) - total(expected)).abs() > 1e-4


def test_a_sample_counts_if_every_mask_says_so(case_over_batch):
    case, setting = case_over_batch
    loss, data = spread(make_loss(case, **setting)), make_data([6])
    first = torch.tensor([True, False, True, True, False, True])
    second = torch.tensor([True, True, True, False, False, True])
    expected = seeded(loss, data[first & second])
    data["collector", "mask"], data["shifted_valid"] = first.unsqueeze(-1), second.unsqueeze(-1)
    assert_close(seeded(loss, data), expected)


def test_a_batch_without_valid_samples_has_zero_loss_and_gradient(case_over_batch):
    case, setting = case_over_batch
    loss, data = make_loss(case, **setting), make_data()
    data["collector", "mask"] = torch.zeros(4, 1, dtype=torch.bool)
    value = total(loss(data))
    assert value == 0
    assert all(not g.any() for g in gradients(loss, value).values() if g is not None)


def test_priority_weights_under_a_nested_key_and_where_they_must_be(case):
    loss, data = spread(make_loss(case, use_prioritized_weights=True)), make_data([4])
    with pytest.raises(KeyError, match="priority_weight"):
        loss(data)
    data["priority_weight"] = data["per", "weight"] = torch.tensor([0.1, 1.0, 0.5, 0.0])
    expected = seeded(loss, data)
    loss.set_keys(priority_weight=("per", "weight"))
    assert_close(seeded(loss, data.exclude("priority_weight")), expected)


def test_priority_weights(case):
    state, data = spread(make_loss(case)).state_dict(), make_data()
    none = losses(case, data.clone(), state, reduction="none")
    data["priority_weight"] = weight = torch.tensor([0.1, 1.0, 0.5, 0.0])
    mean, added = losses(case, data, state), losses(case, data, state, reduction="sum")
    unused = losses(case, data, state, reduction="none", use_prioritized_weights=False)
    each = losses(case, data, state, reduction="none", use_prioritized_weights=True)
    data["collector", "mask"] = torch.tensor([True, True, False, True])
    alone = case.over_batch[0]
    masked = losses(case, data, state, **alone)
    plain = losses(case, data.exclude("priority_weight", "collector"), state, reduction="none", **alone)
    for term in case.terms:
        torch.testing.assert_close(each[term], none[term] * weight)
        torch.testing.assert_close(unused[term], none[term])
        torch.testing.assert_close(added[term], (none[term] * weight).sum())
        torch.testing.assert_close(mean[term], (none[term] * weight).sum() / weight.sum())
        torch.testing.assert_close(masked[term], (plain[term] * weight)[[0, 1, 3]].sum() / 1.1)


@pytest.mark.parametrize("batch", [[], [1], [8], [2, 4]], ids=str)
def test_batch_layouts(case, batch):
    size = math.prod(batch)
    state, flat = spread(make_loss(case)).state_dict(), make_data([size])
    data = flat.view(*batch) if batch else flat[0]
    expected = losses(case, flat, state, reduction="none")
    found = losses(case, data, state, reduction="none")
    assert found.batch_size == torch.Size(batch) and data["td_error"].shape == torch.Size(batch)
    assert_close(found, expected.view(*batch) if batch else expected[0])
    drawn = data.exclude("diffusion_step", "diffusion_noise", "initial_noise", ("next", "initial_noise"))
    total(losses(case, drawn, state)).backward()


def test_vmap_equals_loop(case):
    state, data = spread(make_loss(case, 3)).state_dict(), make_data()
    assert_close(*(losses(case, data, state, num_qvalue_nets=3, deactivate_vmap=off) for off in (True, False)))


def test_steps_with_a_trailing_dimension(case):
    loss, data = spread(make_loss(case)), make_data()
    expected = seeded(loss, data)
    data["diffusion_step"] = data["diffusion_step"].unsqueeze(-1)
    assert_close(seeded(loss, data), expected)


def test_a_diffusion_step_may_have_a_last_dimension_of_its_own(case):
    loss, data = spread(make_loss(case)), make_data([3, 2])
    expected = seeded(loss, data)
    data["diffusion_step"] = data["diffusion_step"].unsqueeze(-1)
    assert_close(seeded(loss, data), expected)


@pytest.mark.parametrize("kind", [EDPTD3Loss, EDPCRRLoss])
@pytest.mark.parametrize("inputs", [["image", "action"], ["action"]])
def test_critics_may_read_what_is_no_vector_or_the_action_alone(kind, inputs):
    class Critic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Linear(2, 1)
            self.look = torch.nn.Conv2d(4, 2, 1)  # takes one batch dimension, no more

        def forward(self, *values):
            shift = self.look(values[0]).flatten(1).mean(-1, keepdim=True) if len(values) > 1 else 0.0
            return self.scale(values[-1]) + shift

    actor = EDPActor(NoisePredictionMLP(3, 2, hidden_sizes=[8]), schedule=NoiseSchedule(50), num_calls=3)
    loss = kind(actor, ValueOperator(Critic(), in_keys=inputs)).make_value_estimator(gamma=0.9)
    SoftUpdate(loss, tau=0.005)
    done = torch.zeros(6, 1, dtype=torch.bool)
    states = [{"observation": torch.randn(6, 3), "image": torch.randn(6, 4, 4, 1)} for _ in range(2)]
    following = states[1] | {"reward": torch.randn(6, 1), "done": done, "terminated": done.clone()}
    data = TensorDict(states[0] | {"action": torch.rand(6, 2), "next": following}, [6])
    assert all(value.isfinite().all() for value in loss(data).values())


@pytest.mark.parametrize("kind", ["td3", "crr", "iql"])
def test_agents_in_a_nested_tensordict_are_as_so_many_samples(kind):
    """The layout of TorchRL's multi-agent environments: batch [B] at the root, [B, n] below."""
    batch, agents = 6, 3
    torch.manual_seed(0)
    keys = {"action": ("agents", "action"), "state_action_value": ("agents", "q"), "priority": ("agents", "p")}
    keys |= {name: ("agents", name) for name in ("reward", "done", "terminated")}
    network = {"hidden_sizes": [8]}

    def make(nested):
        torch.manual_seed(1)
        observation, action = (("agents", name) if nested else name for name in ("observation", "action"))
        q, v = (("agents", name) if nested else name for name in ("q", "v"))
        options = {"schedule": NoiseSchedule(50), "num_calls": 3, "solver": "dpm_solver_pp"}
        networks = [EDPActor(NoisePredictionMLP(3, 2, **network), in_keys=[observation], out_keys=[action], **options)]
        critic = QValueNetwork(3, 2, **network)
        networks.append(ValueOperator(critic, in_keys=[observation, action], out_keys=[q]))
        if kind == "iql":
            networks.append(ValueOperator(ValueNetwork(3, **network), in_keys=[observation], out_keys=[v]))
        loss = {"td3": EDPTD3Loss, "crr": EDPCRRLoss, "iql": EDPIQLLoss}[kind](*networks)
        own = keys if nested else {"state_action_value": "q"}
        loss.set_keys(**own, **({"value": v} if kind == "iql" else {}))
        loss.make_value_estimator(gamma=0.9)
        SoftUpdate(loss, tau=0.005)
        return loss

    shape = (batch, agents)
    done = torch.zeros(*shape, 1, dtype=torch.bool)
    own = TensorDict({"observation": torch.randn(*shape, 3), "action": torch.rand(*shape, 2) * 2 - 1}, shape)
    following = {"observation": torch.randn(*shape, 3), "reward": torch.randn(*shape, 1), "done": done}
    following = TensorDict(following | {"terminated": done.clone()}, shape)
    nested = TensorDict({"agents": own, "next": TensorDict({"agents": following}, [batch])}, [batch])
    flat = own.clone().set("next", following).flatten(0, 1)
    found = []
    for loss, data in ((make(True), nested), (make(False), flat)):
        torch.manual_seed(2)
        found.append({name: value.mean() for name, value in loss(data).items() if name.startswith("loss_")})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)
