"""Settings that cannot work are refused before data are loaded: setting, value and what is valid are named."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from torchrl_edp.configs import EXPERIMENTS, apply_preset, check_settings
from torchrl_edp.configs import cli as command_line
from torchrl_edp.configs.checks import BACKENDS
from torchrl_edp.configs.presets import DOMAINS, PRESETS

IQL, TD3, CRR = EXPERIMENTS
ONE = "policy.num_action_samples=1"
DDPM = "diffusion.solver=ddpm"
DPM = "diffusion.solver=dpm_solver"
NOISE = "loss.guidance_start=noise"


def settings(name, overrides):
    """What a script gets from a command line."""
    config = OmegaConf.structured(EXPERIMENTS[name])
    config = apply_preset(config, name, overrides)  # of the defaults: sets the overrides only, as Hydra does
    return OmegaConf.to_object(apply_preset(config, name, overrides))


IMPOSSIBLE = [
    # K against the schedule
    (IQL, "diffusion.num_steps=0", "num_steps must be at least 1, got 0"),
    (IQL, "diffusion.num_steps=20", r"linear schedule with num_steps=20 has b\^20 = 1, .*needs num_steps > 20; use"),
    (IQL, "diffusion.num_steps=1", r"num_steps=1 has b\^1 = 20, outside \(0, 1\)\. It needs num_steps > 20; use"),
    (IQL, "diffusion.num_steps=1 diffusion.schedule=vp", "K = 1 leaves nothing to solve .* choose ddim, ddpm or more"),
    # the solver against the schedule, its calls and its options
    (IQL, f"{DDPM} diffusion.num_calls=15", "one call per diffusion step: expected num_calls=100, got 15"),
    (IQL, "diffusion.solver=ddim diffusion.num_calls=null", "num_calls must be at least 1, got None"),
    (TD3, "diffusion.num_calls=0", "num_calls must be at least 1, got 0"),
    (TD3, "diffusion.solver=ddim diffusion.num_calls=150", "num_calls=150 ddim asks .*diffusion step -0.333.*K = 100"),
    (TD3, "diffusion.num_calls=200 +diffusion.solver_kwargs={spacing:time,end_time:0}", "num_calls of at most K = 100"),
    (TD3, "preset=paper diffusion.num_calls=2", "step of order 3 .* num_calls is 2: choose an order of at most 2"),
    (TD3, f"{DPM} diffusion.num_calls=1 +diffusion.solver_kwargs.order=2", "an order of at most 1"),
    (TD3, f"{DPM} +diffusion.solver_kwargs.order=4", "order must be 1, 2 or 3, got 4"),
    (CRR, f"{DDPM} diffusion.solver_kwargs.spacing=time", r"'ddpm' has no option 'spacing': choose from \['variance"),
    (CRR, "+diffusion.solver_kwargs.order=2", r"'dpm_solver_pp' has no option 'order': choose from \['spacing', 'end_"),
    (CRR, f"{DDPM} +diffusion.solver_kwargs.variance=fixed", r"variance must be one of \('beta', 'posterior'\), got"),
    (CRR, "diffusion.solver_kwargs.spacing=even", "spacing must be 'time' or 'log_snr', got 'even'"),
    (CRR, "diffusion.solver=ddim +diffusion.solver_kwargs.eta=2", r"eta must lie in \[0, 1\], got 2"),
    (CRR, "diffusion.solver=ddim +diffusion.solver_kwargs.eta=some", "cannot take the options .*'eta': 'some'"),
    (CRR, "+diffusion.solver_kwargs.end_time=1", r"end_time must lie in \[0, 1\), got 1"),
    (CRR, "diffusion.initial_noise_scale=1.5", r"initial_noise_scale must lie in \[0, 1\], got 1.5"),
    (CRR, "diffusion.initial_noise_scale=-1", "initial_noise_scale must lie in"),
    (CRR, "diffusion.policy_scale=0", r"policy_scale must lie in \(0, inf\), got 0"),
    (IQL, "diffusion.initial_noise_scale=0 policy.num_action_samples=4", "num_action_samples=4 actions the same: set"),
    (TD3, "diffusion.initial_noise_scale=0", "policy.num_action_samples=10 actions the same"),
    (
        TD3,
        f"{ONE} diffusion.initial_noise_scale=0 loss.num_backup_actions=2",
        "loss.num_backup_actions=2 actions the same",
    ),
    (CRR, f"{ONE} diffusion.initial_noise_scale=0", "loss.num_action_samples=2 actions the same"),
    # networks
    (IQL, "network.hidden_sizes=[]", r"network.hidden_sizes must be one or more positive widths, got \[\]"),
    (IQL, "network.hidden_sizes=[64,0]", r"hidden_sizes must be positive widths, got \[64, 0\]"),
    (IQL, "network.embedding_size=15", "even and at least 4, got 15"),
    # critics and candidates
    (TD3, "loss.num_qvalue_nets=0", r"num_qvalue_nets must lie in \[1, inf\), got 0"),
    (TD3, "loss.num_backup_actions=0", r"num_backup_actions must lie in \[1, inf\), got 0"),
    (TD3, "loss.num_backup_actions=5 loss.backup_top_k=6", r"must lie in 1..num_backup_actions = 5, got 6"),
    (CRR, "loss.backup_top_k=2", "backup_top_k must lie in 1..num_backup_actions = 1, got 2"),
    (CRR, "loss.num_action_samples=0", r"num_action_samples must lie in \[1, inf\), got 0"),
    (CRR, "loss.sample_deviation=-1", r"sample_deviation must lie in \[0, inf\), got -1"),
    (TD3, "loss.qvalue_normalization=other loss.num_qvalue_nets=1", "needs guidance_qvalue='random' and at least two"),
    (TD3, "loss.qvalue_normalization=other loss.guidance_qvalue=min", "needs guidance_qvalue='random'"),
    (TD3, "loss.loss_function=l3", r"loss_function must be one of \('l2', 'l1', 'smooth_l1'\), got 'l3'"),
    (TD3, "loss.pessimism=-1", r"pessimism must lie in \[0, inf\), got -1"),
    (TD3, "loss.alpha=-2", r"alpha must lie in \[0, inf\), got -2"),
    (IQL, "loss.expectile=1", r"expectile must lie in \(0, 1\), got 1"),
    (IQL, "loss.gamma=1.01", r"gamma must lie in \[0, 1\], got 1.01"),
    (IQL, "loss.gamma=-0.1", r"gamma must lie in \[0, 1\], got -0.1"),
    # guidance
    (IQL, "loss.guidance_weight=-1", r"guidance_weight must lie in \[0, inf\), got -1"),
    (IQL, "loss.temperature=-3", r"temperature must lie in \[0, inf\), got -3"),
    (IQL, "loss.temperature=nan", r"temperature must lie in \[0, inf\), got nan"),
    (IQL, "loss.weight_cap=0", "weight_cap must be positive or None, got 0"),
    (IQL, "loss.deviation=inf", "deviation must be a positive float or 'learned', got inf"),
    (IQL, "loss.deviation=learned", "learned deviation has no effect with likelihood='noise'"),
    (IQL, "loss.guidance_steps=[0,100]", r"0 <= first <= last < 100, got \[0, 100\]"),
    (IQL, "loss.guidance_steps=[9,3]", r"\(first, last\) and satisfy 0 <= first <= last < 100, got \[9, 3\]"),
    (IQL, "loss.guidance_steps=[9]", r"guidance_steps must be None or \(first, last\) .*, got \[9\]"),
    (TD3, f"{NOISE} loss.guidance_steps=[0,9]", "guidance_steps must be None"),
    (TD3, "loss.approximation_steps=101", r"approximation_steps must lie in \[1, 100\], got 101"),
    (TD3, f"{NOISE} {DDPM} loss.approximation_steps=5", "one call per diffusion step: expected num_calls=100, got 5"),
    (TD3, f"preset=paper {NOISE} loss.approximation_steps=2", "step of order 3 .* choose an order of at most 2"),
    (IQL, "loss.approximation_steps=2", r"likelihood='noise' does not train .*choose one of \('approximation', 'log_"),
    (CRR, f"{NOISE} loss.likelihood=elbo", r"likelihood='elbo' does not train .*choose one of \('approximation', 'lo"),
    # the policy that acts
    (IQL, "policy.num_action_samples=0", "num_action_samples must be at least 1, got 0"),
    (IQL, "policy.temperature=0", "temperature must be positive, got 0.0: use mode='argmax'"),
    (IQL, "policy.temperature=nan", "temperature must be positive, got nan"),
    # data, optimisation, evaluation
    (IQL, "seed=-1", r"seed must lie in \[0, 4294967296\), got -1"),
    (IQL, "num_seeds=0", r"num_seeds must lie in \[1, inf\), got 0"),
    (IQL, "env.max_episode_steps=0", r"env.max_episode_steps must lie in \[1, inf\), got 0"),
    (IQL, "data.num_steps=0", r"data.num_steps must lie in \[1, inf\), got 0"),
    (IQL, "data.return_steps=0", r"data.return_steps must lie in \[1, inf\), got 0"),
    (IQL, "data.action_limit=1.1", r"data.action_limit must lie in \(0, 1\], got 1.1"),
    (IQL, "replay_buffer.batch_size=0", r"replay_buffer.batch_size must lie in \[1, inf\), got 0"),
    (IQL, "optim.lr=0", r"optim.lr must lie in \(0, inf\), got 0"),
    (IQL, "optim.critic_lr=-1e-3", r"optim.critic_lr must lie in \(0, inf\), got -0.001"),
    (IQL, "optim.clip_grad=0", r"optim.clip_grad must lie in \(0, inf\), got 0"),
    (IQL, "optim.gradient_steps=0", r"optim.gradient_steps must lie in \[1, inf\), got 0"),
    (IQL, "optim.tau=1.5", r"optim.tau must lie in \[0, 1\], got 1.5"),
    (IQL, "optim.actor_tau=-0.1", r"optim.actor_tau must lie in \[0, 1\], got -0.1"),
    (IQL, "optim.actor_every=0", r"optim.actor_every must lie in \[1, inf\), got 0"),
    (IQL, "optim.actor_start=-1", r"optim.actor_start must lie in \[0, inf\), got -1"),
    (IQL, f"seed={2**32}", rf"seed must lie in \[0, {2**32}\), got {2**32}"),
    (IQL, "optim.device=gpu", "optim.device must be one of cpu.*, got 'gpu'"),
    (IQL, "optim.device=meta", "optim.device must be one of cpu.*, got 'meta'"),
    (IQL, "optim.device=hpu", "optim.device must be one of cpu.*, got 'hpu'"),
    (IQL, "logger.backend=excel", r"logger.backend must be one of \('', 'csv', .*'trackio'\), got 'excel'"),
    (IQL, "logger.eval_iter=-1", r"logger.eval_iter must lie in \[0, inf\), got -1"),
    (IQL, "logger.eval_envs=0", r"logger.eval_envs must lie in \[1, inf\), got 0"),
    (IQL, "logger.log_iter=0", r"logger.log_iter must lie in \[1, inf\), got 0"),
]


@pytest.mark.parametrize(("name", "overrides", "message"), IMPOSSIBLE, ids=[case[1] for case in IMPOSSIBLE])
def test_impossible_settings_are_refused(name, overrides, message):
    cfg = settings(name, ["network.hidden_sizes=[8]", *overrides.split()])
    with pytest.raises(SystemExit, match=f"^Impossible (.* )?settings: .*{message}"):
        check_settings(cfg)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("", "csv")])
def test_a_logger_needs_its_package(monkeypatch, backend):
    cfg = settings(IQL, [f"logger.backend={backend}"])
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(SystemExit, match=f"^Impossible settings: .*not installed: `pip install {backend}`, or take"):
        check_settings(cfg)
    package = ModuleType(backend)
    package.__spec__ = ModuleSpec(backend, None)
    monkeypatch.setitem(sys.modules, backend, package)
    check_settings(cfg)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, solver) for name in EXPERIMENTS for solver in ("diffusion.solver=ddpm", "diffusion.solver=ddim")),
        (TD3, f"{DDPM} diffusion.num_steps=1 diffusion.schedule=vp {NOISE}"),
        (TD3, "diffusion.solver=ddim diffusion.num_calls=100"),
        (TD3, f"{ONE} diffusion.initial_noise_scale=0"),
        (TD3, f"{DDPM} diffusion.initial_noise_scale=0 policy.num_action_samples=4"),
        (CRR, f"{ONE} diffusion.initial_noise_scale=0 loss.num_action_samples=1"),
        (CRR, f"{ONE} diffusion.initial_noise_scale=0 loss.sample_from=approximation"),
        (TD3, f"{DPM} diffusion.num_calls=2 +diffusion.solver_kwargs.order=2"),
        (TD3, "loss.num_backup_actions=5 loss.backup_top_k=5"),
        (TD3, f"{NOISE} loss.approximation_steps=3"),
        (TD3, "loss.approximation_steps=100 loss.num_qvalue_nets=1 loss.guidance_steps=[0,99]"),
        (CRR, "loss.sample_from=approximation loss.sample_deviation=0 loss.temperature=0 loss.guidance_weight=0"),
        (IQL, "optim.tau=1 optim.actor_tau=0 logger.eval_iter=0 logger.backend= optim.device=cpu data.action_limit=1"),
        (IQL, f"seed={2**32 - 1}"),
        (IQL, "optim.critic_lr=null optim.clip_grad=null loss.weight_cap=null policy.mode=argmax"),
    ],
)
def test_limits_that_work(name, overrides):
    check_settings(settings(name, overrides.split()))


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("domain", [*DOMAINS, "unheard-of"])
def test_every_preset_passes_and_nothing_changes(name, preset, domain):
    task = DOMAINS.get(domain, [domain])[0]
    cfg = settings(name, [f"preset={preset}", f"dataset=D4RL/{task}/expert-v2"])
    before, state = copy.deepcopy(asdict(cfg)), torch.get_rng_state()
    check_settings(cfg)
    assert asdict(cfg) == before and torch.equal(torch.get_rng_state(), state)


def test_another_solver_than_the_defaults_drops_its_options():
    found = settings(IQL, ["diffusion.solver=ddpm"]).diffusion
    assert (found.solver, found.num_calls, found.solver_kwargs) == ("ddpm", None, {})
    assert (found.prediction, found.num_steps, found.initial_noise_scale) == ("velocity", 100, 0.25)
    found = settings(IQL, ["diffusion.solver=dpm_solver", "diffusion.num_calls=6"]).diffusion
    assert (found.num_calls, found.solver_kwargs) == (6, {})
    found = settings(IQL, ["diffusion.solver=dpm_solver_pp"]).diffusion
    assert (found.num_calls, found.solver_kwargs) == (5, {"spacing": "log_snr"})


def test_a_script_refuses_before_it_leaves_anything(tmp_path, monkeypatch):
    class Job:
        class job:
            config_name = TD3

        class overrides:
            task = ("loss.backup_top_k=2",)

        class runtime:
            output_dir = str(tmp_path / "run")

    monkeypatch.setattr(command_line.HydraConfig, "get", lambda: Job)
    config = OmegaConf.structured(EXPERIMENTS[TD3])
    config.loss.backup_top_k = 2
    with pytest.raises(SystemExit, match="backup_top_k must lie in"):
        command_line.start(config)
    assert not any(tmp_path.iterdir())
