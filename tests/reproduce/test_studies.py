"""Cases of a study differ in what it asks, and in nothing else; its command line, its tables and where they go."""

import argparse
import json
import sys

import ablate_likelihood
import ablate_steps
import ablate_width
import pytest
import table1
import table2
import table6
import table7
import tuning
from matplotlib.figure import Figure
from report import PORTS
from runs import COLUMNS, Ledger, Run
from study import DATASETS, RESULTS, Row, Study, draw, other_data, parser, result_path, table, taken

BASE = ("dataset=local/hopper/medium-v0", "seed=1")


def row(name):
    return dict.fromkeys(COLUMNS, "1") | {"key": name}


def config(study: Study, case: str, dataset: str = "local/walker2d/medium-v0"):
    experiment, overrides = study.cases[case]
    return json.loads(Run(experiment, (f"dataset={dataset}", *overrides)).config)


def differing(study: Study, first: str, second: str, **options):
    one, two = (config(study, case, **options) for case in (first, second))
    return {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


@pytest.mark.parametrize(
    ("study", "first", "others", "keys"),
    [
        (table7.STUDY, "DDPM chain", ["Action approximation"], {"loss.guidance_start"}),
        (ablate_steps.STUDY, "K = 100", ["K = 1000"], {"diffusion.num_steps"}),
        (ablate_width.STUDY, "FF, 3 x 256", ["FF, 3 x 512"], {"network.hidden_sizes"}),
        (
            ablate_likelihood.STUDY,
            "noise error (default)",
            ["Eq. 12", "Eq. 12, mean weight 1", "Eq. 13"],
            {"loss.likelihood"},
        ),
    ],
)
def test_only_what_is_asked_differs(study, first, others, keys):
    assert {first, *others} <= set(study.cases)
    for other in others:
        assert differing(study, first, other) == keys


@pytest.mark.parametrize(
    ("name", "setting"), [("td3", ("alpha", "guidance_weight")), ("crr", ("temperature",)), ("iql", ("temperature",))]
)
def test_tuning_tries_as_many_settings_on_both_sides(name, setting):
    study = tuning.STUDIES[name]
    sides = {side: [case for case in study.cases if case.startswith(side)] for side in ("FF", "EDP")}
    assert len(sides["FF"]) == len(sides["EDP"]) == 3 and len(study.cases) == 6
    allowed = {"policy.averaged_actor", "optim.decay", *(f"loss.{key}" for key in setting)}
    allowed |= {"loss.sample_from", "loss.num_action_samples"} if name == "crr" else set()
    for side, cases in sides.items():
        assert study.cases[cases[0]][0] == table2.STUDY.cases[f"{name.upper()} {side}"][0]
        configs = {json.dumps(config(study, case)) for case in cases}
        assert len(configs) == 3
        for other in cases[1:]:
            assert differing(study, cases[0], other) <= allowed
        default = json.dumps(config(table2.STUDY, f"{name.upper()} {side}"))
        assert default in configs  # what table 2 has is one of them


@pytest.mark.parametrize("side", ["FF", "EDP"])
@pytest.mark.parametrize("name", ["td3", "crr", "iql"])
def test_the_best_setting_is_ahead_of_the_others_where_they_are_recorded(name, side):
    recorded = Ledger(RESULTS / "runs.csv").rows
    args = argparse.Namespace(updates=50_000, overrides=[])
    tried, datasets = tuning.STUDIES[name], DATASETS["local"]
    rat = {
        case: [float(recorded[key]["rat"]) if key in recorded else None for key in keys]
        for case in tried.cases
        if case.startswith(side)
        for keys in [[tried.run(case, dataset, 0, args).key for dataset in datasets]]
    }
    (best,) = [case for case in rat if f"{name.upper()} {case}" in tuning.STUDIES["best"].cases]
    assert None not in rat[best]
    for case in rat.keys() - {best}:
        there = [i for i, score in enumerate(rat[case]) if score is not None]
        assert len(there) >= 2 and sum(rat[case][i] for i in there) < sum(rat[best][i] for i in there)


@pytest.mark.parametrize("arguments", [["crr", "--seeds", "1"], ["--seeds", "1", "crr"]])
def test_the_algorithm_stands_anywhere(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["tuning.py", *arguments])
    assert taken(tuning.STUDIES) == "crr" and sys.argv == ["tuning.py", "--seeds", "1"]
    assert taken(tuning.STUDIES) is None


def test_edp_is_the_same_in_all_studies():
    edp = config(table2.STUDY, "TD3 EDP")
    for study, case in ((table1.STUDY, "EDP"), (ablate_steps.STUDY, "K = 100"), (ablate_width.STUDY, "EDP, 3 x 256")):
        assert config(study, case) == edp
    assert config(ablate_likelihood.STUDY, "noise error (default)") == config(table2.STUDY, "IQL EDP")


def test_public_data_are_all_that_have_a_counterpart_in_the_paper():
    assert PORTS.keys() <= set(DATASETS["minari"])


@pytest.mark.parametrize("text", ["seed=3", "dataset=local/hopper/medium-v0", "optim.gradient_steps=7"])
def test_what_a_study_sets_for_each_run_is_no_setting_of_all(text, capsys):
    with pytest.raises(SystemExit):
        parser("", updates=1, seeds=(0,)).parse_intermixed_args(["loss.alpha=1", text])
    assert f"{text}: a study sets this for each of its runs, use --" in capsys.readouterr().err


def test_a_seed_that_is_said_twice_counts_once():
    assert parser("", updates=1, seeds=(0,)).parse_intermixed_args(["--seeds", "1,0,1"]).seeds == [1, 0]


def test_other_contents_of_a_data_set_are_told(tmp_path):
    ledger = Ledger(tmp_path / "runs.csv")
    runs = {name: Run("edp_td3", (*BASE, f"seed={seed}")) for seed, name in enumerate("abcd")}
    for name, digest in zip("abc", ("x", "y", "x"), strict=True):
        ledger.add(row(runs[name].key) | {"data": digest})
    a, b, c, d = runs.values()
    assert other_data({("A", "one"): [a], ("B", "one"): [c, d], ("A", "two"): [b]}, ledger) == []
    (note,) = other_data({("A", "one"): [a, b], ("B", "one"): [c]}, ledger)
    assert note.startswith("one had other contents in some runs") and note.endswith("x in 2, y in 1.")


def cell(case, dataset, rat, seeds=2):
    return Row(case, dataset, seeds, rat, 1.0 if seeds > 1 else None, rat, None, 90.0)


def test_table_averages_over_data_sets_that_are_all_there():
    rows = [cell("A", "x", 10.0), cell("A", "y", 30.0, seeds=1), cell("B", "x", 10.0)]
    rows.append(Row("B", "y", 0, None, None, None, None, None))
    text = table(rows, ["A", "B"], ["x", "y"], "rat")
    assert "| x | 10.0 ± 1.0 (2) | 10.0 ± 1.0 (2) |" in text
    assert "| y | 30.0 (1) | – |" in text
    assert "| average | **20.0** | – |" in text


def test_results_of_other_settings_lie_beside_the_studys_own(tmp_path):
    def name(*overrides):
        return result_path(
            parser("", updates=1, seeds=(0,)).parse_args(["--output", str(tmp_path), *overrides]), "t", ".md"
        )

    assert name() == name("compile.onednn=true", "logger.progress=false", "checkpoint.keep=3") == tmp_path / "t.md"
    assert name("data.return_steps=1", "compile.onednn=true").name == "t_data.return_steps=1.md"
    assert name("b=1", "a={x: 2}") == name("a={x: 2}", "b=1") == tmp_path / "t_a=-x-2-_b=1.md"
    assert name("logger.eval_iter=5") != name() != name("preset=paper")
    long = [f"loss.a{i}=1" for i in range(20)]
    assert len(name(*long).name) < 20 and name(*long) != name(*long[1:])


@pytest.mark.parametrize("num_datasets", [1, 4])
@pytest.mark.parametrize(
    "cases",
    [
        ("FF", "EDP"),
        tuple(f"TD3 EDP guidance_weight={i}" for i in range(6)),
        tuple(table6.CASES["iql"]),
    ],
    ids=len,
)
def test_the_legend_of_a_picture_fits_and_tells_all_apart(tmp_path, monkeypatch, cases, num_datasets):
    legends = []
    legend = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *args, **options: legends.append(legend(*args, **options)))
    datasets = [f"local/hopper/medium-v{i}" for i in range(num_datasets)]
    rows = [Row(case, dataset, 2, 50.0, 1.0, 60.0, 1.0, 9.0) for case in cases for dataset in datasets]
    draw(rows, cases, datasets, tmp_path / "t.png", "Bars")
    (drawn,) = legends
    box, whole = drawn.get_window_extent(), drawn.figure.bbox
    assert box.x0 >= 0 and box.x1 <= whole.x1
    assert len({handle.get_facecolor() for handle in drawn.legend_handles}) == len(cases)
