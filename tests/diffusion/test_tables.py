"""A solver's table of coefficients, applied by hand, gives what the solver gives."""

from __future__ import annotations

import pytest
import torch
from diffusion_helpers import SIZE, noise_model

from torchrl_edp.diffusion import SOLVERS, NoiseSchedule, model_steps, solver_table

CASES = [
    *[("dpm_solver", {"order": order, "spacing": s}) for order in (1, 2, 3) for s in ("time", "log_snr")],
    *[("dpm_solver_pp", {"end_time": e, "spacing": s}) for e in (None, 0.0) for s in ("time", "log_snr")],
    ("ddim", {"end_time": 0.02}),
    ("ddim", {}),
]


@pytest.mark.parametrize("bounds", [None, (-0.3, 0.5)])
@pytest.mark.parametrize("calls", [1, 2, 6, 15])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_table_is_the_solver(name, options, calls, bounds):
    schedule = NoiseSchedule(50)
    options = options | {"num_calls": calls, "initial_noise_scale": 0.7, "policy_scale": 1.2}
    noise = torch.randn(8, SIZE, dtype=torch.float64)
    expected = SOLVERS[name](noise_model, noise, schedule, bounds=bounds, **options)
    table = solver_table(name, schedule, torch.eye(calls + 1).double(), **options)
    terms = [noise]
    for row, step in zip(table, model_steps(name, schedule, **options), strict=False):
        time = (step + 1) / 50
        action = sum(share * term for share, term in zip(row, terms, strict=False))
        clean = (action - schedule.sigma(time) * 1.2 * noise_model(action, step)) / schedule.alpha(time)
        terms.append(clean if bounds is None else clean.clamp(*bounds))
    result = sum(share * term for share, term in zip(table[-1], terms, strict=True))
    torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-8)
    for i, row in enumerate(table):
        assert not row[i + 1 :].any(), "no call knows what comes after it"
