"""Presets: their values, written down here from the paper and its code; what overrides them; that they run."""

from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from tensordict import TensorDict

from torchrl_edp import EDPCRRLoss, EDPIQLLoss, EDPTD3Loss
from torchrl_edp.configs import EXPERIMENTS, SCHEMAS, apply_preset, domain_of, preset_values
from torchrl_edp.configs.cli import _with_new_entries
from torchrl_edp.configs.help import help_text
from torchrl_edp.configs.presets import PRESETS
from torchrl_edp.training import EDPTargetUpdate, build_networks, build_value

DATASETS = {
    "locomotion": "mujoco/hopper/medium-v0",
    "antmaze": "D4RL/antmaze/large-play-v1",
    "adroit": "D4RL/pen/human-v2",
    "kitchen": "D4RL/kitchen/complete-v2",
    "maze": "D4RL/pointmaze/umaze-v2",
}
ALL = [(preset, name, data) for preset in PRESETS for name in EXPERIMENTS for data in DATASETS.values()]
DPM = {"diffusion.num_steps": 1000, "diffusion.solver": "dpm_solver", "diffusion.num_calls": 15}
DPM |= {"diffusion.solver_kwargs": {"order": 3, "spacing": "time"}}
DDPM = {"diffusion.num_steps": 100, "diffusion.solver": "ddpm", "diffusion.num_calls": None}
DDPM |= {"diffusion.solver_kwargs": {"variance": "posterior"}}
PAPER = {**DPM, "policy.num_action_samples": 10, "loss.clip_approximation": False, "loss.action_reduction": "sum"}
PAPER |= {"optim.clip_grad": 5.0, "optim.decay": "none", "optim.critic_lr": None, "optim.update_order": "sequential"}
PAPER |= {"replay_buffer.batch_size": 256, "network.hidden_sizes": [256, 256, 256], "network.activation": "mish"}
CODE = {"policy.num_action_samples": 50, "policy.temperature": 1.0, "policy.mode": "sample", "optim.lr": 3e-4}
CODE |= {"policy.averaged_critics": False, "policy.averaged_actor": False, "loss.guidance_weight": 1.0}
CODE |= {"loss.clip_approximation": True, "loss.action_reduction": "mean", "loss.gamma": 0.99, "optim.tau": 0.005}
CODE |= {"optim.actor_tau": 0.005, "optim.actor_every": 5, "optim.actor_start": 1000, "data.action_limit": 0.999}
CODE |= {"diffusion.schedule": "linear", "diffusion.prediction": "noise", "network.embedding_size": 16}
CODE |= {"optim.decay": "none", "logger.eval_iter": 10_000, "logger.eval_envs": 10, "optim.gradient_steps": 2_000_000}
EXP = {"loss.weight_normalization": None, "loss.deviation": 1.0}


def lengths(weight, thousands, lr=3e-4):
    return {"loss.guidance_weight": weight, "optim.gradient_steps": 1000 * thousands, "optim.lr": lr}


