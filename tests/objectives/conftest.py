from __future__ import annotations

import pytest
from loss_cases import CASES, LossCase


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> LossCase:
    return request.param


@pytest.fixture(params=[(case, setting) for case in CASES for setting in case.over_batch], ids=lambda p: p[0].name)
def case_over_batch(request) -> tuple[LossCase, dict]:
    """A case with each of the ways in which samples of a batch depend on one another."""
    return request.param
