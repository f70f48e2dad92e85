"""The script of the feed-forward policies: its algorithm, its settings, and what presets mean for it."""

from dataclasses import fields

import pytest
import torch
from omegaconf import OmegaConf

from torchrl_edp.configs import FEED_FORWARD, apply_preset, check_overrides, check_settings, preset_values
from torchrl_edp.configs.experiments import COUNTERPARTS
from torchrl_edp.configs.feed_forward import chosen_algorithm
from torchrl_edp.configs.presets import DOMAINS, PRESETS
from torchrl_edp.configs.resume import resume_overrides
from torchrl_edp.training.checkpoint import CheckpointStore

HOPPER = "mujoco/hopper/medium-v0"
NAMES = list(FEED_FORWARD)


def settings(name, overrides):
    """What the script gets from a command line."""
    config = OmegaConf.structured(FEED_FORWARD[name])
    config = apply_preset(config, name, overrides)  # of the defaults: sets the overrides only, as Hydra does
    return OmegaConf.to_object(apply_preset(config, name, overrides))


def test_the_algorithm_is_chosen_by_name_or_by_the_resumed_run(tmp_path):
    assert chosen_algorithm([]) == "td3_bc" == chosen_algorithm(["resume=auto", "seed=1"])
    assert chosen_algorithm(["algorithm=td3_bc", "algorithm=bc"]) == "bc"
    (tmp_path / "config.yaml").write_text("algorithm: iql\n")
    assert chosen_algorithm([f"resume={tmp_path}"]) == "iql" == chosen_algorithm([f"resume='{tmp_path}'"])
    assert chosen_algorithm([f"resume={tmp_path}", "algorithm=crr"]) == "crr"
    for wrong in ("iqll", "iql,crr"):
        with pytest.raises(SystemExit, match=f"Unknown algorithm '{wrong}': choose one of td3_bc, iql, crr, bc, one a"):
            chosen_algorithm([f"algorithm={wrong}"])


