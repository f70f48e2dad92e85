"""A whole run of several seeds: a folder each, means above them, the policies of their own parameters."""

import csv
import json
import re

import pytest
import torch
from experiment_helpers import make_data, make_loss, make_settings
from safetensors.torch import load_file
from tensordict import TensorDict

from torchrl_edp.evaluation import EvaluationResult
from torchrl_edp.objectives import MultiSeedLoss
from torchrl_edp.training import EDPTargetUpdate, RunFolder, TrainState, prepare_data, run_experiment, train
from torchrl_edp.training.acting import ActingPolicy
from torchrl_edp.training.checkpoint import CheckpointError, CheckpointStore
from torchrl_edp.training.settings import OptimSettings, PolicySettings

SEEDS = (3, 4)


def run(path, name="edp_td3", steps=4, dataset=None, num_seeds=2, loss=None, **options):
    optim = OptimSettings(gradient_steps=steps, actor_start=0, device="cpu", lr=0.01, decay="none")
    cfg = make_settings(name, optim=optim, num_seeds=num_seeds, **{"seed": SEEDS[0], **options})
    dataset = dataset or make_data()
    torch.manual_seed(cfg.seed)
    if loss is None:
        several = num_seeds > 1
        loss = MultiSeedLoss(lambda: make_loss(cfg, name, dataset), cfg.seeds) if several else None
        loss = loss or make_loss(cfg, name, dataset)
    folder = RunFolder(path, backend="", name=name)
    try:
        return loss, run_experiment(cfg, dataset, loss, folder)
    finally:
        folder.close()


