"""The command line with which a run goes on."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore

from torchrl_edp.configs import SCHEMAS
from torchrl_edp.configs.cli import _with_folders
from torchrl_edp.configs.resume import resume_overrides
from torchrl_edp.training.checkpoint import CheckpointStore


def save(folder, overrides=("seed=3", "loss.expectile=0.9"), experiment="edp_iql"):
    store = CheckpointStore(folder / "checkpoints")
    return store.save(1, {"a": torch.ones(1)}, {"run": {"experiment": experiment, "overrides": list(overrides)}})


def test_a_folder_gives_its_own_settings_first(tmp_path):
    save(tmp_path, ["seed=3", "resume=auto", "resume_changed=true"])
    given = [f"resume={tmp_path}", "optim.gradient_steps=9"]
    assert resume_overrides("edp_iql", given) == [f"hydra.run.dir='{tmp_path}'", "seed=3", *given]


def test_flags_stay_before_the_overrides(tmp_path, monkeypatch):
    """Hydra's parser takes its overrides in one place only."""
    monkeypatch.chdir(tmp_path)
    save(folder := Path("runs/edp_iql/local/hopper/medium-expert-v0/seed0_2026-01-01_00-00-00"), ["seed=0"])
    flags = ["--cfg", "job"]
    found = resume_overrides("edp_iql", [*flags, f"resume={folder}"])
    assert found == [*flags, f"hydra.run.dir='{folder}'", "seed=0", f"resume={folder}"]
    found = resume_overrides("edp_iql", [*flags, "resume=auto"])
    assert found == [*flags, f"hydra.run.dir='{folder}'", "resume=auto"]


@pytest.mark.parametrize("overrides", [[], ["seed=1"], ["resume=null"], ["resume=auto", "hydra.run.dir=there"]])
def test_no_folder_to_be_found(overrides):
    assert resume_overrides("edp_iql", overrides) == []


@pytest.mark.parametrize("sweep", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_sweeps_are_not_resumed(tmp_path, sweep):
    """Their runs would go on in one folder, or start over."""
    save(tmp_path)
    for wanted in ("auto", tmp_path):
        with pytest.raises(SystemExit, match=f"resume={wanted}: resume one run at a time"):
            resume_overrides("edp_iql", [sweep, "seed=3,4", f"resume={wanted}"])
    assert resume_overrides("edp_iql", [sweep, "seed=3,4", "resume=null"]) == []


def test_auto_is_the_newest_run_of_the_data_set_and_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume_overrides("edp_iql", ["resume=auto"]) == []
    folder = tmp_path / "runs/edp_iql/local/hopper/medium-expert-v0"
    for seed, day in ((0, 1), (0, 2), (5, 3)):
        save(folder / f"seed{seed}_2026-01-0{day}_00-00-00")
    (folder / "seed0_2026-01-04_00-00-00").mkdir()  # a start that failed
    (found, *rest) = resume_overrides("edp_iql", ["resume=auto"])
    assert found.endswith("medium-expert-v0/seed0_2026-01-02_00-00-00'") and rest == ["resume=auto"]
    assert "seed5_2026-01-03" in resume_overrides("edp_iql", ["resume=auto", "seed=5"])[0]
    assert resume_overrides("edp_iql", ["resume=auto", "dataset=local/walker2d/medium-v0"]) == []


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("local/hopper/medium-expert-v0", "local/hopper/medium-expert-v0"),
        ("'local/hopper/medium-expert-v0'", "local/hopper/medium-expert-v0"),
        ("/data/my_pen/", "data/my_pen"),
        ("'/data/my pen'", "data/my pen"),
        ("../my_pen", "my_pen"),
        ("../../x/./y", "x/y"),
    ],
)
def test_auto_finds_what_hydra_made(tmp_path, monkeypatch, dataset, folder):
    """Whatever the data set's name is, its runs lie under runs/<experiment>."""
    monkeypatch.chdir(tmp_path)
    ConfigStore.instance().store(name="edp_iql", node=SCHEMAS["edp_iql"])
    arguments = _with_folders("edp_iql", [f"dataset={dataset}"])
    with initialize(version_base="1.3", config_path=None):
        hydra = compose("edp_iql", arguments, return_hydra_config=True).hydra
    assert Path(hydra.run.dir).parent == Path("runs/edp_iql", folder)
    save(Path(hydra.run.dir))
    assert resume_overrides("edp_iql", ["resume=auto", f"dataset={dataset}"])[0] == f"hydra.run.dir='{hydra.run.dir}'"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="intact checkpoint"):
        resume_overrides("edp_iql", [f"resume={tmp_path}"])
    path = save(tmp_path, experiment="edp_td3")
    with pytest.raises(SystemExit, match="use examples/edp_td3.py"):
        resume_overrides("edp_iql", [f"resume={tmp_path}"])
    (path / "state.json").write_text("{}")
    with pytest.raises(SystemExit, match="state.json"):
        resume_overrides("edp_iql", [f"resume={tmp_path}"])
