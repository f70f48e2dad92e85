"""A data set's fingerprint changes with anything that training reads, and with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_helpers import arrays
from tensordict import TensorDict

from torchrl_edp.data import OfflineDataset, from_arrays

LAYOUT = [(3, True), (4, False), (2, True)]
KEYS = [
    "observation",
    "action",
    *(("next", key) for key in ("observation", "reward", "done", "terminated", "truncated")),
]


@pytest.fixture
def data() -> OfflineDataset:
    return from_arrays(**arrays(LAYOUT))


def changed(data: OfflineDataset, key, change: Callable) -> str:
    """The fingerprint with one entry changed."""
    return replace(data, transitions=data.transitions.clone().set(key, change(data.transitions[key]))).fingerprint()


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_every_number_counts(data, key):
    def one_more(value: torch.Tensor, index: int) -> torch.Tensor:
        value = value.clone().flatten()
        up = torch.tensor(torch.inf)
        value[index] = ~value[index] if value.dtype == torch.bool else torch.nextafter(value[index], up)
        return value.view_as(data.transitions[key])

    size = data.transitions[key].numel()
    prints = [changed(data, key, lambda value, i=i: one_more(value, i)) for i in range(size)]
    assert len({data.fingerprint(), *prints}) == 1 + size


def test_order_types_shapes_names_and_bounds_count(data):
    td = data.transitions
    prints = [data.fingerprint()]
    order = torch.arange(len(td))
    for rows in (order.flip(0), order[[1, 0, *range(2, len(td))]], order[:-1], torch.cat([order, order[-1:]])):
        prints.append(replace(data, transitions=td[rows]).fingerprint())
    for key in KEYS:
        flag = td[key].dtype == torch.bool
        prints.append(changed(data, key, lambda value, flag=flag: value.to(torch.uint8 if flag else torch.float64)))
        prints.append(changed(data, key, lambda value: value.unsqueeze(-1)))
        prints.append(replace(data, transitions=td.exclude(key)).fingerprint())
        prints.append(
            replace(
                data, transitions=td.clone().set(("extra", key[-1] if isinstance(key, tuple) else key), td[key])
            ).fingerprint()
        )
    swapped = td.clone().set("observation", td["next", "observation"]).set(("next", "observation"), td["observation"])
    prints.append(replace(data, transitions=swapped).fingerprint())
    for bound in ("action_low", "action_high"):
        prints.append(replace(data, **{bound: getattr(data, bound) * 2}).fingerprint())
    assert len(set(prints)) == len(prints)


def test_equal_data_have_equal_fingerprints(data):
    td = data.transitions
    keys = sorted(td.keys(True, True), key=str, reverse=True)
    mirrored = TensorDict({}, td.batch_size)
    for key in keys:
        mirrored[key] = torch.stack([td[key], td[key]], -1)[..., 0]  # not contiguous
    assert replace(data, transitions=mirrored).fingerprint() == data.fingerprint()
    assert replace(data, dataset_id="another name", env_id="Other-v0").fingerprint() == data.fingerprint()
    assert from_arrays(**arrays(LAYOUT)).fingerprint() == data.fingerprint()


def test_equal_to_what_another_process_printed_once(data):
    """Were it another, every stored checkpoint would refuse its own data."""
    assert data.fingerprint() == "1662c38749a4f2dcef1101488a5388281005cecdb7cee466c1924b37f23d8feb"


@pytest.mark.slow  # importing torch takes most of it
def test_equal_in_a_new_process(data):
    code = (
        "from data_helpers import arrays; from torchrl_edp.data import from_arrays; "
        f"print(from_arrays(**arrays({LAYOUT})).fingerprint())"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == data.fingerprint()