def test_every_algorithm_has_its_own_settings():
    own = {"td3_bc": "alpha=1", "iql": "expectile=0.9", "crr": "num_action_samples=4"}
    for name in NAMES:
        check_overrides(FEED_FORWARD[name], ["optim.policy_every=3", "policy.averaged_actor=true", f"algorithm={name}"])
        for other, override in own.items():
            if other == name:
                check_overrides(FEED_FORWARD[name], [f"loss.{override}"])
            else:
                with pytest.raises(SystemExit, match="Unknown setting 'loss"):
                    check_overrides(FEED_FORWARD[name], [f"loss.{override}"])
        for foreign in ("diffusion.num_calls=3", "network.embedding_size=8", "optim.update_order=joint"):
            with pytest.raises(SystemExit, match="Unknown setting"):
                check_overrides(FEED_FORWARD[name], [foreign])
    with pytest.raises(SystemExit, match="Unknown loss.loss_function 'l3': choose one of l2, l1, smooth_l1"):
        check_overrides(FEED_FORWARD["iql"], ["loss.loss_function=l3"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_presets_take_data_and_networks_from_the_diffusion_counterpart(name, preset, domain):
    dataset = f"D4RL/{DOMAINS[domain][0]}/expert-v2"
    cfg = settings(name, [f"preset={preset}", f"dataset={dataset}", "network.hidden_sizes=[8]"])
    state = torch.get_rng_state()
    check_settings(cfg)
    assert torch.equal(torch.get_rng_state(), state)
    found, others = (preset_values(preset, key, dataset) for key in (name, COUNTERPARTS[name]))
    shared = [key for key in others if key.startswith(("data.", "logger.", "replay_buffer.", "optim.gradient_steps"))]
    assert {key: found[key] for key in shared} == {key: others[key] for key in shared}
    assert found.get("data.reward_rule") == others.get("data.reward_rule")
    groups = ("data", "network", "policy", "loss", "optim")
    keys = {f"{group}.{field.name}" for group in groups for field in fields(getattr(cfg, group))}
    free = {"loss.pessimism", "data.num_steps", "optim.device", "optim.matmul_precision"}  # not of the method
    assert preset == "default" or keys - found.keys() == free & keys
    own = {key for key in found if key.startswith(("loss.", "policy.", "optim."))} - {"optim.gradient_steps"}
    defaults = OmegaConf.structured(FEED_FORWARD[name]())
    changed = {key for key in own - {"optim.clip_grad"} if OmegaConf.select(defaults, key) != found[key]}
    assert changed <= ({"loss.temperature", "loss.expectile"} if name == "iql" else set())


def test_values():
    assert preset_values("paper", "td3_bc", HOPPER)["data.reward_rule"] == "raw"
    assert preset_values("paper", "iql", HOPPER)["data.reward_rule"] == "return_range"
    assert preset_values("reference", "crr", HOPPER)["optim.clip_grad"] == 9.0
    assert preset_values("default", "iql", HOPPER) == {}
    maze = {name: preset_values("default", name, "local/pointmaze/medium-v0") for name in NAMES}
    one_step = {"data.return_steps": 1}
    normed = one_step | {"network.critic_layer_norm": True}
    assert maze == dict.fromkeys(NAMES, one_step) | {"td3_bc": normed, "crr": normed}
    for preset in ("default", "paper"):
        antmaze = preset_values(preset, "iql", "D4RL/antmaze/umaze-v1")
        assert (antmaze["loss.temperature"], antmaze["loss.expectile"]) == (10.0, 0.9)
        assert antmaze["data.reward_rule"] == "antmaze_iql"
        assert preset_values(preset, "td3_bc", "D4RL/antmaze/umaze-v1")["data.reward_rule"] == "antmaze_td3"
        pen = preset_values(preset, "iql", "D4RL/pen/human-v2")
        assert (pen["loss.temperature"], pen["data.reward_rule"]) == (0.5, "min_max")


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("td3_bc", "loss.alpha=-1", r"loss.alpha must lie in \[0, inf\), got -1"),
        ("td3_bc", "loss.policy_noise=-1", r"loss.policy_noise must lie in \[0, inf\), got -1"),
        ("td3_bc", "optim.policy_every=0", r"optim.policy_every must lie in \[1, inf\), got 0"),
        ("iql", "loss.expectile=1", r"loss.expectile must lie in \(0, 1\), got 1"),
        ("iql", "loss.gamma=1.5", r"loss.gamma must lie in \[0, 1\], got 1.5"),
        ("iql", "loss.num_qvalue_nets=0", r"loss.num_qvalue_nets must lie in \[1, inf\), got 0"),
        ("crr", "loss.num_action_samples=0", r"num_action_samples must lie in \[1, inf\), got 0"),
        ("crr", "loss.weight_cap=0", r"weight_cap must lie in \(0, inf\), got 0"),
        ("bc", "network.hidden_sizes=[]", "network.hidden_sizes must be one or more positive widths"),
        ("bc", "network.hidden_sizes=[0]", "hidden_sizes must be positive widths"),
        ("bc", "data.action_limit=1.1", r"data.action_limit must lie in \(0, 1\], got 1.1"),
        ("bc", "data.return_steps=2", "data.return_steps must be 1 with algorithm=bc, as it has no returns; got 2"),
    ],
)
def test_impossible_settings_are_refused(name, override, message):
    with pytest.raises(SystemExit, match=f"^Impossible (.* )?settings: .*{message}"):
        check_settings(settings(name, [override]))


def test_a_run_of_another_script_is_named(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(1, {"a": torch.ones(1)}, {"run": {"experiment": "iql", "overrides": ["algorithm=iql", "seed=2"]}})
    found = resume_overrides("iql", [f"resume={tmp_path}"])
    assert found == [f"hydra.run.dir='{tmp_path}'", "algorithm=iql", "seed=2", f"resume={tmp_path}"]
    for other in ("crr", "edp_iql"):
        with pytest.raises(SystemExit, match="use examples/feed_forward.py algorithm=iql"):
            resume_overrides(other, [f"resume={tmp_path}"])
