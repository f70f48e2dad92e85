"""EDPTD3Loss: where the bounds of actions come from."""

from __future__ import annotations

import pytest
import torch
from loss_cases import CASES, A, make_data, make_loss, make_networks, seeded
from tensordict import assert_close
from torchrl.data import Bounded, Composite, Unbounded

from torchrl_edp import EDPActor

(TD3,) = [case for case in CASES if case.name == "td3"]
LOW, HIGH = torch.tensor([-0.2, -0.1]), torch.tensor([0.1, 0.3])
SPEC = Bounded(LOW, HIGH)


@pytest.mark.parametrize(
    "given",
    [
        {"bounds": (LOW, HIGH)},
        {"bounds": (LOW.numpy(), HIGH.numpy())},
        {"bounds": (LOW.tolist(), HIGH.tolist())},
        {"action_spec": SPEC},
        {"action_spec": Composite(action=SPEC)},
        {"action_spec": SPEC.expand(5, A)},
        {"action_spec": Composite(action=SPEC.expand(5, A), shape=[5])},
    ],
    ids=["bounds", "arrays", "lists", "spec", "composite", "batched", "batched composite"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forms_of_the_same_bounds(given, dtype):
    networks = make_networks(2)
    actor = networks["actor_network"]
    bounded = EDPActor(actor.module.noise_network, schedule=actor.module.schedule, spec=SPEC)
    expected = make_loss(TD3, networks={**networks, "actor_network": bounded}).to(dtype)
    found = make_loss(TD3, networks=networks, **given).to(dtype)
    unbounded = make_loss(TD3, networks=networks).to(dtype)
    data = make_data([16], dtype=dtype)
    output, wide = seeded(found, data), seeded(unbounded, data)
    assert_close(output, seeded(expected, data))
    for term in TD3.terms:
        assert (output[term] - wide[term]).abs() > 1e-4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"action_spec": SPEC, "bounds": (-1.0, 1.0)}, "but not both"),
        ({"action_spec": Unbounded(A)}, "must be Bounded"),
        ({"bounds": (1.0, -1.0)}, "higher than"),
        ({"bounds": (HIGH, LOW)}, "higher than"),
        ({"bounds": (LOW, HIGH - torch.tensor([0.0, 1.0]))}, "higher than"),
        ({"bounds": (float("nan"), 1.0)}, "higher than"),
        (
            {"action_spec": Bounded(torch.stack([LOW, -HIGH]), torch.stack([HIGH, HIGH]))},
            "same action bounds in every row",
        ),
        ({"bounds": (-torch.ones(3), torch.ones(3))}, r"two numbers or two tensors \[2\]"),
    ],
    ids=["both", "unbounded", "floats", "tensors", "one dimension", "no number", "rows", "other size"],
)
def test_bounds_that_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make_loss(TD3, **given)


def test_a_number_bounds_every_entry():
    loss, same = make_loss(TD3, bounds=(LOW, 0.3)), make_loss(TD3, bounds=(LOW, torch.full((A,), 0.3)))
    same.load_state_dict(loss.state_dict())
    data = make_data([16])
    assert_close(seeded(loss, data), seeded(same, data))
