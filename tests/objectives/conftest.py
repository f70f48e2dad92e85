from __future__ import annotations

import pytest
from loss_cases import CASES, LossCase


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request) -> LossCase:
    return request.param
