"""What a solver does, found without a model: the steps it calls it at, and its coefficients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torchrl_edp.diffusion.schedule import NoiseSchedule
from torchrl_edp.diffusion.solvers import SOLVERS


def model_steps(name: str, schedule: NoiseSchedule, **options: Any) -> list[float]:
    """The diffusion steps at which the solver ``name`` with these options calls its model, in their order.

    Examples:
        >>> model_steps("ddim", NoiseSchedule(100), num_calls=4)
        [99.0, 74.0, 49.0, 24.0]
    """
    steps: list[float] = []

    def model(action: float, step: float) -> float:
        steps.append(step)
        return 0.0

    solve: Any = SOLVERS[name]
    draws: dict[str, Any] = {"step_noise": defaultdict(float)} if "step_noise" in solve.__kwdefaults__ else {}
    solve(model, 0.0, schedule, **options | draws | {"bounds": None})
    return steps


def solver_table(name: str, schedule: NoiseSchedule, basis: Sequence[Any], **options: Any) -> list[Any]:
    """A deterministic solver as numbers: what its model is given and its result, by noise and predicted clean actions.

    A solver is linear in these: called on unit vectors in their place, it gives its coefficients.

    Args:
        name: of the solver.
        schedule: noise schedule.
        basis: the num_calls + 1 unit vectors, NumPy arrays or tensors, in float64.
        options: of the solver; ``num_calls`` is needed, ``bounds`` and ``policy_scale`` change nothing.

    Returns:
        num_calls + 1 vectors. The i-th holds the coefficients of the i-th call's noisy action, the last one those of
        the result; the first entry is that of the initial noise, the others are those of the clean actions that the
        calls imply (clipped to the bounds, if there are any), in their order.

    Examples:
        >>> import torch
        >>> solver_table("ddim", NoiseSchedule(100), torch.eye(2).double(), num_calls=1)
        [tensor([1., 0.], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64)]
    """
    inputs: list[Any] = []

    def model(action: Any, step: float) -> Any:
        inputs.append(action)
        time = (step + 1) / schedule.num_steps
        return (action - schedule.alpha(time) * basis[len(inputs)]) / schedule.sigma(time)

    result = SOLVERS[name](model, basis[0], schedule, **options | {"bounds": None, "policy_scale": 1.0})
    return [*inputs, result]
