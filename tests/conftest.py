from __future__ import annotations

import os

import pytest
import torch

# several workers share the cores: one thread each (also for processes that tests start)
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _minari_folder(tmp_path_factory: pytest.TempPathFactory):
    """Minari's data sets in a folder of this session: tests neither see nor touch the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield
