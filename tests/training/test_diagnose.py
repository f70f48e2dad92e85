"""What is found out about a run by looking at it, that looking changes nothing, and the warning."""

import sys
from functools import partial

import pytest
import torch
from test_feed_forward_runs import make_settings
from torchrl.envs.utils import ExplorationType
from tqdm import tqdm
from training_helpers import ACTIONS, LOSSES, OBSERVATIONS, make_data, make_loss

from torchrl_edp.objectives import clipped_share_by_step
from torchrl_edp.training import EDPTargetUpdate, TrainState, build_feed_forward_loss
from torchrl_edp.training.diagnose import Diagnosis

DETERMINISTIC = ExplorationType.DETERMINISTIC
OF_CRITICS = {f"q_{whose}{what}" for whose in ("data", "policy") for what in ("", "_std", "_disagreement")}
OF_CRITICS |= {"q_bound", "td_error"}
WEIGHTS = {"weight_at_cap", "weight_effective"}
CLIPPED = {f"clipped_{i:02d}" for i in range(1, 11)}
close = partial(pytest.approx, rel=1e-5, abs=1e-6)


def make_feed_forward(name):
    return build_feed_forward_loss(make_settings(name), OBSERVATIONS, ACTIONS)


CASES = {f"edp_{name}": partial(make_loss, name) for name in LOSSES}
CASES |= {name: partial(make_feed_forward, name) for name in ("td3_bc", "iql", "crr", "bc")}
COLUMNS = {
    "edp_iql": OF_CRITICS | WEIGHTS | CLIPPED,
    "edp_td3": OF_CRITICS | CLIPPED,
    "edp_crr": OF_CRITICS | WEIGHTS | CLIPPED,
    "td3_bc": OF_CRITICS,
    "iql": OF_CRITICS | WEIGHTS,
    "crr": OF_CRITICS | WEIGHTS,
    "bc": set(),
}
WEIGHTED = [name for name in CASES if WEIGHTS <= COLUMNS[name]]


def make_state(name, **options):
    """The loss after some updates, so that averages differ from what they average."""
    torch.manual_seed(0)
    loss = CASES[name]()
    state = TrainState(loss, make_data().buffer, EDPTargetUpdate(loss), lr=0.03, **options)
    for _ in range(3):
        state.update()
    return state


def look(state, update=3, **options):
    row = Diagnosis(state.loss, state.buffer, **options)(update)
    assert all(name.startswith("diagnose/") for name in row)
    return {name.removeprefix("diagnose/"): value for name, value in row.items()}


@torch.no_grad()
def qvalues(loss, data, action, params="qvalue_network_params"):
    values = []
    for critic in getattr(loss, params).unbind(0):
        with critic.to_module(loss.qvalue_network):
            values.append(loss.qvalue_network.module(data["observation"], action).squeeze(-1))
    return torch.stack(values)


@pytest.mark.parametrize("name", CASES)
def test_looking_changes_nothing(name):
    """Neither weights nor random numbers: updates that were looked at are those that were not."""
    state, other = make_state(name), make_state(name)
    assert look(other, exploration_type=ExplorationType.RANDOM).keys() == COLUMNS[name] | {"action_distance"}
    torch.manual_seed(5)
    for _ in range(2):
        state.update()
    torch.manual_seed(5)
    diagnosis = Diagnosis(other.loss, other.buffer)
    for update in range(2):
        other.update()
        first, again = diagnosis(update), diagnosis(update)
        assert first == again
    watched, unwatched = other.state_dict(), state.state_dict()
    assert not [key for key, value in unwatched.items() if not torch.equal(value, watched[key])]
    assert all(parameter.grad is None for parameter in other.loss.parameters())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("averaged", [False, True])
def test_q_and_distance_by_hand(name, averaged):
    state = make_state(name)
    loss, data = state.loss, state.buffer[:]
    params = loss.target_actor_network_params if averaged else loss.actor_network_params
    found = look(state, actor_params=params if averaged else None, exploration_type=DETERMINISTIC)
    with torch.no_grad(), params.to_module(loss.actor_network):
        inputs = data.select("observation")
        if name in ("td3_bc", "iql", "crr", "bc"):
            action = loss.actor_network(inputs)["action"]
        else:
            action = loss.actor_network.module(data["observation"], torch.zeros_like(data["action"]))
    assert found["action_distance"] == close(float((action - data["action"]).square().mean().sqrt()))
    if name == "bc":
        return
    for whose, actions in {"data": data["action"], "policy": action}.items():
        q = qvalues(loss, data, actions)
        assert found[f"q_{whose}"] == close(q.mean().item())
        assert found[f"q_{whose}_std"] == close(((q[0] + q[1]) / 2).std(unbiased=False).item())
        assert found[f"q_{whose}_disagreement"] == close(((q[0] - q[1]).abs() / 2).mean().item())
    gamma = 0.9 if name.startswith("edp") else 0.99
    assert found["q_bound"] == close(data["next", "reward"].abs().max().item() / (1 - gamma))