@pytest.mark.parametrize(
    ("preset", "name", "domain", "expected"),
    [
        ("paper", "edp_iql", "locomotion", {**PAPER, **EXP, **lengths(1.0, 2000)}),
        ("paper", "edp_td3", "antmaze", {**PAPER, **lengths(1.0, 1000)}),
        ("paper", "edp_crr", "adroit", {**PAPER, **EXP, **lengths(0.1, 1000, 3e-5)}),
        ("paper", "edp_iql", "kitchen", {**PAPER, **lengths(0.005, 1000)}),
        ("paper", "edp_iql", "locomotion", {"loss.temperature": 1.0, "loss.weight_cap": None, "loss.expectile": 0.7}),
        ("paper", "edp_iql", "antmaze", {"loss.expectile": 0.9, "loss.likelihood": "approximation"}),
        ("paper", "edp_crr", "antmaze", {"loss.temperature": 1.0, "loss.weight_cap": None, "loss.baseline": "mean"}),
        ("paper", "edp_crr", "antmaze", {"loss.num_action_samples": 10, "loss.sample_deviation": 1.0}),
        ("paper", "edp_crr", "maze", {"loss.sample_from": "approximation", "loss.clip_samples": False}),
        ("reference", "edp_crr", "kitchen", {"loss.sample_from": "approximation", "loss.num_action_samples": 10}),
        ("paper", "edp_td3", "kitchen", {"loss.guidance_qvalue": "random", "loss.qvalue_normalization": "same"}),
        ("reference", "edp_iql", "antmaze", {**CODE, **DDPM, **EXP, "loss.expectile": 0.7}),
        ("reference", "edp_iql", "adroit", {"loss.temperature": 3.0, "loss.weight_cap": 100.0}),
        ("reference", "edp_iql", "adroit", {"loss.likelihood": "log_prob", "optim.update_order": "sequential"}),
        ("reference", "edp_td3", "kitchen", {**CODE, **DDPM, "loss.alpha": 2.0, "optim.update_order": "joint"}),
        ("reference", "edp_td3", "antmaze", {"loss.num_backup_actions": 1, "loss.qvalue_normalization": "same"}),
        ("reference", "edp_crr", "maze", {**CODE, **EXP, "loss.weight_cap": 20.0, "loss.temperature": 1.0}),
        ("reference", "edp_crr", "maze", {"loss.likelihood": "log_prob", "optim.update_order": "joint"}),
        ("reference-dpm", "edp_crr", "antmaze", {**CODE, **DPM}),
        ("reference", "edp_iql", "locomotion", {"data.reward_rule": "return_range"}),
        ("reference", "edp_td3", "locomotion", {"data.reward_rule": "raw"}),
        ("paper", "edp_td3", "maze", {"data.return_steps": 1}),
        ("reference", "edp_crr", "locomotion", {"data.return_steps": 1}),
        ("paper", "edp_iql", "antmaze", {"data.reward_rule": "antmaze_iql"}),
        ("paper", "edp_crr", "antmaze", {"data.reward_rule": "antmaze_td3"}),
        ("reference", "edp_crr", "kitchen", {"data.reward_rule": "min_max"}),
        ("paper", "edp_td3", "adroit", {"data.reward_rule": "min_max"}),
        ("default", "edp_iql", "antmaze", {"data.reward_rule": "antmaze_iql", "loss.expectile": 0.9}),
        ("default", "edp_crr", "antmaze", {"data.reward_rule": "antmaze_td3", "data.return_steps": 1}),
        ("default", "edp_td3", "kitchen", {"data.reward_rule": "min_max", "loss.expectile": "absent"}),
        ("default", "edp_iql", "adroit", {"data.reward_rule": "min_max", "loss.expectile": "absent"}),
        ("default", "edp_iql", "locomotion", {"data.reward_rule": "absent"}),
        ("default", "edp_iql", "maze", {"data.reward_rule": "absent", "policy.num_action_samples": 10}),
        ("default", "edp_iql", "maze", {"network.critic_layer_norm": "absent"}),
        ("default", "edp_td3", "maze", {"network.critic_layer_norm": True, "policy.num_action_samples": 10}),
        ("default", "edp_crr", "maze", {"network.critic_layer_norm": True, "data.return_steps": 1}),
        ("default", "edp_crr", "locomotion", {"network.critic_layer_norm": "absent"}),
        ("default", "edp_td3", "locomotion", {"network.critic_layer_norm": "absent"}),
    ],
)
def test_values(preset, name, domain, expected):
    found = preset_values(preset, name, DATASETS[domain])
    assert {key: found.get(key, "absent") for key in expected} == expected


def test_critics_that_follow_the_policy_look_several_steps_ahead():
    found = {name: schema().data.return_steps for name, schema in SCHEMAS.items()}
    several = {"edp_td3", "edp_crr", "td3_bc", "crr"}
    assert found == {name: 10 if name in several else 1 for name in SCHEMAS}
    for name in SCHEMAS:  # but not in mazes
        assert preset_values("default", name, DATASETS["maze"])["data.return_steps"] == 1
        assert preset_values("default", name, DATASETS["antmaze"])["data.return_steps"] == 1


