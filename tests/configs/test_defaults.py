"""The examples' defaults are those of the losses themselves: the preset ``default`` has one source."""

import inspect
import subprocess
import sys
from dataclasses import asdict

import pytest

from torchrl_edp import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.configs import EXPERIMENTS

LOSSES = {"edp_iql": EDPIQLLoss, "edp_td3": EDPTD3Loss, "edp_crr": EDPCRRLoss}
# Networks, what a script sets itself, and what no script has a use for.
NO_SETTINGS = {"self", "actor_network", "qvalue_network", "value_network", "action_spec", "bounds"}
NO_SETTINGS |= {"priority_key", "delay_actor", "delay_qvalue", "separate_losses", "reduction", "scalar_output_mode"}
NO_SETTINGS |= {"deactivate_vmap", "use_prioritized_weights"}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_settings_are_the_constructors_arguments_and_defaults(name):
    parameters = inspect.signature(LOSSES[name].__init__).parameters
    expected = {key: parameter.default for key, parameter in parameters.items() if key not in NO_SETTINGS}
    assert asdict(EXPERIMENTS[name]().loss) == expected | {"gamma": 0.99}


def test_the_losses_differ_where_their_algorithms_do():
    settings = {name: asdict(EXPERIMENTS[name]().loss) for name in LOSSES}
    assert [name for name in LOSSES if "expectile" in settings[name]] == ["edp_iql"]
    assert [name for name in LOSSES if "alpha" in settings[name]] == ["edp_td3"]
    assert [name for name in LOSSES if "baseline" in settings[name]] == ["edp_crr"]


@pytest.mark.slow
def test_examples_do_not_drag_torchrls_groups_along():
    code = "import sys, torchrl_edp.configs; sys.exit('torchrl.trainers.algorithms.configs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
