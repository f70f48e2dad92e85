"""A whole run of every loss on data in memory: the folder, whose parameters act, the order of updates."""

import csv
import json
from dataclasses import asdict

import pytest
import torch
from experiment_helpers import LOSSES, make_data, make_loss, make_settings
from safetensors.torch import load_file
from tensordict import TensorDict
from torchrl.envs import GymEnv

from torchrl_edp.data import DatasetError
from torchrl_edp.training import (
    EDPTargetUpdate,
    RunFolder,
    SelectionSettings,
    TrainState,
    experiment,
    load_policy,
    prepare_data,
    run_experiment,
)
from torchrl_edp.training.settings import (
    CompileSettings,
    DiffusionSettings,
    EnvSettings,
    OptimSettings,
    PolicySettings,
)


def run(tmp_path, name, *, about=None, eval_iter=2, **options):
    cfg, dataset = make_settings(name, **options), make_data(**about or {})
    cfg.logger.eval_iter = eval_iter
    loss = make_loss(cfg, name, dataset)
    return loss, run_experiment(cfg, dataset, loss, RunFolder(tmp_path, backend=""))


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_leaves_its_folder(tmp_path, name, capsys):
    _, summary = run(tmp_path, name, preset="reference", seed=7)
    names = {path.name for path in tmp_path.iterdir()}
    policies = {f"{policy}.{suffix}" for policy in ("policy", "policy_best") for suffix in ("json", "safetensors")}
    pictures = {"curves.png", "diagnose.png"}
    assert names == {".lock", "checkpoints", "config.yaml", "metrics.csv", "summary.json", *pictures, *policies}
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written == summary and written["oms"] >= written["last"] and written["gradient_steps"] == 4
    about = {"loss": LOSSES[name].__name__, "dataset": "tiny", "preset": "reference", "seed": 7}
    assert about.items() <= written.items()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows if row["eval/return"]] == ["2", "4"]
    assert [row["update"] for row in rows if row["loss_actor"]] == ["2", "4"]
    assert [row["update"] for row in rows if row["diagnose/clipped_05"]] == ["2", "4"]
    assert str(tmp_path) in capsys.readouterr().out
    info = json.loads((tmp_path / "policy.json").read_text())["info"]
    assert info == {"dataset": "tiny", "env": "Pendulum-v1", "update": 4}


def test_a_run_computes_products_as_it_is_told(tmp_path):
    products = torch.backends.mkldnn.matmul
    for precision, onednn, expected in (("high", False, "tf32"), ("high", True, "bf16"), ("highest", False, "ieee")):
        optim = OptimSettings(gradient_steps=2, device="cpu", matmul_precision=precision)
        run(tmp_path / f"{precision}{onednn}", "edp_td3", optim=optim, compile=CompileSettings(False, onednn))
        assert products.fp32_precision == expected


def test_data_without_an_environment_train_where_nothing_is_evaluated(tmp_path):
    nowhere = {"env_id": None, "max_episode_steps": None}
    with pytest.raises(DatasetError, match=r"data that name none. Give env.name=.*env_id=.*logger.eval_iter=0"):
        run(tmp_path / "refused", "edp_td3", about=nowhere)
    _, summary = run(tmp_path / "run", "edp_td3", about=nowhere, eval_iter=0)
    assert summary["rat"] is summary["oms"] is summary["last"] is None
    assert not (tmp_path / "run" / "policy_best.json").exists()
    assert load_policy(tmp_path / "run").action_scaler.half_range.item() == 2
    assert json.loads((tmp_path / "run" / "policy.json").read_text())["info"]["env"] is None
    env = EnvSettings("Pendulum-v1", max_episode_steps=3)
    run(tmp_path / "named", "edp_td3", about=nowhere, env=env)
    assert json.loads((tmp_path / "named" / "policy.json").read_text())["info"]["env"] == "Pendulum-v1"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("Hopper-v5", r"environment Hopper-v5: .*data's 3 observation .* \(1,\), got 11 .* \(3,\). .*env.name="),
        ("MountainCarContinuous-v0", "data's 3 observation entries .*, got 2 observation entries"),
        ("CartPole-v1", "action space of CartPole-v1: expected a Box"),
        ("Nope-v1", "got 'Nope-v1' .*env.name=module:Name-v0"),
    ],
)
def test_an_environment_that_does_not_fit_the_data_is_refused_at_once(tmp_path, env, message):
    with pytest.raises(DatasetError, match=message):
        run(tmp_path, "edp_td3", env=EnvSettings(env))
    assert not (tmp_path / "metrics.csv").exists()


def test_bounds_that_are_not_the_environments_are_told(tmp_path):
    found = r"data lie in \[\[-3.0\], \[3.0\]\], those of Pendulum-v1 in \[\[-2.0\], \[2.0\]\]"
    with pytest.warns(UserWarning, match=found):
        run(tmp_path, "edp_td3", about={"bound": 3.0})


def test_a_policy_of_dict_observations_acts_in_its_environment(tmp_path):
    """That of its folder concatenates what TorchRL's environment gives as the data and the evaluation do."""
    pytest.importorskip("gymnasium_robotics")
    keys = ("observation", "achieved_goal", "desired_goal")
    about = {
        "sizes": (8, 2),
        "bound": 1.0,
        "env_id": "gymnasium_robotics:PointMaze_Medium-v3",
        "observation_keys": keys,
    }
    run(tmp_path, "edp_td3", about=about)
    policy, env = load_policy(tmp_path), GymEnv("PointMaze_Medium-v3")
    steps = env.rollout(3, policy)
    observations = torch.cat([steps[key] for key in keys], -1)
    torch.manual_seed(0)
    expected = policy(TensorDict({"observation": observations}, [3]))["action"]
    torch.manual_seed(0)
    torch.testing.assert_close(policy(steps)["action"], expected)


