"""The paper's printed numbers: ``paper.csv``, by table, data set, case and metric."""

from __future__ import annotations

import csv
from pathlib import Path

FILE = Path(__file__).with_name("paper.csv")
Scores = dict[tuple[str, str, str], float]


def printed(table: str) -> Scores:
    """Scores of a table or figure by (data set, case, metric), in the paper's order; averages as it prints them.

    Args:
        table: ``"1"``, ``"2"``, ``"4"`` to ``"7"``, ``"C.5"`` or ``"Fig. 2"``.
    """
    with FILE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == table]
    return {(row["dataset"], row["case"], row["metric"]): float(row["score"]) for row in rows}
