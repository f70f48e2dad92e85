"""CRRLoss against the equations written out sample by sample, and where its gradients and draws go."""

from __future__ import annotations

import math

import hand_computed as hand
import pytest
import torch
from loss_cases import OBS, A, gradients, make_data, make_networks, qvalues, spread
from torch.distributions import Normal
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate, ValueEstimators

from torchrl_edp.modules import tanh_actor, tanh_gaussian_actor
from torchrl_edp.objectives import CRRLoss

SEED = 3
SETTINGS = {"temperature": 2.0, "num_action_samples": 3, "weight_cap": 3.0, "reduction": "none"}
PLAIN = {"weight_function": "exp", "weight_normalization": None, "baseline": "mean"}
CLOSE = {"rtol": 1e-6, "atol": 1e-8}  # tensordict shifts the softplus by a number of single precision
close = torch.testing.assert_close


def make_loss(num_critics=2, **settings) -> CRRLoss:
    critics = make_networks(num_critics)["qvalue_network"]
    actor = tanh_gaussian_actor(OBS, A, hidden_sizes=(8, 8))
    loss = CRRLoss(actor, critics, num_qvalue_nets=num_critics, **(SETTINGS | settings)).double()
    SoftUpdate(loss, tau=0.1)
    spread(loss).qvalue_network_params.data.mul_(1.5)
    return loss


def data(size=6):
    result = make_data([size], dtype=torch.float64, draws=False)
    result["action"] *= 0.999
    return result


def gaussian(loss, observation, target=False):
    """Mean and deviation of the Gaussian under the tanh, from the network's output."""
    params = loss.target_actor_network_params if target else loss.actor_network_params
    with params.to_module(loss.actor_network):
        mean, raw = loss.actor_network[0].module[0](observation).chunk(2, -1)
    # 0.01 and a softplus, shifted so that 0 gives 1.
    return mean, 0.01 + torch.nn.functional.softplus(raw + math.log(math.exp(0.99) - 1))


def literal_policy_loss(loss, batch, **settings) -> torch.Tensor:
    """-f log pi(a | s), f = exp(temperature (min_j Q_j(s, a) - mean_i min_j Q_j(s, a_i))), a_i from the policy."""
    s = SETTINGS | PLAIN | settings
    observation, action = batch["observation"], batch["action"]
    mean, deviation = gaussian(loss, observation)
    torch.manual_seed(SEED)
    samples = Normal(mean, deviation).sample((s["num_action_samples"],)).tanh()
    advantages, log_probs = [], []
    for i in range(len(batch)):
        value = qvalues(loss, observation[i], action[i]).min().item()
        others = [qvalues(loss, observation[i], sample[i]).min().item() for sample in samples]
        advantages.append(value - (sum(others) / len(others) if s["baseline"] == "mean" else max(others)))
        z = action[i].atanh()
        density = torch.exp(-0.5 * ((z - mean[i]) / deviation[i]) ** 2) / (deviation[i] * math.sqrt(2 * math.pi))
        log_probs.append((density.log() - torch.log(1 - action[i] ** 2)).sum())
    factors = hand.advantage_factors(advantages, s)
    return torch.stack([-factor * log_prob for factor, log_prob in zip(factors, log_probs, strict=True)])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_critics": 1},
        {"num_critics": 3, "deactivate_vmap": True},
        {"weight_cap": None},
        {"weight_function": "step"},
        {"weight_function": "step", "weight_normalization": "mean"},
        {"weight_normalization": "mean"},
        {"weight_normalization": "softmax"},
        {"baseline": "max"},
        {"num_action_samples": 1, "temperature": 0.5},
    ],
    ids=str,
)
def test_the_policy_loss_and_its_gradients(settings):
    loss, batch = make_loss(**settings), data()
    torch.manual_seed(SEED)
    found, metrics = loss.actor_loss(batch)
    literal = literal_policy_loss(loss, batch, **{k: v for k, v in settings.items() if k != "num_critics"})
    close(found, literal, **CLOSE)
    assert metrics["advantage_weight"].std() > 0, "all weights agree: this checks nothing"
    expected = gradients(loss, literal.mean())
    for name, gradient in gradients(loss, found.mean()).items():
        close(gradient, expected[name], **CLOSE)
        assert (gradient is not None) == name.startswith("actor_network")


