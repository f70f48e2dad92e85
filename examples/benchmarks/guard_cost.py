"""What it costs to keep numbers that are not finite out of the state: updates with the guard and without.

    python examples/benchmarks/guard_cost.py --output examples/benchmarks/results/guard_cost

The same work as in training_speed.py. "unguarded" takes every step and looks at nothing (whether the few norms are
finite is still computed); `cost` is the share of a guarded update that the guard takes. Two compilations of the same
update differ by several percent, by where their memory lies: each case is built several times, and a rate is the mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from harness import Case, interleave, report
from work import Work, edp_state, tiny_work

from torchrl_edp.training import TrainState
from torchrl_edp.training import state as state_module

CASES = [f"{name} {how}" for name in ("td3", "iql", "crr") for how in ("eager", "compiled")]
COLUMNS = ["case", "per_second", "unguarded", "cost", "spread"]


def unguarded(state: TrainState) -> Callable[[], Any]:
    """``state.update`` without the guard; the update is traced at its first call, hence the exchange around all."""

    def update() -> None:
        kept = state_module._go
        state_module._go = lambda valid: (True, None)
        try:
            state.update()
            state._unchecked.clear()
        finally:
            state_module._go = kept

    state.check_every = 10**9
    return update


def run(work: Work, wanted: Sequence[str], copies: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time the wanted cases with and without the guard."""
    cases = []
    for case in wanted:
        name, how = case.split()
        for _ in range(copies):
            guarded, free = (edp_state(work, name, compile=how == "compiled") for _ in range(2))
            cases.append(Case(f"edp_{case}", guarded.update))
            cases.append(Case(f"edp_{case}, unguarded", unguarded(free)))
    rows = interleave(cases, rounds=rounds, seconds=seconds)
    return [_summary(f"edp_{case}", rows) for case in wanted]


def _summary(case: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean rates over the copies of a case, the spread among copies, and what the guard costs."""
    guarded, free = (
        [row["per_second"] for row in rows if row["case"] == name] for name in (case, f"{case}, unguarded")
    )
    rate, other = mean(guarded), mean(free)
    spread = max(max(rates) / min(rates) - 1 for rates in (guarded, free))
    return {"case": case, "per_second": rate, "unguarded": other, "cost": 1 - rate / other, "spread": spread}


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--copies", type=int, default=4, help="how often each case is built")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a case's turn")
    parser.add_argument("--output", help="where to write results, without suffix")
    parser.add_argument("--tiny", action="store_true", help="a size at which only the script is tested")
    args = parser.parse_args()
    work = tiny_work() if args.tiny else Work()
    report(run(work, args.cases, args.copies, args.rounds, args.seconds), COLUMNS, args.output)


if __name__ == "__main__":
    main()