@pytest.mark.parametrize("actor", [True, False])
@pytest.mark.parametrize("critics", [True, False])
def test_averaged_or_trained_parameters_act(tmp_path, actor, critics):
    policy = PolicySettings(num_action_samples=3, averaged_actor=actor, averaged_critics=critics)
    loss, _ = run(tmp_path, "edp_td3", policy=policy)
    saved = load_file(tmp_path / "policy.safetensors")
    for network, average in {"actor": actor, "qvalue": critics}.items():
        for kind, expected in {"target_": average, "": not average}.items():
            params = getattr(loss, f"{kind}{network}_network_params")
            found = {".".join(key) if isinstance(key, tuple) else key: p for key, p in params.items(True, True)}
            same = [torch.equal(saved[f"{network}.{key}"], value) for key, value in found.items()]
            assert all(same) if expected else not any(same), (network, kind)


def test_a_saved_policy_loads_without_the_flags(tmp_path):
    chosen = {"temperature": 2.0, "mode": "argmax", "standardize": True, "min_noise_scale": 0.5}
    settings = PolicySettings(num_action_samples=3, **chosen)
    assert settings.selection == SelectionSettings(3, **chosen)
    run(tmp_path, "edp_iql", policy=settings)
    assert json.loads((tmp_path / "policy.json").read_text())["selection"] == asdict(settings.selection)
    policy = load_policy(tmp_path / "policy")
    action = policy(TensorDict({"observation": torch.randn(5, 3)}, [5]))["action"]
    assert policy.policy.num_action_samples == 3 and policy.policy.min_noise_scale == 0.5
    assert action.shape == (5, 1) and action.abs().max() <= 2


NETWORKS = {"edp_iql": ["actor", "qvalue", "value"], "edp_td3": ["actor", "qvalue"], "edp_crr": ["actor", "qvalue"]}


@pytest.mark.parametrize(
    ("name", "order", "terms", "stepped"),
    [
        ("edp_iql", "sequential", ["value_loss", "actor_loss", "qvalue_loss"], {"value"}),
        ("edp_td3", "sequential", ["qvalue_loss", "actor_loss"], {"qvalue"}),
        ("edp_crr", "sequential", ["qvalue_loss", "actor_loss"], {"qvalue"}),
        ("edp_iql", "joint", ["value_loss", "actor_loss", "qvalue_loss"], set()),
        ("edp_td3", "joint", ["actor_loss", "qvalue_loss"], set()),
        ("edp_crr", "joint", ["actor_loss", "qvalue_loss"], set()),
    ],
)
def test_order_of_updates(name, order, terms, stepped):
    """``stepped``: networks that have made their step when the policy's loss is computed."""
    cfg, dataset = make_settings(name), make_data()
    loss = make_loss(cfg, name, dataset)
    state = TrainState(loss, prepare_data(dataset, batch_size=8).buffer, EDPTargetUpdate(loss), update_order=order)
    names = NETWORKS[name]
    before = {network: getattr(loss, f"{network}_network_params").data.clone() for network in names}
    called, moved = [], set()

    def changed():
        return {n for n in names if (getattr(loss, f"{n}_network_params").data != before[n]).any()}

    def spy(term, original):
        def call(batch):
            called.append(term)
            if term == "actor_loss":
                moved.update(changed())
            return original(batch)

        return call

    for term in terms:
        setattr(loss, term, spy(term, getattr(loss, term)))
    state.update()
    assert called == terms and moved == stepped
    assert changed() == set(names)


@pytest.mark.parametrize(
    ("name", "calls", "wanted", "compiled"),
    [
        ("edp_td3", 30, None, (True, True)),
        ("edp_td3", 31, None, (False, False)),
        ("edp_td3", None, None, (False, False)),  # all 50 diffusion steps
        ("edp_td3", 31, True, (True, True)),
        ("edp_td3", 5, False, (False, False)),
        ("edp_crr", 31, None, (False, False)),
        ("edp_iql", 31, None, (True, False)),  # its updates draw no actions
    ],
)
def test_long_samplers_are_compiled_only_when_asked_for(tmp_path, monkeypatch, name, calls, wanted, compiled):
    found = []

    class Stop(Exception):
        pass

    def train_state(*args, compile, **options):
        found.append(compile)
        return TrainState(*args, compile=False, **options)

    def acting_policy(*args, compile):
        found.append(compile)
        raise Stop

    monkeypatch.setattr(experiment, "choose_compile", lambda wanted, _: wanted is not False)
    monkeypatch.setattr(experiment, "TrainState", train_state)
    monkeypatch.setattr(experiment, "ActingPolicy", acting_policy)
    solver = {} if calls else {"solver": "ddpm", "solver_kwargs": {}}
    diffusion = DiffusionSettings(num_steps=50, num_calls=calls, **solver)
    with pytest.raises(Stop):
        run(tmp_path, name, diffusion=diffusion, compile=CompileSettings(wanted))
    assert tuple(found) == compiled
