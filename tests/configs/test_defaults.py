"""The example's defaults are those of the loss itself: the preset ``default`` has one source."""

import dataclasses
import inspect
import subprocess
import sys

from torchrl_edp import EDPIQLLoss
from torchrl_edp.configs.iql import IQLLossSettings


def test_loss_settings_are_the_constructors_defaults():
    defaults = {name: p.default for name, p in inspect.signature(EDPIQLLoss.__init__).parameters.items()}
    settings = {f.name: f.default for f in dataclasses.fields(IQLLossSettings) if f.name != "gamma"}
    assert settings == {name: defaults[name] for name in settings}


def test_examples_do_not_drag_torchrls_groups_along():
    code = "import sys, torchrl_edp.configs; sys.exit('torchrl.trainers.algorithms.configs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
