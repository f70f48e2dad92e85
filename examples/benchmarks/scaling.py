"""How the cost of one update grows with batch size, width, solver calls and seeds, and that it does not with K.

    python examples/benchmarks/scaling.py --output examples/benchmarks/results/scaling
    python examples/benchmarks/scaling.py --axes linear vp --compile      # a compile takes 20 to 60 s per case

What is timed is ``TrainState.update`` with ``EDPTD3Loss``, the loss whose cost contains the sampler. One size at a time
moves away from the paper's: observation 17, action 6, batch 256, networks of 3 x 256 with Mish, K = 1000 in the linear
schedule, DPM-Solver-3 with 15 calls. The calls stay at 15 whatever K is, also where K is less: the solver works in
continuous time. Seeds beyond one are a ``MultiSeedLoss``'s. Values of one axis are interleaved: compare within an axis.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness import Case, interleave, report
from work import Work, edp_state, seeds_state, tiny_work

from torchrl_edp.training import NetworkSettings

AXES: dict[str, tuple[int, ...]] = {
    "batch": (64, 256, 1024),
    "width": (64, 128, 256, 512),
    "linear": (25, 100, 1000),  # this schedule needs K > 20
    "vp": (5, 100, 1000),
    "calls": (1, 5, 10, 15, 30),
    "seeds": (1, 2, 5),
}
COLUMNS = ["axis", "value", "per_second", "quartiles", "cost"]
NOTES = (
    "Updates per second, medians and quartiles over turns; `cost`: time of an update relative to the axis's first "
    "value. `linear` and `vp`: K in that schedule."
)


def resized(work: Work, axis: str, value: int) -> Work:
    """The same work with another size on one axis."""
    if axis == "batch":
        return replace(work, batch_size=value)
    if axis == "width":
        return replace(work, network=NetworkSettings(hidden_sizes=[value] * len(work.network.hidden_sizes)))
    if axis == "calls":
        return work.with_diffusion(num_calls=value)
    if axis == "seeds":
        return work
    return work.with_diffusion(num_steps=value, schedule=axis)


def measure(
    work: Work, axis: str, values: Sequence[int], *, compile: bool, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """A row of results per value; ``spread`` is that of the axis."""
    cases = []
    for value in values:
        if axis == "seeds" and value > 1:
            state = seeds_state(work, "td3", value, compile=compile)
        else:
            state = edp_state(resized(work, axis, value), "td3", compile=compile)
        about = {"axis": axis, "value": value, "compiled": compile}
        cases.append(Case(f"{axis} {value}", state.update, about=about))
    rows = interleave(cases, rounds=rounds, seconds=seconds)
    rates = [row["per_second"] for row in rows]
    for row in rows:
        row |= {"cost": rates[0] / row["per_second"], "spread": max(rates) / min(rates) - 1}
    return rows


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--compile", action="store_true", help="time compiled updates")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a case's turn")
    parser.add_argument("--device", help="torch device; the CPU by default")
    parser.add_argument("--output", help="where to write .json and .md, without suffix")
    parser.add_argument("--tiny", action="store_true", help="a small batch and network, two values an axis, two rounds")
    args = parser.parse_args()
    work = replace(tiny_work(), rows=1000) if args.tiny else Work(device=args.device)
    rounds, seconds = (2, 0.01) if args.tiny else (args.rounds, args.seconds)
    rows: list[dict[str, Any]] = []
    for axis in args.axes:
        values = AXES[axis][:2] if args.tiny else AXES[axis]
        rows += measure(work, axis, values, compile=args.compile, rounds=rounds, seconds=seconds)
    spreads = {row["axis"]: f"{row['axis']} {row['spread']:.1%}" for row in rows if row["axis"] in ("linear", "vp")}
    notes = f"{NOTES} Updates are {'compiled' if args.compile else 'eager'}."
    if spreads:
        notes += f"\n\nSpread over K (highest rate / lowest - 1): {', '.join(spreads.values())}."
    report(rows, COLUMNS, args.output, notes)


if __name__ == "__main__":
    main()
