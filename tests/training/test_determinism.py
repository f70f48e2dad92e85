"""Same seed, same weights, bit for bit; who watches changes nothing."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from crash_helpers import PROCESSES
from experiment_helpers import make_data, make_loss, make_settings
from training_helpers import make_policy, make_state

from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import RunFolder, prepare_data, run_experiment
from torchrl_edp.training.checkpoint import CheckpointStore
from torchrl_edp.training.settings import OptimSettings

LOSSES = ("iql", "td3", "crr")
SOLVERS = {"ddpm": None, "ddim": 5, "dpm_solver": 4, "dpm_solver_pp": 3}


def trained(name, solver, seed=7):
    torch.set_num_threads(1)
    state = make_state(name, actor_start=2)
    sampler = state.loss.actor_network.module
    sampler.solver, sampler.num_calls = solver, SOLVERS[solver]
    torch.manual_seed(seed)
    for _ in range(5):
        state.update()
    return {key: tensor.detach().clone().numpy() for key, tensor in state.state_dict().items()}


def _send(connection, name, solver):
    connection.send(trained(name, solver))


def elsewhere(name, solver):
    """The same in a new process."""
    connection, end = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send, args=(end, name, solver))
    process.start()
    result = connection.recv()
    process.join()
    return result


@pytest.mark.parametrize("where", [trained, pytest.param(elsewhere, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "solver"), list(itertools.product(LOSSES, SOLVERS)))
def test_same_seed_same_weights(name, solver, where):
    """24 pairs: three losses, four solvers, in the same process and in a new one."""
    first, second = trained(name, solver), where(name, solver)
    assert first.keys() == second.keys()
    assert not [key for key in first if first[key].tobytes() != second[key].tobytes()]


def test_another_seed_gives_other_weights():
    first, second = trained("td3", "ddim"), trained("td3", "ddim", seed=8)
    assert any(first[key].tobytes() != second[key].tobytes() for key in first)


def run(folder, **options):
    cfg = make_settings("edp_iql", optim=OptimSettings(gradient_steps=6, actor_start=0, device="cpu", lr=0.01))
    for name, value in options.items():
        group, _, key = name.partition("__")
        setattr(getattr(cfg, group), key, value)
    torch.manual_seed(0)
    dataset = make_data()
    run_experiment(cfg, dataset, make_loss(cfg, "edp_iql", dataset), RunFolder(folder, backend=cfg.logger.backend))
    tensors = CheckpointStore(folder / "checkpoints").load().tensors
    return {name: tensor for name, tensor in tensors.items() if name.startswith("train.")}


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"), logger__eval_iter=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"logger__eval_iter": 1},
        {"logger__eval_iter": 4, "logger__eval_envs": 3},
        {"logger__log_iter": 1},
        {"logger__log_iter": 5, "logger__backend": "csv"},
        {"logger__progress": True},
        {"checkpoint__iter": 1},
        {"checkpoint__iter": 2, "checkpoint__keep": 5},
        {"logger__eval_iter": 2, "logger__log_iter": 1, "checkpoint__iter": 3, "logger__progress": True},
    ],
    ids=str,
)
def test_watching_changes_nothing(tmp_path, unwatched, options):
    """8 pairs: evaluations, logs, checkpoints and progress bars, more or less often."""
    watched = run(tmp_path, **options)
    assert watched.keys() == unwatched.keys()
    assert not [name for name in watched if not torch.equal(watched[name], unwatched[name])]


def random_state():
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


def test_data_states_and_evaluations_leave_the_random_state_alone():
    dataset, state = make_data(), make_state()
    policy = make_policy(state.loss)
    before = random_state()
    prepare_data(dataset, batch_size=4)
    state.state_dict()
    state.loss.make_value_estimator(gamma=0.9)
    with PolicyEvaluator("Pendulum-v1", num_episodes=2, max_steps=3) as evaluator:
        policy.action_scaler.center, policy.action_scaler.half_range = torch.zeros(1), torch.ones(1)
        evaluator(lambda data: data.set("action", policy(data)["action"][:, :1]), seed=1)
    assert random_state() == before


@pytest.mark.slow
def test_importing_leaves_the_random_state_alone():
    code = """
import random, numpy, torch
state = lambda: (torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist())
before = state()
import torchrl_edp, torchrl_edp.configs, torchrl_edp.data, torchrl_edp.evaluation, torchrl_edp.training
assert state() == before
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
