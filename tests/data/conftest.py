from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_helpers import write_policy

from torchrl_edp.data import BehaviorPolicy


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Minari folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def behavior_dir(tmp_path: Path) -> Path:
    """Random policies for the counting environment, ``count-medium`` and ``count-expert``."""
    folder = tmp_path / "behaviors"
    folder.mkdir()
    for seed, level in enumerate(("medium", "expert")):
        torch.manual_seed(seed)
        write_policy(folder, f"count-{level}", BehaviorPolicy(2, 1, (4,)))
    return folder