def test_the_critics_loss_and_its_gradients():
    loss, batch = make_loss().make_value_estimator(gamma=0.9), data()
    torch.manual_seed(SEED)
    found, _ = loss.qvalue_loss(batch)
    torch.manual_seed(SEED)
    following = batch["next"]
    mean, deviation = gaussian(loss, following["observation"], target=True)
    action = Normal(mean, deviation).sample().tanh()
    with torch.no_grad():
        value = qvalues(loss, following["observation"], action, "target_qvalue_network_params").amin(0)
    target = following["reward"] + 0.9 * (~following["terminated"]) * value
    literal = (qvalues(loss, batch["observation"], batch["action"]) - target).square().sum(0).squeeze(-1)
    close(found, literal, **CLOSE)
    expected = gradients(loss, literal.mean())
    for name, gradient in gradients(loss, found.mean()).items():
        close(gradient, expected[name], **CLOSE)
        assert (gradient is not None) == name.startswith("qvalue_network")


def test_forward_gives_both_and_writes_the_priority_alone():
    loss, batch = make_loss(reduction="mean"), data()
    before = {key: value.clone() for key, value in batch.items(True, True)}
    output = loss(batch)
    assert list(output.keys()) == loss.out_keys and all(value.shape == () for value in output.values())
    assert {key for key, value in output.items() if value.requires_grad} == {"loss_actor", "loss_qvalue"}
    assert set(batch.keys(True, True)) == {*before, "td_error"} and batch["td_error"].shape == (6,)
    assert all(torch.equal(batch[key], value) for key, value in before.items())
    torch.manual_seed(0)
    sums = make_loss(reduction="sum")
    assert sums(data(1))["loss_actor"].shape == ()
    assert list(loss.select_out_keys("loss_actor")(data()).keys()) == ["loss_actor"]


def test_masked_samples_do_not_count():
    loss, batch = make_loss(reduction="mean", weight_normalization="mean"), data()
    mask = torch.tensor([True, True, False, True, False, False])
    loss.loss_mask_key = "mask"
    batch["mask"] = mask.unsqueeze(-1)
    torch.manual_seed(SEED)
    found, _ = loss.actor_loss(batch)
    other = batch.clone()
    other["action"][~mask] = 0.5
    torch.manual_seed(SEED)
    close(loss.actor_loss(other)[0], found)
    other["action"][mask] = 0.5
    torch.manual_seed(SEED)
    assert not torch.allclose(loss.actor_loss(other)[0], found)


def test_other_keys_are_followed():
    loss, batch = make_loss(reduction="mean"), data()
    torch.manual_seed(SEED)
    expected = loss(batch)
    loss.set_keys(reward="points", done="end", terminated="death", priority="surprise")
    for old, new in {"reward": "points", "done": "end", "terminated": "death"}.items():
        batch.rename_key_(("next", old), ("next", new))
    assert ("next", "points") in loss.in_keys and ("next", "reward") not in loss.in_keys
    torch.manual_seed(SEED)
    found = loss(batch)
    assert "surprise" in batch.keys()
    for key, value in expected.items():
        close(found[key], value)
    values = batch.select(*loss.in_keys, strict=False).items(True, True)
    torch.manual_seed(SEED)
    given = loss(**{"_".join([key] if isinstance(key, str) else key): value for key, value in values})
    close(given[0], expected["loss_actor"])


def test_importance_weights_and_estimators():
    loss = make_loss(reduction="mean").make_value_estimator(ValueEstimators.TD0, gamma=0.9)
    batch = data()
    weights = torch.rand(6, dtype=torch.float64)
    torch.manual_seed(SEED)
    each = each_actor_loss(loss, batch)
    batch["priority_weight"] = weights
    torch.manual_seed(SEED)
    close(loss.actor_loss(batch)[0], (each * weights).sum() / weights.sum())
    with pytest.raises(NotImplementedError):
        loss.make_value_estimator(ValueEstimators.GAE)


def each_actor_loss(loss, batch):
    """The policy's loss of every sample."""
    loss.reduction = "none"
    each = loss.actor_loss(batch)[0].detach()
    loss.reduction = "mean"
    return each


def test_wrong_actors_and_settings_are_refused():
    critics = make_networks(2)["qvalue_network"]
    with pytest.raises(TypeError, match="needs an actor that gives a distribution .*got TensorDictModule"):
        CRRLoss(tanh_actor(OBS, A), critics)
    good = tanh_gaussian_actor(OBS, A)
    loose = ProbabilisticActor(good[0], in_keys=["loc", "scale"], distribution_class=Normal)
    with pytest.raises(ValueError, match=r"expected one number per action, shape \[6\], got \[6, \d\]"):
        CRRLoss(loose, critics).double().actor_loss(data())
    wrong = {"weight_function": "log", "baseline": "min", "num_action_samples": 0, "temperature": -1, "weight_cap": 0}
    wrong |= {"weight_normalization": "max", "reduction": "max", "loss_function": "l3", "num_qvalue_nets": 0}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            CRRLoss(good, critics, **{name: value})
