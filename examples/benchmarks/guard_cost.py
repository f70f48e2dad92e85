"""What it costs to keep numbers that are not finite out of the state.

    python examples/benchmarks/guard_cost.py --output examples/benchmarks/results/guard_cost

The same networks and batches as in training_speed.py. Two compilations of one update differ by several percent, by
where their memory lies, more than the guard costs. So what is timed with and without it is an update whose loss takes
no time: gradients, norms, steps of all networks, averages, checks. The difference, as a share of a whole update, is
`cost`. "Without" takes every step and looks at nothing (whether the few norms are finite is still computed).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import torch
from harness import Case, interleave, report
from work import Work, edp_state, tiny_work

from torchrl_edp.training import TrainState
from torchrl_edp.training import state as state_module

CASES = [f"{name} {how}" for name in ("td3", "iql", "crr") for how in ("eager", "compiled")]
COLUMNS = ["case", "update_ms", "guarded_ms", "free_ms", "cost"]


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


def without_networks(state: TrainState, compile: bool) -> TrainState:
    """The same state with a loss that takes no time, and whose gradients are constant."""
    parameters = [parameter for optimizer in state.optimizers.values() for parameter in optimizer.parameters]
    directions = [torch.randn_like(parameter) for parameter in parameters]

    def loss(_batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = sum((p * direction).sum() for p, direction in zip(parameters, directions, strict=True))
        return total, {"loss": total.detach()}

    state._terms = [loss]
    state._step = state._compile() if compile else state._update
    return state


def run(work: Work, wanted: Sequence[str], copies: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time the wanted cases with and without the guard, and whole updates."""
    cases = []
    for case in wanted:
        name, how = case.split()
        compile = how == "compiled"
        cases.append(Case(f"edp_{case}", edp_state(work, name, compile=compile).update))
        for _ in range(copies):
            guarded, free = (without_networks(edp_state(work, name), compile) for _ in range(2))
            cases += [Case(f"{case} guarded", guarded.update), Case(f"{case} free", unguarded(free))]
    rows = interleave(cases, rounds=rounds, seconds=seconds)
    return [_summary(case, rows) for case in wanted]


def _summary(case: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds, means over the copies of a case."""
    names = {"update_ms": f"edp_{case}", "guarded_ms": f"{case} guarded", "free_ms": f"{case} free"}
    times = {key: mean(1e3 / row["per_second"] for row in rows if row["case"] == name) for key, name in names.items()}
    return {"case": f"edp_{case}", **times, "cost": (times["guarded_ms"] - times["free_ms"]) / times["update_ms"]}


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--copies", type=int, default=3, help="how often each case is built")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a case's turn")
    parser.add_argument("--output", help="where to write results, without suffix")
    parser.add_argument("--tiny", action="store_true", help="a size at which only the script is tested")
    args = parser.parse_args()
    work = tiny_work() if args.tiny else Work()
    report(run(work, args.cases, args.copies, args.rounds, args.seconds), COLUMNS, args.output)


if __name__ == "__main__":
    main()
