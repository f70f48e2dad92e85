"""Averaged parameters: the arithmetic, and the policy's own schedule."""

import pytest
import torch
from training_helpers import make_loss

from torchrl_edp.training import EDPTargetUpdate


def values(params) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in params.values(True, True)])


def shift(loss, amount: float) -> None:
    with torch.no_grad():
        for parameter in loss.parameters():
            if parameter.requires_grad:
                parameter.add_(amount)


def test_critics_move_by_tau_and_the_policy_by_its_own_rate():
    loss = make_loss()
    targets = EDPTargetUpdate(loss, tau=0.25, actor_tau=0.5)
    actor, qvalue = values(loss.target_actor_network_params), values(loss.target_qvalue_network_params)
    shift(loss, 1.0)
    targets.step()
    torch.testing.assert_close(values(loss.target_actor_network_params), actor + 0.5)
    torch.testing.assert_close(values(loss.target_qvalue_network_params), qvalue + 0.25)
    targets.step()
    torch.testing.assert_close(values(loss.target_actor_network_params), actor + 0.75)
    torch.testing.assert_close(values(loss.target_qvalue_network_params), qvalue + 0.4375)


def test_the_policy_is_copied_until_its_start_then_moves_every_few_updates():
    loss = make_loss()
    targets = EDPTargetUpdate(loss, tau=0.1, actor_tau=0.5, actor_every=2, actor_start=1)
    start = values(loss.target_actor_network_params)
    offsets = []
    for _ in range(4):
        shift(loss, 1.0)
        targets.step()
        offsets.append(float((values(loss.target_actor_network_params) - start).mean()))
    # Update 1 copies (1); 2 averages with 2 (1.5); 3 is skipped; 4 averages with 4 (2.75).
    assert offsets == pytest.approx([1.0, 1.5, 1.5, 2.75], abs=1e-5)


def test_without_actor_targets_only_the_critics_move():
    loss = make_loss(delay_actor=False)
    targets = EDPTargetUpdate(loss, tau=0.5)
    before = values(loss.target_qvalue_network_params)
    shift(loss, 1.0)
    targets.step()
    torch.testing.assert_close(values(loss.target_qvalue_network_params), before + 0.5)


@pytest.mark.parametrize("option", [{"tau": 1.5}, {"actor_tau": -0.1}, {"actor_every": 0}])
def test_wrong_rates_are_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name} must lie in"):
        EDPTargetUpdate(make_loss(), **option)
