"""Command lines: what is wrong is named, with what would be right."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from torchrl_edp.configs import SCHEMAS, EDPCRRConfig, EDPIQLConfig, EDPTD3Config, check_overrides, preset_values
from torchrl_edp.configs.cli import _with_folders, _with_new_entries
from torchrl_edp.configs.help import help_text

EXAMPLES = Path(__file__).parents[2] / "examples"

GOOD = [
    "optim.lr=0.01",
    "optim.lr=1e-4",
    "dataset=mujoco/hopper/medium-v0",
    "diffusion.solver_kwargs={spacing: time}",
    "diffusion.solver_kwargs.spacing=time",
    "+diffusion.solver_kwargs.order=2",
    "~diffusion.solver_kwargs.spacing",
    "seed=0,1,2",
    "seed=range(3)",
    "optim.lr=choice(0.1,0.2)",
    "hydra.run.dir=x",
    "--multirun",
    "optim.critic_lr=null",
    "network.hidden_sizes=[64,64]",
    "network.hidden_sizes=[64],[64,64]",
    "loss.guidance_steps=[0,49]",
    "loss.guidance_steps=null",
    "loss.weight_cap=null",
    "loss.deviation=learned",
    "loss.deviation=0.5",
    "preset=reference-dpm",
    "preset=paper,default",
]


@pytest.mark.parametrize("override", GOOD)
def test_right_overrides_pass(override):
    check_overrides(EDPIQLConfig, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", r"Unknown setting 'optim\.learning_rate'.*\nSettings here: optim\.lr, "),
        ("gradient_steps=5", r"Did you mean .*'optim\.gradient_steps'"),
        ("optim.lr=fast", r"Wrong value for 'optim\.lr': 'fast'.*The default is"),
        ("optim.lr=0.1,fast", r"Wrong value for 'optim\.lr': 'fast'"),
        ("seed=1.5", r"Wrong value for 'seed': 1\.5 .*The default is 0\."),
        ("optim.gradient_steps=1e3", r"Wrong value for 'optim\.gradient_steps': 1000\.0 .*Write .*_steps=1000\."),
        ("data.num_steps=10,2e4", r"Write data\.num_steps=20000\."),
        ("optim.gradient_steps=inf", r"The default is 40000\."),
        ("logger.progress=1.0", r"The default is True\."),
        ("loss.likelihood=elbow", r"Unknown loss\.likelihood 'elbow': choose one of noise, elbo, beta_elbo"),
        ("loss.weight_normalization=max", r"choose one of mean, softmax"),
        ("diffusion.solver=ddim,euler", r"Unknown diffusion\.solver 'euler'"),
        ("data.reward_rule=none", r"choose one of raw, "),
        ("optim.update_order=random", r"choose one of joint, sequential"),
        ("loss.temprature=2", r"Did you mean 'loss\.temperature'"),
        ("loss.weight_cap=abc", r"Wrong value for 'loss\.weight_cap': 'abc'.*The default is 100\.0"),
        ("loss.guidance_steps=[0,last]", r"Wrong value for 'loss\.guidance_steps'"),
        ("loss.clip_approximation=some", r"Wrong value for 'loss\.clip_approximation'"),
        ("loss=td3", r"Wrong value for 'loss': 'td3'\. Expected its settings one by one: loss\.gamma, "),
        ("optim=3", r"Wrong value for 'optim': 3\. Expected its settings one by one: optim\.lr, "),
        ("diffusion.solver_kwargs=null", r"'diffusion\.solver_kwargs': None\. Expected .*: .*kwargs\.spacing"),
        ("loss.alpha=1", r"Unknown setting 'loss\.alpha'"),
        ("hydrate=1", r"Unknown setting 'hydrate'"),
        ("preset=papr", r"Unknown preset 'papr': choose one of default, paper, reference, reference-dpm\."),
        ("preset=paper,papr", r"Unknown preset 'papr'"),
    ],
)
def test_wrong_overrides_are_explained(override, message):
    with pytest.raises(SystemExit, match=message):
        check_overrides(EDPIQLConfig, [override])


@pytest.mark.parametrize(
    ("schema", "own", "foreign"),
    [
        (EDPTD3Config, "loss.qvalue_normalization=null", "loss.weight_cap=1"),
        (EDPCRRConfig, "loss.num_action_samples=5", "loss.expectile=0.9"),
    ],
)
def test_every_experiment_knows_its_losss_settings(schema, own, foreign):
    check_overrides(schema, [own])
    with pytest.raises(SystemExit, match="Unknown setting"):
        check_overrides(schema, [foreign])


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        ([], []),
        (["seed=1"], []),
        (["-m", "seed=0,1"], ["-m"]),
        (["seed=0,1", "-m"], []),
        (["--multirun", "seed=0,1", "optim.lr=1,2"], ["--multirun"]),
        (["--config-dir", "there", "--info=all", "seed=1"], ["--config-dir", "there", "--info=all"]),
        (["--help"], []),
    ],
)
def test_folders_stand_with_the_overrides(arguments, before):
    """Hydra's parser takes its overrides in one place only."""
    found = _with_folders("edp_iql", arguments)
    folders = [text for text in found if text.startswith("hydra.")]
    assert [text.split("=")[0] for text in folders] == ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"]
    assert found == [*before, *folders, *arguments[len(before) :]]


