"""Cases of a study differ in what it asks, and in nothing else."""

import json

import ablate_likelihood
import ablate_steps
import ablate_width
import pytest
import table1
import table2
import table7
import tuning
from report import PORTS
from runs import Run
from study import DATASETS, Study


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


def test_edp_is_the_same_in_all_studies():
    edp = config(table2.STUDY, "TD3 EDP")
    for study, case in ((table1.STUDY, "EDP"), (ablate_steps.STUDY, "K = 100"), (ablate_width.STUDY, "EDP, 3 x 256")):
        assert config(study, case) == edp
    assert config(ablate_likelihood.STUDY, "noise error (default)") == config(table2.STUDY, "IQL EDP")


def test_public_data_are_all_that_have_a_counterpart_in_the_paper():
    assert PORTS.keys() <= set(DATASETS["minari"])
