import sys
from pathlib import Path

import pytest

# the scripts import each other by name
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "reproduce"))

from reproduce_helpers import make_policy

from torchrl_edp.data import load_dataset


@pytest.fixture
def saved(tmp_path):
    return make_policy(tmp_path / "run")


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("local/hopper/medium-v0", num_steps=2000).dataset_id
