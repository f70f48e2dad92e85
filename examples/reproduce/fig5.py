"""Figure 5: the score by the number of solver calls, DPM-Solver against DPM-Solver++.

    python examples/reproduce/fig5.py
    python examples/reproduce/fig5.py --policies runs/edp_td3/*/*

No training: one trained policy per data set acts with 3 to 30 calls of DPM-Solver-3 on the paper's uniform grid of
times, and of DPM-Solver++ 2M uniform in log-SNR, our default. Above, both act as in the paper, by one of 10 candidates
at full noise; below by one action from a quarter of the noise.
"""

from __future__ import annotations

from collections.abc import Callable

from points import LITTLE_NOISE, PAPER, Acting
from sweep import Sweep


def solver(name: str, acting: Acting, **options: object) -> Callable[[int], Acting]:
    """Settings as a function of the number of calls."""
    return lambda calls: acting | {"solver": name, "num_calls": calls, "solver_kwargs": options}


SWEEP = Sweep(
    "fig5",
    "EDP-TD3 by the number of solver calls",
    "calls of the noise network per action",
    (3, 5, 8, 10, 15, 20, 30),
    {
        "DPM-Solver-3, acting as in the paper": solver("dpm_solver", PAPER, order=3, spacing="time"),
        "DPM-Solver++ 2M, acting as in the paper": solver("dpm_solver_pp", PAPER, spacing="log_snr"),
        "DPM-Solver-3, one action of little noise": solver("dpm_solver", LITTLE_NOISE, order=3, spacing="time"),
        "DPM-Solver++ 2M, one action of little noise": solver("dpm_solver_pp", LITTLE_NOISE, spacing="log_snr"),
    },
    '"the performance increases as more steps of model calls are used" and "gradually plateaus after 15" (Fig. 5).',
)

if __name__ == "__main__":
    SWEEP.main(__doc__)
