"""The losses' defaults; the Hydra configurations have the constructors' arguments and defaults."""

from __future__ import annotations

import inspect
import runpy
from dataclasses import MISSING, fields

import pytest
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.utils import get_method, instantiate
from loss_cases import LossCase, make_data, make_networks, seeded
from omegaconf import OmegaConf, ValidationError
from tensordict import assert_close
from torchrl.objectives import SoftUpdate
from torchrl.trainers.algorithms.configs.objectives import LossConfig

from torchrl_edp.configs import losses

DEFAULTS = {  # of the losses, and with them of the scripts: a changed one changes every run that does not name it
    **{"num_qvalue_nets": 2, "loss_function": "l2", "qvalue_aggregation": "min", "pessimism": 1.0, "gamma": None},
    **{"guidance_weight": 1.0, "guidance_weighting": "uniform", "guidance_steps": None, "guidance_start": "data"},
    **{"approximation_steps": None, "clip_approximation": True, "action_reduction": "mean", "priority_key": None},
    **{"delay_actor": True, "delay_qvalue": True, "separate_losses": False, "reduction": None},
    **{"scalar_output_mode": None, "deactivate_vmap": False, "use_prioritized_weights": "auto"},
}
LIKELIHOOD = {"weight_normalization": "mean", "likelihood": "noise", "deviation": 1.0}
BACKUP = {"num_backup_actions": 1, "backup_top_k": 1}
OWN_DEFAULTS = {
    "edp_iql": LIKELIHOOD | {"temperature": 3.0, "weight_cap": 100.0, "guidance_weight": 10.0, "expectile": 0.7},
    "edp_td3": {
        **BACKUP,
        **{"action_spec": None, "bounds": None, "alpha": 2.0, "guidance_qvalue": "random"},
        **{"qvalue_normalization": "same", "guidance_weighting": "alpha_bar", "guidance_weight": 5.0},
    },
    "edp_crr": {
        **LIKELIHOOD,
        **BACKUP,
        **{"temperature": 1.0, "weight_cap": 20.0, "weight_function": "exp", "baseline": "mean"},
        **{"num_action_samples": 2, "sample_from": "policy", "sample_deviation": 1.0, "clip_samples": True},
        **{"guidance_weight": 5.0},
    },
}


def name_of(case: LossCase) -> str:
    (name,) = [name for name, loss in losses.LOSSES.items() if loss is case.loss]
    return name


def networks_of(case: LossCase, num_qvalue_nets: int = 2) -> dict:
    return {name: net for name, net in make_networks(num_qvalue_nets).items() if name in case.networks.values()}


def test_the_defaults(case):
    arguments = inspect.signature(case.loss).parameters.values()
    found = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
    assert found == DEFAULTS | OWN_DEFAULTS[name_of(case)]


def test_fields_are_the_constructors_arguments(case):
    assert issubclass(case.config, LossConfig)
    arguments = list(inspect.signature(case.loss).parameters.values())
    found = {field.name: field.default for field in fields(case.config) if not field.name.startswith("_")}
    assert MISSING not in found.values() and found.pop("name") == name_of(case)
    expected = {argument.name: argument.default for argument in arguments}
    expected |= dict.fromkeys(("actor_network", "qvalue_network", "value_network") & expected.keys())
    assert found == expected


def test_registered_by_a_call_and_not_by_an_import(case, monkeypatch):
    stored = {}
    monkeypatch.setattr(ConfigStore, "store", lambda self, name, node, group: stored.update({(group, name): node}))
    runpy.run_path(losses.__file__)
    assert stored == {}
    losses.register_losses()
    assert stored["loss", name_of(case)] is case.config


@pytest.mark.parametrize(
    "settings", [{}, {"guidance_steps": [2, 9], "reduction": "sum", "num_qvalue_nets": 1}], ids=str
)
def test_composes_and_instantiates_the_loss(case, settings):
    losses.register_losses()
    settings = settings | case.settings
    options = [f"++loss.{name}={value}" for name, value in settings.items()]
    with initialize(version_base=None, config_path=None):
        config = compose(overrides=[f"+loss={name_of(case)}", "loss.gamma=0.5", *options])
    assert config.loss._target_ and set(config) == {"loss"}
    networks = networks_of(case, settings.get("num_qvalue_nets", 2))
    loss = instantiate(config.loss, **networks)
    assert type(loss) is case.loss and loss.value_estimator.gamma == 0.5
    SoftUpdate(loss, tau=0.1)
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    direct = case.loss(**networks, **plain).make_value_estimator(gamma=0.5)
    SoftUpdate(direct, tau=0.1)
    data = make_data()
    assert_close(seeded(loss, data), seeded(direct, data))


def test_a_value_of_the_wrong_type_is_refused(case):
    with pytest.raises(ValidationError, match="num_qvalue_nets"):
        OmegaConf.structured(case.config(num_qvalue_nets="many"))


def test_networks_may_be_factories(case):
    factories = {}
    for name, network in networks_of(case, 1).items():
        network = network[0] if isinstance(network, list) else network
        factory = lambda network=network: network  # noqa: E731
        factory._target_ = "as a partial configuration has"
        factories[name] = factory
    loss = get_method(case.config._target_)(name_of(case), **factories)
    assert isinstance(loss, case.loss) and isinstance(loss.actor_network, torch.nn.Module)