def test_new_entries_of_dictionaries_are_marked_for_hydra():
    """What Hydra takes as it is, and what says itself how to enter a dictionary, stays."""
    new = ["diffusion.solver_kwargs.order=2", "diffusion.solver_kwargs={}", "diffusion={solver_kwargs: {order: 2}}"]
    rest = ["-m", "--info=all", "seed=1", "+diffusion.solver_kwargs.order=2", "~diffusion.solver_kwargs.spacing"]
    rest += ["hydra.job.env_set={A: 1}", "hydra/launcher=joblib", "diffusion.solver=ddim"]
    once = _with_new_entries(EDPIQLConfig, [*rest, *new])
    assert once == [*rest, *(f"++{text}" for text in new)] == _with_new_entries(EDPIQLConfig, once)


def settings_of(text):
    return OmegaConf.create(text.partition("behind #")[2].partition("\n")[2])


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_has_every_setting_with_its_default(name):
    shown = OmegaConf.to_container(settings_of(help_text(name)))
    defaults = OmegaConf.to_container(OmegaConf.structured(SCHEMAS[name]))
    assert shown == defaults | {"data": defaults["data"] | {"reward_rule": shown["data"]["reward_rule"]}}


def test_help_shows_what_the_command_line_would_run():
    """Those of the preset, in the data set's domain, and over them what is given; nothing of a sweep."""
    dataset = "D4RL/antmaze/umaze-v1"
    given = ["preset=paper", f"dataset={dataset}", "optim.lr=0.5", "seed=1,2", "network.hidden_sizes=[8,8]"]
    given += ["hydra/launcher=joblib", "hydra.run.dir=x", "-m", "--help"]
    shown = settings_of(help_text("edp_td3", given))
    for key, value in preset_values("paper", "edp_td3", dataset).items():
        if key not in ("optim.lr", "network.hidden_sizes"):
            assert OmegaConf.select(shown, key) == value, key
    assert (shown.optim.lr, shown.network.hidden_sizes, shown.seed) == (0.5, [8, 8], 0)


def test_help_says_what_cannot_be_read():
    with pytest.raises(SystemExit, match=r"no viable alternative at input '\[1'"):
        help_text("edp_iql", ["optim.lr=[1"])


def test_help_names_the_choices():
    text = help_text("edp_iql")
    assert "  solver: dpm_solver_pp  # ddpm, ddim, dpm_solver, dpm_solver_pp\n" in text
    assert "\npreset: default  # default, paper, reference, reference-dpm\n" in text
    assert "  loss_function: l2  # l2, l1, smooth_l1\n" in text
    assert not re.search(r"  lr: .*#", text)


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "script"), [("--help", "edp_iql.py"), ("-h", "feed_forward.py")])
def test_help_of_a_script(tmp_path, flag, script):
    command = [sys.executable, EXAMPLES / script, flag]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert f"python examples/{script} dataset=" in text or f"python examples/{script} algorithm=" in text
    assert settings_of(text).seed == 0 and not list(tmp_path.iterdir())