@pytest.mark.parametrize(
    ("task", "levels", "clips"),
    [
        ("halfcheetah", ["medium", "medium-replay", "medium-expert", "expert"], [9, 2, 7, 5]),
        ("hopper", ["medium", "medium-replay", "medium-expert", "simple"], [9, 4, 5, 5]),
        ("walker2d", ["medium", "medium-replay", "medium-expert"], [1, 4, 5]),
        ("antmaze", ["umaze", "umaze-diverse", "medium-play", "medium-diverse"], [2, 3, 2, 1]),
        ("antmaze", ["large-play", "large-diverse"], [10, 7]),
        ("pen", ["human", "cloned", "expert"], [7, 8, 5]),
        ("kitchen", ["complete", "partial", "mixed"], [9, 10, 10]),
    ],
)
def test_gradient_clips_of_the_reference_code(task, levels, clips):
    for style in ("D4RL/{}/{}-v2", "{}-{}-v0"):
        names = [style.format(task, level) for level in levels]
        assert [preset_values("reference", "edp_td3", name)["optim.clip_grad"] for name in names] == clips


@pytest.mark.parametrize(
    ("dataset", "domain"),
    [
        *((name, domain) for domain, name in DATASETS.items()),
        ("maze2d-umaze-v1", "maze"),
        ("D4RL/relocate/expert-v2", "adroit"),
        ("local/walker2d/medium-expert-v0", "locomotion"),
        ("mujoco/inverteddoublependulum/expert-v0", "locomotion"),  # pendulum is no pen
        ("/data/indoors/mine-v0", "locomotion"),
    ],
)
def test_domains(dataset, domain):
    assert domain_of(dataset) == domain


def test_presets_leave_no_setting_of_the_method_to_the_defaults():
    free = {"loss.pessimism", "data.num_steps", "optim.device", "optim.matmul_precision"}  # not of the method
    for name, schema in EXPERIMENTS.items():
        settings = schema()
        groups = ("data", "network", "diffusion", "policy", "loss", "optim")
        keys = {f"{group}.{field.name}" for group in groups for field in fields(getattr(settings, group))}
        for preset in PRESETS[1:]:
            assert keys - preset_values(preset, name, DATASETS["maze"]).keys() == free


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_default_changes_nothing(name):
    config = OmegaConf.structured(EXPERIMENTS[name](seed=3))
    assert preset_values("default", name, "x") == {} and apply_preset(config, name, ["seed=3"]) == config


def test_default_acts_in_mazes_as_the_paper_does():
    maze, paper = (preset_values(preset, "edp_iql", "local/pointmaze/medium-v0") for preset in ("default", "paper"))
    assert maze.pop("data.return_steps") == paper["data.return_steps"] == 1
    assert maze == {"policy.num_action_samples": 10, "diffusion.initial_noise_scale": 1.0}
    assert maze.items() <= paper.items()


@pytest.mark.parametrize("name", ["edp_td3", "edp_crr"])
def test_td3_and_crr_act_as_the_paper_does_everywhere(name):
    for dataset in DATASETS.values():
        default, paper = (
            apply_preset(OmegaConf.structured(EXPERIMENTS[name](preset=preset, dataset=dataset)), name)
            for preset in ("default", "paper")
        )
        for cfg in (default, paper):
            assert (cfg.policy.num_action_samples, cfg.diffusion.initial_noise_scale) == (10, 1.0)
        assert (default.diffusion.solver, default.diffusion.num_calls) == ("dpm_solver_pp", 5)


def test_the_configuration_given_stays_as_it_is():
    config = OmegaConf.structured(EXPERIMENTS["edp_td3"](preset="paper"))
    before = config.copy()
    assert apply_preset(config, "edp_td3") != before and config == before


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="'default', 'paper', 'reference', 'reference-dpm'.*got 'papr'"):
        preset_values("papr", "edp_iql", "x")


def hydra_config(name, *overrides):
    """What a script gets from Hydra, with its preset applied."""
    ConfigStore.instance().store(name=name, node=EXPERIMENTS[name])
    overrides = _with_new_entries(EXPERIMENTS[name], overrides)
    with initialize(version_base="1.3", config_path=None):
        return apply_preset(compose(name, overrides), name, overrides)


