from __future__ import annotations

import os

import pytest
import torch

# several workers share the cores: one thread each (also for processes that tests start)
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the counted trials, marked long, and nothing else")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Counted trials (hundreds of kills, resumes, corruptions) are left out unless they are asked for."""
    long = {item for item in items if item.get_closest_marker("long")}
    chosen = [item for item in items if (item in long) == config.getoption("--long")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _minari_folder(tmp_path_factory: pytest.TempPathFactory):
    """Minari's data sets in a folder of this session: tests neither see nor touch the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield
