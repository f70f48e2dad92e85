"""What a solver or a setting cannot be is refused when it is given, not when it is first used."""

from __future__ import annotations

import inspect
from typing import Any

from torchrl_edp.diffusion.schedule import NoiseSchedule
from torchrl_edp.diffusion.solvers import SOLVERS
from torchrl_edp.diffusion.tables import model_steps

_COMMON = ("num_calls", "bounds", "initial_noise_scale", "policy_scale")


def check_interval(name: str, value: Any, interval: str) -> None:
    """Refuse a number outside of an interval, and NaN.

    Args:
        name: of the setting.
        value: the number.
        interval: in mathematical notation: ``"[0, 1]"``, ``"(0, inf)"``.

    Raises:
        ValueError: with name, interval and value.

    Examples:
        >>> check_interval("tau", 1.0, "[0, 1]")
        >>> check_interval("tau", 1.0, "[0, 1)")
        Traceback (most recent call last):
        ValueError: tau must lie in [0, 1), got 1.0.
    """
    low, high = map(float, interval[1:-1].split(","))
    above = low <= value if interval[0] == "[" else low < value
    below = value <= high if interval[-1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} must lie in {interval}, got {value}.")


def check_solver(name: str, schedule: NoiseSchedule, **options: Any) -> None:
    """Refuse a solver that does not exist, options it does not have, and combinations it cannot run.

    The solver itself decides: it runs once on plain floats.

    Args:
        name: one of ``torchrl_edp.diffusion.SOLVERS``.
        schedule: the noise schedule that it will run on.
        **options: its keyword arguments.

    Raises:
        ValueError: with what would be right.

    Examples:
        >>> check_solver("ddim", NoiseSchedule(100), num_calls=10)
        >>> check_solver("ddpm", NoiseSchedule(100), num_calls=10)
        Traceback (most recent call last):
        ValueError: ddpm takes one call per diffusion step: expected num_calls=100, got 10.
    """
    if name not in SOLVERS:
        raise ValueError(f"Unknown solver {name!r}: choose one of {sorted(SOLVERS)}.")
    parameters = inspect.signature(SOLVERS[name]).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            own = [choice for choice in known if choice not in _COMMON]
            raise ValueError(f"Solver {name!r} has no option {option!r}: choose from {own}.")
    calls = options.get("num_calls")
    try:
        lowest = min(model_steps(name, schedule, **options))
    except TypeError as error:
        raise ValueError(f"Solver {name!r} cannot take the options {options}: {error}.") from error
    if lowest < -1e-6:
        raise ValueError(
            f"With num_calls={calls} {name} asks for the noise at diffusion step {lowest:.3g}, below the first one, 0: "
            f"choose num_calls of at most K = {schedule.num_steps}, or end_time of at least 1 / K."
        )
    if calls is not None and options.get("order", 1) > calls:
        raise ValueError(
            f"A step of order {options['order']} takes as many calls, but num_calls is {calls}: choose an order of at "
            f"most {calls}, or more calls."
        )
