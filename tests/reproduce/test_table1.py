"""Equal updates and equal wall time; what is called Diffusion-QL goes through its whole chain."""

import sys

import pytest
import table1
import table7
import torch
from runs import COLUMNS, Ledger, Run
from study import decisive
from tensordict import TensorDict
from torch.autograd import grad

from torchrl_edp import EDPTD3Loss
from torchrl_edp.training import build_actor, build_qvalue

TINY = ("dataset=local/hopper/medium-v0", "network.hidden_sizes=[8]", "logger.eval_iter=10")


def row(key="k", scores="10 20 30 40", updates=40, training_seconds=8, **more):
    given = {"key": key, "scores": scores, "updates": updates, "training_seconds": training_seconds, "seconds": 16}
    return {column: str(value) for column, value in (dict.fromkeys(COLUMNS, "x") | given | more).items()}


@pytest.mark.parametrize(
    ("seconds", "rat", "oms", "updates"),
    [(2, 10, 10, 10), (5.9, 15, 20, 29.5), (6, 20, 30, 30), (8, 25, 40, 40), (99, 25, 40, 40)],
)
def test_scores_are_cut_at_the_last_evaluation_that_fits(seconds, rat, oms, updates):
    result = table1.stopped(row(), seconds, 10)
    assert (result["rat"], result["oms"]) == (rat, oms)
    assert result["updates"] == pytest.approx(updates)
    assert result["seconds"] == pytest.approx(16 * updates / 40)


def test_nothing_is_left_before_the_first_evaluation():
    assert table1.stopped(row(), 1.9, 10) is None


def test_rat_after_the_cut_is_of_the_last_ten_that_are_left():
    scores = [5.0, 100.0, *range(20)]
    found = table1.stopped(row(scores=" ".join(map(str, scores)), updates=22, training_seconds=22), 14, 1)
    assert found["rat"] == pytest.approx(sum(scores[4:14]) / 10)
    assert found["oms"] == 100.0


def test_a_last_evaluation_off_the_beat_counts_at_the_end_only():
    uneven = row(scores="1 2 9", updates=25, training_seconds=25)
    assert table1.stopped(uneven, 24.9, 10)["oms"] == 2
    assert table1.stopped(uneven, 25, 10)["oms"] == 9


def test_pairs_are_of_one_seed_and_of_one_kind_of_machine(tmp_path):
    ledger = Ledger(tmp_path / "runs.csv")
    runs = {
        name: [Run("edp_td3", (*TINY, f"seed={seed}", *extra)) for seed in range(4)] for name, extra in CASES.items()
    }
    for seed, (edp, chain) in enumerate(zip(runs["EDP"], runs["QL"], strict=True)):
        ledger.add(row(edp.key, training_seconds=2 * (seed + 1), processor="other" if seed == 1 else "x"))
        if seed != 2:
            ledger.add(row(chain.key))
    results = table1.equal_time(runs["EDP"], runs["QL"], ledger)
    assert [result["rat"] for result in results] == [10, 25]


CASES = {"EDP": (), "QL": table1.SETTINGS}


def test_table_has_the_cut_case_and_says_how_far_it_came(tmp_path, monkeypatch, capsys):
    options = ["--no-train", "--updates", "40", "--output", str(tmp_path), "--seeds", "0,1"]
    options += ["--datasets", "local/hopper/medium-v0,local/hopper/expert-v0", *TINY[1:]]
    ledger = Ledger(tmp_path / "runs.csv")
    for seed in (0, 1):
        given = ("dataset=local/hopper/medium-v0", f"seed={seed}", "optim.gradient_steps=40")
        for case, (experiment, overrides) in table1.STUDY.cases.items():
            run = Run(experiment, (*given, *overrides, *TINY[1:]))
            ledger.add(row(run.key, training_seconds=4 if case == "EDP" else 8, rat=25, oms=40))
    monkeypatch.setattr(sys, "argv", ["table1.py", *options])
    table1.STUDY.main("")
    (path,) = tmp_path.glob("table1_*.md")
    text = path.read_text()
    assert "| data | Diffusion-QL | EDP | Diffusion-QL, stopped when EDP was done |" in text
    assert "| local/hopper/medium-v0 | 25.0 ± 0.0 (2) | 25.0 ± 0.0 (2) | 15.0 ± 0.0 (2) |" in text
    assert "| local/hopper/medium-v0 | 40.0 ± 0.0 (2) | 40.0 ± 0.0 (2) | 20.0 ± 0.0 (2) |" in text
    assert "| local/hopper/expert-v0 | – | – | – |" in text
    assert "Of 40 updates, Diffusion-QL made in EDP's training time: 20 on local/hopper/medium-v0." in text
    assert text.endswith(f"\n\nSettings given to all runs: `{' '.join(decisive(TINY[1:]))}`.\n")
    assert text.strip() == capsys.readouterr().out.strip()
    assert path.with_name(f"{path.name.removesuffix('.md')}.png").stat().st_size > 10_000


def loss_of(overrides):
    cfg = Run("edp_td3", (*TINY, *overrides)).settings
    options = vars(cfg.loss) | {}
    gamma = options.pop("gamma")
    loss = EDPTD3Loss(build_actor(11, 3, cfg.network, cfg.diffusion), build_qvalue(11, 3, cfg.network), **options)
    loss.make_value_estimator(gamma=gamma)
    return loss


@pytest.mark.parametrize(("overrides", "calls"), [((), 0), (table1.SETTINGS, 5)])
def test_diffusion_ql_differentiates_all_steps_of_its_chain(monkeypatch, overrides, calls):
    loss, outputs = loss_of(overrides), []
    network = loss._checkpointed_network

    def recorded(*inputs):
        outputs.append(network(*inputs))
        return outputs[-1]

    monkeypatch.setattr(loss, "_checkpointed_network", recorded)
    # many actions: where a step's clean action is clipped, no gradient reaches that step
    data = TensorDict({"observation": torch.randn(256, 11), "action": torch.zeros(256, 3)}, [256])
    total, _ = loss.actor_loss(data)
    assert len(outputs) == calls
    if calls:
        sampler = loss.actor_network.module
        assert (sampler.num_steps, sampler.solver, sampler.schedule.kind) == (5, "ddpm", "vp")
        assert loss.alpha * loss.guidance_weight == 1
        assert all(gradient.abs().sum() > 0 for gradient in grad(total, outputs))


def test_what_the_cases_are_does_not_depend_on_presets_and_defaults():
    changed = ("preset=reference", "loss.guidance_weight=20", "policy.standardize=true", "policy.mode=argmax")
    cfg = Run("edp_td3", (*TINY, *changed, *table1.SETTINGS)).settings
    assert cfg.loss.alpha * cfg.loss.guidance_weight == 1 and cfg.diffusion.solver_kwargs == {}
    assert cfg.policy.selection == Run("edp_td3", (*TINY, *table1.SETTINGS)).settings.policy.selection
    assert cfg.policy.averaged_critics
    for experiment, overrides in table7.STUDY.cases.values():
        diffusion = Run(experiment, (*TINY, "preset=paper", *overrides)).settings.diffusion
        assert (diffusion.num_steps, diffusion.schedule, diffusion.solver) == (10, "vp", "ddpm")