@pytest.fixture
def dataset():
    torch.manual_seed(1)
    return make_data()


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["edp_iql", "edp_td3", "edp_crr"])
def test_every_seed_has_a_folder_and_theirs_has_the_means(tmp_path, name, capsys):
    loss, summary = run(tmp_path, name)
    folders = [tmp_path / f"seed{seed}" for seed in SEEDS]
    policies = {f"{policy}.{suffix}" for policy in ("policy", "policy_best") for suffix in ("json", "safetensors")}
    files = {".lock", "metrics.csv", "summary.json", "curves.png", "diagnose.png"}
    assert all({path.name for path in folder.iterdir()} == files | policies for folder in folders)
    names = {folder.name for folder in folders}
    assert {path.name for path in tmp_path.iterdir()} == files | names | {"checkpoints", "config.yaml"}
    own = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert [one["seed"] for one in own] == list(SEEDS) == summary["seeds"]
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    for score in ("rat", "oms", "last"):
        values = [one[score] for one in own]
        assert values == summary[f"{score}_seeds"] and values[0] != values[1]
        assert summary[score] == pytest.approx(sum(values) / 2)
        assert summary[f"{score}_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert summary["loss"] == own[0]["loss"] == type(loss.losses[0]).__name__
    shown = f"score {summary['last']:.1f}, RAT {summary['rat']:.1f}, OMS {summary['oms']:.1f} (means of 2 seeds)"
    assert shown in capsys.readouterr().out
    assert [one["num_seeds"] for one in (summary, *own)] == [2, 2, 2]
    rows = [read(folder / "metrics.csv") for folder in (tmp_path, *folders)]
    for mean, *each in zip(*rows, strict=True):
        for column in ("loss_actor", "grad_norm_qvalue", "eval/return", "diagnose/q_data"):
            if mean[column]:
                values = [float(row[column]) for row in each]
                assert float(mean[column]) == pytest.approx(sum(values) / 2) and values[0] != values[1]
    scores = [[float(row["eval/score"]) for row in table if row["eval/score"]] for table in rows[1:]]
    spread = [float(row["eval/score_std_seeds"]) for row in rows[0] if row["eval/score"]]
    assert spread == pytest.approx([abs(first - second) / 2**0.5 for first, second in zip(*scores, strict=True)])


def test_policies_are_those_of_their_seeds(tmp_path):
    loss, _ = run(tmp_path, policy=PolicySettings(num_action_samples=3))
    for own, seed in zip(loss.losses, SEEDS, strict=True):
        saved = load_file(tmp_path / f"seed{seed}" / "policy.safetensors")
        for network in ("actor", "qvalue"):
            params = getattr(own, f"target_{network}_network_params").data.flatten_keys(".")
            weights = [key for key in saved if key.startswith(f"{network}.") and key.endswith("weight")]
            assert weights
            for key in weights:
                assert torch.equal(saved[key], params[key.removeprefix(f"{network}.")]), key


def test_seeds_are_evaluated_and_looked_at_one_by_one(dataset):
    """The copy that acts has every seed's parameters in turn, those that were trained a moment ago."""
    cfg = make_settings("edp_td3", seed=SEEDS[0], num_seeds=2)
    loss = MultiSeedLoss(lambda: make_loss(cfg, "edp_td3", dataset), cfg.seeds)
    EDPTargetUpdate(loss)  # without, the loss warns that nobody moves its targets
    acting = ActingPolicy(cfg, dataset, loss, prepare_data(dataset, batch_size=8), compile=False)
    seen = []

    def evaluator(policy, seed, exploration_type):
        start = TensorDict({"observation": torch.ones(5, 3)}, [5])
        torch.manual_seed(0)
        seen.append((seed, policy(start)["action"].clone()))

    def alone(index):
        one = ActingPolicy(cfg, dataset, loss.losses[index], prepare_data(dataset, batch_size=8), compile=False)
        one.evaluate(evaluator, 0, update=7)
        return seen.pop()[1], one.diagnose(0, 7)

    for change in (0.0, 0.01):
        for value in loss.parameters():
            value.data.add_(change)
        loss.target_actor_network_params.data.apply_(lambda value, change=change: value.add_(change))
        for index in (1, 0):
            acting.evaluate(evaluator, index, update=7)
            seed, action = seen.pop()
            expected_action, expected_row = alone(index)
            assert seed == 1_000_000 * SEEDS[index] + 7
            assert torch.equal(action, expected_action) and acting.diagnose(index, 7) == expected_row
    first, second = (alone(index) for index in (0, 1))
    assert not torch.equal(first[0], second[0]) and first[1] != second[1]


@pytest.mark.slow
def test_a_run_of_several_seeds_goes_on(tmp_path, dataset):
    run(tmp_path / "whole", steps=8, dataset=dataset)
    run(tmp_path / "parts", steps=4, dataset=dataset)
    loss, summary = run(tmp_path / "parts", steps=8, dataset=dataset, resume="auto")
    ends = [CheckpointStore(tmp_path / name / "checkpoints").load().tensors for name in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    assert not [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    for folder in ("", "seed3", "seed4"):
        for name in ("metrics.csv", *(["policy.json", "policy_best.json"] if folder else [])):
            assert (tmp_path / "whole" / folder / name).read_text() == (tmp_path / "parts" / folder / name).read_text()
    for seed in SEEDS:
        saved = [load_file(tmp_path / name / f"seed{seed}" / "policy.safetensors") for name in ("whole", "parts")]
        assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
    assert summary["gradient_steps"] == 8


@pytest.mark.parametrize(("then", "now"), [(1, 2), (2, 1), (2, 3)])
def test_another_number_of_seeds_is_refused(tmp_path, dataset, then, now):
    run(tmp_path, dataset=dataset, num_seeds=then)
    before = {path.name for path in tmp_path.iterdir()}
    expected = [re.escape(str(list(range(SEEDS[0], SEEDS[0] + count)))) for count in (then, now)]
    for changed in (False, True):
        with pytest.raises(CheckpointError, match=rf"of the seeds {expected[0]}, got {expected[1]}\. Take those"):
            run(tmp_path, dataset=dataset, num_seeds=now, resume="auto", resume_changed=changed)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_loss_must_have_the_seeds_of_the_settings(tmp_path):
    cfg = make_settings("edp_td3")
    dataset = make_data()
    with pytest.raises(ValueError, match=r"Expected a loss of the seeds \[3, 4\], got one of \[3\]"):
        run(tmp_path, loss=make_loss(cfg, "edp_td3", dataset))
    with pytest.raises(ValueError, match=r"Expected a loss of the seeds \[3, 4\], got one of \[0, 1\]"):
        run(tmp_path / "other", loss=MultiSeedLoss(lambda: make_loss(cfg, "edp_td3", dataset), range(2)))


def test_a_checkpoint_from_before_there_were_several_seeds_is_gone_on_with(tmp_path, dataset):
    run(tmp_path, dataset=dataset, num_seeds=1)
    store = CheckpointStore(tmp_path / "checkpoints")
    saved = store.load()
    info = saved.info
    del info["seed_rows"], info["run"]["seeds"]
    (scores,) = info["record"].pop("seeds")
    info["record"] |= scores
    store.save(saved.step + 1, saved.tensors, info, best=False)
    _, summary = run(tmp_path, steps=6, dataset=dataset, num_seeds=1, resume="auto")
    assert summary["gradient_steps"] == 6 and summary["oms"] >= scores["last"]
    assert [row["update"] for row in read(tmp_path / "metrics.csv") if row["eval/return"]] == ["2", "4", "6"]


@pytest.mark.slow
def test_other_seeds_are_refused_even_with_changed_settings(tmp_path, dataset):
    run(tmp_path, dataset=dataset)
    with pytest.raises(CheckpointError, match=r"of the seeds \[3, 4\], got \[5, 6\]"):
        run(tmp_path, dataset=dataset, seed=5, resume="auto", resume_changed=True)


def test_the_best_of_one_seed_is_saved(tmp_path, dataset):
    """The first seed improves twice, the second once: a checkpoint wherever one of them does."""
    cfg = make_settings("edp_td3", seed=SEEDS[0], num_seeds=2)
    loss = MultiSeedLoss(lambda: make_loss(cfg, "edp_td3", dataset), cfg.seeds)
    state = TrainState(loss, prepare_data(dataset, batch_size=8).buffer, EDPTargetUpdate(loss))
    folder, best, saved = RunFolder(tmp_path, backend=""), [], []
    folder.split(cfg.seeds)

    def evaluate(index):
        score = ((10.0, 20.0, 5.0), (30.0, 1.0, 2.0))[index][state.updates - 1]
        return EvaluationResult(torch.tensor([score]), torch.tensor([1]), (0.0, 100.0))

    scores = train(
        state,
        evaluate,
        folder,
        gradient_steps=3,
        eval_iter=1,
        progress=False,
        on_best=lambda index: best.append((state.updates, index)),
        save=lambda best: saved.append((state.updates, best)),
    )
    assert best == [(1, 0), (1, 1), (2, 0)] and saved == [(1, True), (2, True), (3, False)]
    assert [(own.oms, own.last) for own in scores] == [(20.0, 5.0), (30.0, 2.0)]
    assert [row["eval/score"] for row in folder.rows if "eval/score" in row] == [20.0, 10.5, 3.5]


def test_a_mean_is_over_the_seeds_that_have_the_number(tmp_path):
    folder = RunFolder(tmp_path, backend="")
    folder.split(SEEDS)
    folder.log(1, {"a": 1.0, "b": 2.0}, {"a": 3.0})
    assert folder.rows == [{"update": 1, "a": 2.0, "b": 2.0}]
    assert [own.rows for own in folder.seeds] == [[{"update": 1, "a": 1.0, "b": 2.0}], [{"update": 1, "a": 3.0}]]
    folder.split(SEEDS)  # again, as in a notebook
    folder.close()


def test_the_seed_whose_q_explodes_is_named(dataset, capsys):
    cfg = make_settings("edp_td3", seed=SEEDS[0], num_seeds=2)
    loss = MultiSeedLoss(lambda: make_loss(cfg, "edp_td3", dataset), cfg.seeds)
    EDPTargetUpdate(loss)
    acting = ActingPolicy(cfg, dataset, loss, prepare_data(dataset, batch_size=8), compile=False)
    loss.qvalue_network_params.data.apply_(lambda value: value.mul_(100))
    for index in (0, 1, 0, 1):
        acting.diagnose(index, 7)
    said = capsys.readouterr().err
    assert said.count("Q explodes") == 2
    assert "Q explodes (seed 3): at update 7" in said and "Q explodes (seed 4): at update 7" in said
