"""Command lines: what is wrong is named, with what would be right."""

import pytest

from torchrl_edp.configs import EDPCRRConfig, EDPIQLConfig, EDPTD3Config, check_overrides
from torchrl_edp.configs.cli import _with_folders

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
        ("seed=1.5", r"Wrong value for 'seed'"),
        ("loss.likelihood=elbow", r"Unknown loss\.likelihood 'elbow': choose one of noise, elbo, beta_elbo"),
        ("loss.weight_normalization=max", r"choose one of mean, softmax"),
        ("diffusion.solver=ddim,euler", r"Unknown diffusion\.solver 'euler'"),
        ("data.reward_rule=none", r"choose one of raw, "),
        ("optim.update_order=random", r"choose one of joint, sequential"),
        ("loss.temprature=2", r"Did you mean 'loss\.temperature'"),
        ("loss.weight_cap=abc", r"Wrong value for 'loss\.weight_cap': 'abc'.*The default is 100\.0"),
        ("loss.guidance_steps=[0,last]", r"Wrong value for 'loss\.guidance_steps'"),
        ("loss.clip_approximation=some", r"Wrong value for 'loss\.clip_approximation'"),
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