@pytest.mark.parametrize("name", ["edp_iql", "iql"])
def test_td_error_and_weights_of_iql_by_hand(name):
    state = make_state(name)
    loss, data = state.loss, state.buffer[:]
    with torch.no_grad(), loss.value_network_params.to_module(loss.value_network):
        values = [loss.value_network.module(part["observation"]).squeeze(-1) for part in (data, data["next"])]
    reward, goes_on = (data["next", key].squeeze(-1) for key in ("reward", "terminated"))
    target = reward + (0.9 if name == "edp_iql" else 0.99) * ~goes_on * values[1]
    found, q = look(state), qvalues(loss, data, data["action"])
    assert found["td_error"] == close((q - target).square().mean().sqrt().item())
    advantage = qvalues(loss, data, data["action"], "target_qvalue_network_params").amin(0) - values[0]
    weight = (loss.temperature * advantage).exp().clamp(max=100)
    assert found["weight_effective"] == close((weight.sum() ** 2 / (64 * weight.square().sum())).item())


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_follow_the_losses_settings(name):
    state = make_state(name)
    state.loss.temperature = 0.0
    found = look(state)
    assert (found["weight_at_cap"], found["weight_effective"]) == (0, 1)
    state.loss.temperature = 1e9  # all or nothing
    found = look(state)
    assert 0 < found["weight_at_cap"] < 1 and found["weight_effective"] == close(found["weight_at_cap"])
    if name != "iql":
        for setting in ({"weight_cap": None}, {"weight_normalization": "softmax"}, {"weight_function": "step"}):
            ((key, value),) = setting.items()
            before = getattr(state.loss, key)
            setattr(state.loss, key, value)
            assert look(state)["weight_at_cap"] == 0, key
            setattr(state.loss, key, before)


def test_every_diffusion_step_counts_alike():
    state = make_state("edp_td3")
    diagnosis = Diagnosis(state.loss, state.buffer, num_rows=50)
    batch = diagnosis._batch
    assert sorted(batch["diffusion_step"].tolist()) == list(range(50))
    shares = clipped_share_by_step(state.loss, batch).tolist()
    row = diagnosis(3)
    assert [row[f"diagnose/{name}"] for name in sorted(CLIPPED)] == close(shares) and len(set(shares)) > 1
    rows = {tuple(values) for values in state.buffer[:]["observation"].tolist()}
    assert len(rows) == 64 and {tuple(values) for values in batch["observation"].tolist()} < rows
    assert len({tuple(values) for values in batch["observation"].tolist()}) == 50


def test_what_cannot_be_told_is_left_out():
    few = look(make_state("edp_td3"), num_rows=4)  # steps 0, 12, 25 and 37 of 50
    assert {name for name in few if name.startswith("clipped")} == {f"clipped_{i:02d}" for i in (1, 3, 6, 8)}
    state = make_state("edp_td3")
    state.loss.guidance_start = "noise"
    assert look(state).keys() == OF_CRITICS | {"action_distance"}
    with torch.no_grad():
        state.loss.qvalue_network_params.apply(lambda value: value.data.fill_(1e38))
    assert "q_data" not in look(state) and "q_bound" in look(state)


def test_it_knows_how_far_returns_look():
    buffer, loss = make_data(return_steps=3, gamma=0.9).buffer, make_state("edp_td3").loss
    rows, found = buffer[:], Diagnosis(loss, buffer)(3)
    bounds = rows["next", "reward"].abs() / (1 - 0.9 ** rows["steps_to_next_obs"])
    assert rows["steps_to_next_obs"].unique().tolist() == [1, 2, 3]
    assert found["diagnose/q_bound"] == close(float(bounds.max()))


def explode(loss):
    with torch.no_grad():
        loss.qvalue_network_params.apply(lambda value: value.data.mul_(200))


@pytest.mark.parametrize("name", [name for name in CASES if name != "bc"])
def test_it_warns_once_when_q_explodes(name, capsys):
    state = make_state(name)
    diagnosis = Diagnosis(state.loss, state.buffer)
    diagnosis(3)
    assert "explodes" not in capsys.readouterr().err
    explode(state.loss)
    size = qvalues(state.loss, state.buffer[:], state.buffer[:]["action"]).abs().mean()
    with tqdm(total=9, file=sys.stderr):
        row = diagnosis(4000)
        diagnosis(5000)
    said = capsys.readouterr().err
    assert said.count("Q explodes") == 1 and "at update 4000" in said and f"is {size:.3g}" in said
    assert f"allow no more than {row['diagnose/q_bound']:.3g}." in said
    assert f"rewards of at most\n{state.buffer[:]['next', 'reward'].abs().max():.3g} and" in said
    for remedy in ("critic_layer_norm", "critic_lr", "guidance_weight", "reward_rule"):
        assert remedy in said


def test_from_when_on_it_warns(capsys):
    state = make_state("edp_td3")
    diagnosis = Diagnosis(state.loss, state.buffer)
    diagnosis._bound = 100.0
    diagnosis._warn(1, 150.9)
    assert not capsys.readouterr().err
    diagnosis._warn(2, 151.1)
    assert "at update 2 " in capsys.readouterr().err


def test_numbers_that_are_no_numbers_are_an_explosion(capsys):
    state = make_state("edp_td3")
    Diagnosis(state.loss, state.buffer)._warn(1, float("nan"))
    assert "Q explodes" in capsys.readouterr().err


def test_critics_that_start_are_no_explosion_where_nothing_is_rewarded(capsys):
    state = make_state("edp_td3")
    state.buffer[:]["next", "reward"].zero_()
    found = look(state)
    assert found["q_bound"] == 0 and found["q_data"] != 0
    assert not capsys.readouterr().err
