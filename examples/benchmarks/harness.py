"""What the speed benchmarks share: interleaved timing, results as JSON lines, a JSON file and a Markdown table.

Machines are shared and noisy, so that only ratios from one interleaved run mean anything: every case gets a short turn
in every round, and a case's figure is the median over its turns, with the quartiles beside it.
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchrl_edp.training import set_matmul_precision
from torchrl_edp.training.run import processor

# Before the process's first product, after which AMX stays on: without it oneDNN's products are float32.
set_matmul_precision(onednn=True)
set_matmul_precision()


@dataclass
class Case:
    """One thing to time.

    Args:
        name: in the results.
        run: does the work once.
        onednn: whether float32 products go to oneDNN during this case's turns.
        about: further columns of the results.
    """

    name: str
    run: Callable[[], Any]
    onednn: bool = False
    about: dict[str, Any] = field(default_factory=dict)


def use_onednn(on: bool) -> None:
    """Send float32 matrix products to oneDNN, or back to the default library (MKL on x86).

    Raises:
        RuntimeError: if oneDNN would round them: what is timed would be the default library's.
    """
    set_matmul_precision(onednn=on)
    if on and torch.backends.mkldnn.matmul.fp32_precision != "bf16":  # type: ignore[attr-defined]
        raise RuntimeError("oneDNN computes no float32 products here: nothing would be timed under its name.")


def interleave(cases: Sequence[Case], *, rounds: int, seconds: float, warm_up: int = 3) -> list[dict[str, Any]]:
    """Time the cases in turns of about ``seconds``; rates per second, medians and quartiles over ``rounds`` turns."""
    repeats: list[int] = []
    for case in tqdm(cases, desc="warming up", leave=False):
        use_onednn(case.onednn)
        for _ in range(warm_up):  # compiles
            case.run()
        repeats.append(max(1, round(seconds * _rate(case, 2))))
    rates: list[list[float]] = [[] for _ in cases]
    shuffle = random.Random(0)
    for _ in tqdm(range(rounds), desc="measuring", leave=False):
        for index in shuffle.sample(range(len(cases)), len(cases)):  # no case always follows the same other
            use_onednn(cases[index].onednn)
            rates[index].append(_rate(cases[index], repeats[index]))
    use_onednn(False)
    return [_row(case, values) for case, values in zip(cases, rates, strict=True)]


def _rate(case: Case, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        case.run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return repeats / (time.perf_counter() - started)


def _row(case: Case, rates: list[float]) -> dict[str, Any]:
    low, median, high = torch.tensor(rates, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    row = {"case": case.name, **case.about, "onednn": case.onednn}
    return row | {"per_second": median.item(), "quartiles": [low.item(), high.item()], "turns": len(rates)}


def machine() -> dict[str, Any]:
    """The machine and the versions, as results name them."""
    about = {"processor": processor(), "threads": torch.get_num_threads(), "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "torchrl", "tensordict")}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table of these columns; numbers with three digits."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def report(rows: Sequence[dict[str, Any]], columns: Sequence[str], output: str | Path | None, notes: str = "") -> None:
    """Print a JSON line per row and a table; write both as ``output``.json and ``output``.md where one is given."""
    about = machine()
    for row in rows:
        print(json.dumps(row))
    text = f"{table(rows, columns)}\n\n" + (f"{notes}\n\n" if notes else "")
    text += ", ".join(f"{name} {value}" for name, value in about.items()) + ".\n"
    print(f"\n{text}")
    if output is not None:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps({"machine": about, "rows": list(rows)}, indent=1) + "\n")
        path.with_suffix(".md").write_text(text)
