from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

LONG_RESULTS = Path(__file__).parent / "long_results.json"

# several workers share the cores: one thread each (also for processes that tests start)
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# read once per process, before oneDNN's first product: with AMX they would be rounded
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")


@pytest.fixture
def no_compiler():
    """A machine without a compiler for kernels."""
    from torch._inductor import config, cpp_builder  # after what is set above

    from torchrl_edp.modules import kernels

    cpp_builder.cpp_compiler_search.cache_clear()
    kernels.library.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield
    cpp_builder.cpp_compiler_search.cache_clear()
    kernels.library.cache_clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the counted trials, marked long, and nothing else")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Counted trials (hundreds of kills, resumes, corruptions) are left out unless they are asked for."""
    long = {item for item in items if item.get_closest_marker("long")}
    chosen = [item for item in items if (item in long) == config.getoption("--long")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what the counted trials found in ``tests/long_results.json``."""
    if "long" not in report.keywords or report.when != "call":
        return
    results = json.loads(LONG_RESULTS.read_text()) if LONG_RESULTS.exists() else {}
    entry = {"outcome": report.outcome, "seconds": round(report.duration), **dict(report.user_properties)}
    results[report.nodeid] = {**entry, "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    LONG_RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _minari_folder(tmp_path_factory: pytest.TempPathFactory):
    """Minari's data sets in a folder of this session: tests neither see nor touch the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield
