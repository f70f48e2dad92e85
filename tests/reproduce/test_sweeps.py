"""Acting settings change the policy as they say; what is evaluated once is not evaluated again."""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import fig4
import fig5
import fig6
import fig7
import points as points_module
import pytest
import table6
import torch
from points import COLUMNS, POINTS, Point, SavedPolicy, evaluate, load_acting
from reproduce_helpers import act, make_policy
from runs import FOLDER, Ledger
from safetensors.torch import load_file
from sweep import Sweep, TrainedRuns, table
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import (
    load_experiment_data,
)

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"
OWN = {"num_action_samples": 1, "initial_noise_scale": 0.25, "policy_scale": 1.0, "solver": "dpm_solver_pp"}
OWN |= {"num_calls": 5, "solver_kwargs": {}}
PAPER = {"num_action_samples": 10, "initial_noise_scale": 1.0}
THIRD = {"solver": "dpm_solver", "solver_kwargs": {"order": 3, "spacing": "time"}}
SECOND = {"solver": "dpm_solver_pp", "solver_kwargs": {"spacing": "log_snr"}}


@pytest.mark.parametrize(
    ("figure", "name", "variants"),
    [
        (fig4, "num_action_samples", [{"initial_noise_scale": 1.0}, {}]),
        (fig5, "num_calls", [PAPER | THIRD, PAPER | SECOND, THIRD, SECOND]),
        (fig6, "policy_scale", [{"initial_noise_scale": 1.0}, {}]),
        (fig7, "initial_noise_scale", [{}, {"num_action_samples": 10}]),
    ],
)
def test_figures_change_what_they_say_and_nothing_else(saved, figure, name, variants):
    points = figure.SWEEP.points(saved, 2)
    assert len(points) == len(variants) * len(figure.SWEEP.values)
    expected = [OWN | variant | {name: value} for variant in variants for value in figure.SWEEP.values]
    for (_, value, point), settings in zip(points, expected, strict=True):
        selector = load_acting(saved, point.acting).policy
        sampler = selector.actor_network.module
        found = {key: getattr(selector if key == "num_action_samples" else sampler, key) for key in OWN}
        assert found == settings, (figure.SWEEP.name, value)
        assert (selector.mode, selector.temperature) == ("sample", 1.0)


def test_settings_of_the_issue():
    assert fig4.SWEEP.values == (1, 2, 5, 10, 20, 50, 100, 200)
    assert fig5.SWEEP.values == (3, 5, 8, 10, 15, 20, 30)
    assert (min(fig6.SWEEP.values), max(fig6.SWEEP.values)) == (0.5, 2.0)
    assert (min(fig7.SWEEP.values), max(fig7.SWEEP.values)) == (0.0, 1.0)


@pytest.mark.parametrize("calls", [3, 5, 30])
@pytest.mark.parametrize("variant", list(fig5.SWEEP.variants))
def test_solver_makes_as_many_calls_as_said(saved, variant, calls):
    policy = load_acting(saved, fig5.SWEEP.variants[variant](calls))
    network, counted = policy.policy.actor_network.module.noise_network, Counter()
    condition = network.condition

    def counting(observation, steps):
        predict = condition(observation, steps)
        return lambda *inputs: counted.update(calls=1) or predict(*inputs)

    network.condition = counting
    act(policy)
    assert counted["calls"] == calls


SMALL = Sweep(
    "small",
    "A title",
    "factor of the initial noise",
    (0.0, 0.5, 1.0),
    {"one": lambda factor: {"initial_noise_scale": factor}},
    "nothing.",
)


def counted_calls(patch):
    calls = []
    call = PolicyEvaluator.__call__
    patch.setattr(PolicyEvaluator, "__call__", lambda *args, **kwargs: calls.append(kwargs) or call(*args, **kwargs))
    return calls


def sweep_main(folder, *policies):
    paths = [str(policy.path) for policy in policies]
    SMALL.main("", ["--policies", *paths, "--episodes", "2", "--output", str(folder)])


def test_nothing_is_evaluated_twice(saved, dataset, tmp_path, monkeypatch, capsys):
    calls = counted_calls(monkeypatch)
    sweep_main(tmp_path / "out", saved)
    assert calls == [{"seed": 0, "exploration_type": ExplorationType.RANDOM}] * 3
    first = capsys.readouterr().out
    monkeypatch.setattr(points_module, "load_dataset", None)
    sweep_main(tmp_path / "out", saved)
    assert len(calls) == 3
    assert capsys.readouterr().out == first == (tmp_path / "out" / "small.md").read_text()
    monkeypatch.undo()
    sweep_main(tmp_path / "out", saved, make_policy(tmp_path / "other", seed=1))
    with (tmp_path / "out" / POINTS).open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["policy"] for row in rows).most_common() == [(rows[0]["policy"], 3), (rows[-1]["policy"], 3)]
    assert len({row["key"] for row in rows}) == 6
    assert "of the given policies, mean ± deviation over 4 episodes." in capsys.readouterr().out
    assert [json.loads(row["acting"])["initial_noise_scale"] for row in rows] == [0.0, 0.5, 1.0] * 2
    for row in rows:
        scores = torch.tensor([float(score) for score in row["scores"].split()])
        assert len(scores) == 2
        assert float(row["score"]) == pytest.approx(scores.mean().item(), abs=0.01)
        assert float(row["deviation"]) == pytest.approx(scores.std(correction=0).item(), abs=0.01)
    out = tmp_path / "out"
    args = argparse.Namespace(policies=None, overrides=["data.return_steps=1"], episodes=2, output=out, seeds=[1, 2])
    before = (out / "small.md").read_text()
    SMALL.write([saved], Ledger(out / POINTS, COLUMNS), args)
    shown = capsys.readouterr().out
    assert "Normalised scores of table 2's policies of seeds 1, 2, mean ± deviation over 2 episodes." in shown
    assert shown.endswith("\n\nSettings given to all runs: `data.return_steps=1`.\n")
    assert {path.suffix for path in out.glob("small_data.return_steps=1.*")} == {".csv", ".md", ".png"}
    assert (out / "small.md").read_text() == before
    means = [(float(a["score"]) + float(b["score"])) / 2 for a, b in zip(rows[:3], rows[3:], strict=True)]
    line = (tmp_path / "out" / "small.md").read_text().splitlines()[-1]
    assert [float(cell.split(" ± ")[0]) for cell in line.split(" | ")[1:]] == pytest.approx(means, abs=0.06)
    with (out / "small.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(line["score"]) for line in table] == pytest.approx(means, abs=0.01)
    assert [(line["variant"], line["episodes"], line[SMALL.axis]) for line in table] == [
        ("one", "4", value) for value in ("0.0", "0.5", "1.0")
    ]


def test_stopped_sweep_goes_on(saved, dataset, tmp_path):
    stopping = [True]

    def load(policy, acting):
        if acting["initial_noise_scale"] == 0.5 and stopping:
            raise KeyboardInterrupt
        return load_acting(policy, acting)

    points = [Point(saved, {"initial_noise_scale": scale}, 1, load) for scale in (0.0, 0.5, 1.0)]
    with pytest.raises(SystemExit, match="nothing is lost"):
        evaluate(points, Ledger(tmp_path / "points.csv", COLUMNS))
    ledger = Ledger(tmp_path / "points.csv", COLUMNS)
    assert list(ledger.rows) == [points[0].key]
    stopping.clear()
    evaluate(points, ledger)
    assert list(Ledger(tmp_path / "points.csv", COLUMNS).rows) == [point.key for point in points]


def test_table_has_an_average_of_several_data_sets():
    lines = {"x": {1: [10.0, 20.0], 2: [0.0]}, "y": {1: [25.0], 2: [5.0]}}
    assert table(lines, "N").splitlines() == [
        "| N | 1 | 2 |",
        "|---|---|---|",
        "| x | 15.0 ± 5.0 | 0.0 ± 0.0 |",
        "| y | 25.0 ± 0.0 | 5.0 ± 0.0 |",
        "| average | **20.0** | **2.5** |",
    ]
    assert "average" not in table({"x": lines["x"]}, "N")


def test_a_recorded_run_without_its_policy_is_trained_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = TrainedRuns("runs.csv")
    ledger.add(dict.fromkeys(ledger.columns, "1") | {"key": "abc"})
    assert "abc" in Ledger("runs.csv") and "abc" not in ledger
    make_policy(FOLDER / "abc")
    assert "abc" in ledger


TINY = ["--updates", "12", "--datasets", "local/hopper/medium-v0", "--episodes", "2", "--output", "out"]
TINY += ["data.num_steps=2000", "logger.eval_iter=4", "logger.eval_envs=1", "network.hidden_sizes=[16]"]
TINY += ["logger.progress=false", "checkpoint.iter=4"]


def script(folder, name, *options):
    command = [sys.executable, str(SCRIPTS / name), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fig4", "fig5", "fig6", "fig7"])
def test_figures_of_given_policies(name, saved, dataset, tmp_path):
    options = (f"{name}.py", "--policies", "run", "--episodes", "1", "--output", "out")
    result = script(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "| local/hopper/medium-n2000-s0-v0 |" in result.stdout and "The paper: " in result.stdout
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    assert not (tmp_path / "runs").exists()
    before = (tmp_path / "out" / f"{name}.csv").read_text()
    assert script(tmp_path, *options).stdout == result.stdout
    assert (tmp_path / "out" / f"{name}.csv").read_text() == before


EDP_CASES = " | ".join(
    ("EDP", *("EDP + EAS" + how for how in ("", ", sharp", ", spread", ", sharp, spread")), "EDP, low noise")
)


@pytest.mark.slow
def test_table_6_and_a_figure_share_the_runs_they_train(tmp_path, monkeypatch):
    result = script(tmp_path, "table6.py", "--seeds", "0,1", *TINY)
    assert result.returncode == 0, result.stderr
    assert f"| data | TD3 | TD3 + EAS | TD3 + EAS, sharp | {EDP_CASES} |" in result.stdout
    assert result.stdout.count("(2)") == 9
    (picture,) = (tmp_path / "out").glob("table6_data.num_steps=2000_*.png")
    assert picture.stat().st_size > 10_000
    assert script(tmp_path, "table6.py", "--seeds", "0,1", *TINY).stdout == result.stdout
    figure = script(tmp_path, "fig7.py", "--no-train", *TINY)
    assert figure.returncode == 0, figure.stderr
    none = script(tmp_path, "fig7.py", "--no-train", "--seeds", "5", *TINY)
    assert none.returncode == 1 and "None of the 1 runs of TD3 EDP" in none.stderr
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["experiment"] for row in rows) == {"edp_td3": 2, "td3_bc": 2}
    monkeypatch.chdir(tmp_path)
    check_selection_of_feed_forward(next(row for row in rows if row["experiment"] == "td3_bc"))
    shutil.rmtree("runs")  # what is recorded can be shown without the policies, and is not trained again
    assert script(tmp_path, "table6.py", "--seeds", "0,1", *TINY).stdout == result.stdout
    assert script(tmp_path, "fig7.py", *TINY).stdout == figure.stdout
    assert not Path("runs").exists()
    other = script(tmp_path, "fig4.py", "--no-train", *TINY)
    assert other.returncode == 1 and "None of the 1 runs of TD3 EDP is in" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crr", "iql"])
def test_table_6_draws_the_candidates_of_gaussian_policies(tmp_path, monkeypatch, name):
    result = script(tmp_path, "table6.py", name, "--seeds", "0", *TINY)
    assert result.returncode == 0, result.stderr
    own = name.upper()
    assert f"| data | {own} | {own}, drawn | {own} + EAS | {own} + EAS, sharp | {EDP_CASES} |" in result.stdout
    assert result.stdout.count("(1)") == 10 and "The paper" not in result.stdout
    assert len(list((tmp_path / "out").glob(f"table6-{name}_data.num_steps=2000_*.png"))) == 1
    with (tmp_path / "out" / "runs.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["experiment"] == name)
    monkeypatch.chdir(tmp_path)
    run = recorded(row)
    policy = table6.with_selection(run, SavedPolicy(run.folder), table6.DRAWS | table6.ONE)
    with set_exploration_type(ExplorationType.RANDOM):
        chosen, own = (act(each, rows=100) for each in (policy, load_acting(SavedPolicy(run.folder), {})))
    assert torch.equal(chosen, own) and own.std(0).min() > 0.1


def recorded(row):
    """The run of a row."""
    named = (f"dataset={row['dataset']}", f"seed={row['seed']}", f"optim.gradient_steps={row['updates']}")
    run = table6.Run(row["experiment"], (*named, *row["settings"].split()))
    assert run.key == row["key"]
    return run


def check_selection_of_feed_forward(row):
    """Candidates lie around the policy's action, and the run's averaged critics choose."""
    run = recorded(row)
    saved = SavedPolicy(run.folder)
    load = partial(table6.with_selection, run, saved)
    policy = load(table6.EXPLORATION)
    selector = policy.policy
    assert (selector.num_action_samples, selector.mode, selector.temperature) == (10, "sample", 1.0)
    sharp = load(table6.EXPLORATION | table6.SHARP).policy
    assert sharp.standardize and sharp.temperature == 0.3 and not selector.standardize
    observations = load_experiment_data(run.settings).transitions["observation"]
    plain = act(load_acting(saved, {}), observations=observations)
    noisy = act(load({"num_action_samples": 1, "exploration_noise": 0.1}), observations=observations)
    free = (noisy - plain)[plain.abs() < 0.5]  # elsewhere the bounds cut it
    assert free.numel() > 1000
    assert free.std().item() == pytest.approx(0.1, rel=0.05) and abs(free.mean().item()) < 0.01
    folder = max((run.folder / "checkpoints").glob("update_*"))
    tensors = load_file(folder / "state.safetensors")
    critics = "loss.target_qvalue_network_params.module.net.0.weight"
    assert torch.equal(selector.qvalue_params.get(("module", "net", "0", "weight")), tensors[f"train.{critics}"])
    chosen = act(load({"num_action_samples": 50, "exploration_noise": 0.1}), observations=observations[:20])
    assert not torch.equal(chosen, plain[:20]) and chosen.abs().max() <= 1
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="expected a checkpoint of the last update, found 8"):
        load(table6.EXPLORATION)
