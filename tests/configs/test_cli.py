"""Command lines: what is wrong is named, with what would be right."""

import pytest

from torchrl_edp.configs import EDPIQLConfig, check_overrides

GOOD = [
    "optim.lr=0.01",
    "dataset=mujoco/hopper/medium-v0",
    "diffusion.solver_kwargs={spacing: time}",
    "diffusion.solver_kwargs.spacing=time",
    "seed=0,1,2",
    "hydra.run.dir=x",
    "--multirun",
    "optim.critic_lr=null",
    "network.hidden_sizes=[64,64]",
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
        ("seed=1.5", r"Wrong value for 'seed'"),
        ("loss.temprature=2", r"Did you mean 'loss\.temperature'"),
    ],
)
def test_wrong_overrides_are_explained(override, message):
    with pytest.raises(SystemExit, match=message):
        check_overrides(EDPIQLConfig, [override])