SOLVER = ("solver", "num_calls", "solver_kwargs")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["preset=paper"], ("dpm_solver", 15, {"order": 3, "spacing": "time"})),
        (["preset=paper", "+diffusion.solver_kwargs.order=2"], ("dpm_solver", 15, {"order": 2, "spacing": "time"})),
        (["preset=paper", "diffusion.solver_kwargs.order=2"], ("dpm_solver", 15, {"order": 2, "spacing": "time"})),
        (["diffusion.solver_kwargs.end_time=0"], ("dpm_solver_pp", 5, {"spacing": "log_snr", "end_time": 0})),
        # A dictionary takes the place of the preset's, or is added to it.
        (["preset=paper", "diffusion.solver_kwargs={}"], ("dpm_solver", 15, {})),
        (["diffusion.solver_kwargs={end_time: 0}"], ("dpm_solver_pp", 5, {"end_time": 0})),
        (["diffusion={num_calls: 9, solver_kwargs: {end_time: 0}}"], ("dpm_solver_pp", 9, {"end_time": 0})),
        (["preset=paper", "+diffusion.solver_kwargs={order: 2}"], ("dpm_solver", 15, {"order": 2, "spacing": "time"})),
        (  # as when a run goes on with other options
            ["+diffusion.solver_kwargs.end_time=0", "diffusion.solver_kwargs={spacing: time}"],
            ("dpm_solver_pp", 5, {"spacing": "time"}),
        ),
        (["preset=paper", "~diffusion.solver_kwargs.spacing"], ("dpm_solver", 15, {"order": 3})),
        (["preset=paper", "diffusion={num_calls: 9}"], ("dpm_solver", 9, {"order": 3, "spacing": "time"})),
        (["preset=paper", "diffusion.solver=dpm_solver"], ("dpm_solver", 15, {"order": 3, "spacing": "time"})),
        # Another solver: what belonged to the preset's own goes.
        (["preset=paper", "diffusion.solver=dpm_solver_pp"], ("dpm_solver_pp", 15, {})),
        (["preset=paper", "diffusion.solver=ddpm"], ("ddpm", None, {})),
        (["preset=reference", "diffusion.solver=ddim", "diffusion.num_calls=9"], ("ddim", 9, {})),
    ],
)
def test_the_command_line_wins_over_the_presets_solver(overrides, expected):
    diffusion = hydra_config("edp_iql", *overrides).diffusion
    assert tuple(diffusion[key] for key in SOLVER) == expected
    shown = OmegaConf.create(help_text("edp_iql", overrides).partition("behind #")[2].partition("\n")[2]).diffusion
    assert tuple(shown[key] for key in SOLVER) == expected


def test_the_command_line_wins_and_the_rest_stays():
    overrides = ["preset=paper", "optim.clip_grad=1.5", "loss.guidance_steps=[0,9]", "loss.weight_cap=null"]
    config = hydra_config("edp_iql", *overrides)
    assert config.optim.clip_grad == 1.5 and config.loss.guidance_steps == [0, 9] and config.loss.weight_cap is None
    assert config.loss.likelihood == "approximation" and config.optim.gradient_steps == 2_000_000


def make_loss(cfg, name):
    sizes = SimpleNamespace(observation_size=3, action_size=2)
    actor, qvalues = build_networks(cfg, sizes)
    arguments = asdict(cfg.loss)
    gamma = arguments.pop("gamma")
    if name == "edp_iql":
        loss = EDPIQLLoss(actor, qvalues, build_value(3, cfg.network), **arguments)
    else:
        loss = {"edp_td3": EDPTD3Loss, "edp_crr": EDPCRRLoss}[name](actor, qvalues, **arguments)
    return loss.make_value_estimator(gamma=gamma)


@pytest.mark.parametrize(("preset", "name", "dataset"), ALL)
def test_presets_run(preset, name, dataset):
    """Every value is a key of the configuration, of a type it takes, and the loss takes them all."""
    config = OmegaConf.structured(EXPERIMENTS[name](preset=preset, dataset=dataset))
    cfg = OmegaConf.to_object(apply_preset(config, name, ["network.hidden_sizes=[8]"]))
    loss = make_loss(cfg, name)
    EDPTargetUpdate(loss)
    flags = torch.zeros(4, 1, dtype=torch.bool)
    following = {"observation": torch.randn(4, 3), "reward": torch.randn(4, 1), "done": flags, "terminated": flags}
    batch = {"observation": torch.randn(4, 3), "action": torch.rand(4, 2) * 2 - 1, "next": following}
    batch = TensorDict(batch, [4]).auto_batch_size_()
    assert loss.actor_loss(batch)[0].isfinite() and loss.qvalue_loss(batch)[0].isfinite()
    assert cfg.preset == preset and cfg.dataset == dataset
