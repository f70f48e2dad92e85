"""All results on one page, in the paper's order, with the paper's numbers.

python examples/reproduce/report.py    # writes results/report.md
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paper import Scores, printed
from runs import Ledger
from study import RESULTS


@dataclass(frozen=True)
class Part:
    """A section of the page.

    Args:
        name: of results, and of the script but for those of ``command``.
        title: what it is in the paper.
        question: that it answers.
        tables: the paper's, whose numbers are shown.
        command: script and arguments.
    """

    name: str
    title: str
    question: str
    tables: tuple[str, ...] = ()
    command: str = ""


PARTS = (
    Part("fig2", "Figure 2", "How fast are training and acting, and what makes them so?", ("Fig. 2",)),
    Part(
        "table1",
        "Tables 1 and 4",
        "Is EDP as good as Diffusion-QL, after as many updates and as much time?",
        ("1", "4"),
    ),
    Part("table2", "Table 2", "Is a diffusion policy better than a feed-forward one by the same algorithm?", ("2",)),
    *(
        Part(
            f"tuning_{name}", f"Tuning of {name.upper()}", "How strong should the RL term be?", (), f"tuning.py {name}"
        )
        for name in ("td3", "crr", "iql")
    ),
    Part("tuning_best", "Table 2, tuned", "And with as much tuning on both sides?", (), "tuning.py best"),
    Part("fig3", "Figure 3 and Table 5", "How far is the best evaluation from the average of the last ten?", ("5",)),
    Part("fig4", "Figure 4", "How many candidates should energy-based action selection have?"),
    Part("fig5", "Figure 5", "How many calls does DPM-Solver need?"),
    Part("table6", "Table 6", "Does energy-based action selection help a feed-forward policy?", ("6",)),
    *(
        Part(f"table6-{name}", f"The same with {name.upper()}", "Does it help a Gaussian?", (), f"table6.py {name}")
        for name in ("crr", "iql")
    ),
    Part("fig6", "Figure 6", "Does it help to scale the policy's score?"),
    Part("fig7", "Figure 7", "Does it help to start from less noise?"),
    Part("ablate_width", "Appendix C.5", "Is a wider feed-forward network as good as EDP?", ("C.5",)),
    Part("table7", "Table 7", "What does action approximation cost in score?", ("7",)),
    Part("ablate_steps", "K = 1000 or 100", "Do more diffusion steps, at the same cost an update, pay?"),
    Part("ablate_likelihood", "Equations 12 and 13", "Which form of the likelihood should IQL use?"),
)
# Minari's ports of the paper's data sets
PORTS = {
    **{
        f"D4RL/antmaze/{name}-v1": f"antmaze-{name}-v0"
        for name in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    **{f"D4RL/pen/{name}-v2": f"pen-{name}" for name in ("human", "cloned")},
    **{f"D4RL/kitchen/{name}-v2": f"kitchen-{name}-v0" for name in ("complete", "partial", "mixed")},
}
DIFFERENCES = {
    "local/": "`local/*` are not the paper's data: this library collects them itself, with policies of its own, in "
    "Gymnasium's v5 environments, whose rewards and physics differ from D4RL's v2, and fewer transitions. Scores "
    "compare within a table only; what can be compared with the paper is which column is ahead.",
    "mujoco/": "`mujoco/*` are not D4RL's v2 sets of the same names: Minari's were collected anew, with other policies "
    "and in Gymnasium's v5 environments. Scores compare within a table only.",
    "D4RL/pointmaze/": "`D4RL/pointmaze/*` have no counterpart in the paper.",
    "D4RL/antmaze/": "`D4RL/antmaze/*` are ports: collected anew by D4RL's recipe in Gymnasium-Robotics' mazes, where "
    "the ant is observed otherwise and stays on after it has reached the goal.",
    "D4RL/pen/": "`D4RL/pen/*` are ports: D4RL's transitions, evaluated in Gymnasium-Robotics' AdroitHandPen-v1.",
    "D4RL/kitchen/": "`D4RL/kitchen/*` are ports to FrankaKitchen-v1, which observes 59 values where D4RL's has 60.",
}
SLIPS = {
    "2": "The paper's CRR FF column equals its CQL column outside of antmaze, so it is probably not CRR's.",
    "5": "Four OMS averages are not those of the rows (kitchen, adroit and antmaze with TD3, antmaze with IQL), and "
    "two rows of IQL have an OMS below their RAT.",
}


def section(part: Part, folder: Path) -> str:
    """One section: our results or how to get them, then the paper's."""
    command = f"`python examples/reproduce/{part.command or part.name + '.py'}`"
    blocks = [f"## {part.title}", f"{part.question} {command}"]
    results = folder / f"{part.name}.md"
    if results.exists():
        body = results.read_text().strip().splitlines()
        blocks += ["\n".join(body[1:] if body[0].startswith("# ") else body).strip()]
        if results.with_suffix(".png").exists():
            blocks.append(f"![{part.title}]({part.name}.png)")
        datasets = column(results.with_suffix(".csv"), "dataset")
        blocks += [text for start, text in DIFFERENCES.items() if any(name.startswith(start) for name in datasets)]
    others = sorted(folder.glob(f"{part.name}_*.md"))
    if not results.exists() and not others:
        blocks.append(f"Nothing is recorded yet: run {command}.")
    if others:
        links = [f"[{path.stem.removeprefix(part.name + '_')}]({path.name})" for path in others]
        blocks.append(f"With other settings: {', '.join(links)}.")
    for table in part.tables:
        scores = printed(table)
        beside = ports(results.with_suffix(".csv"), scores)
        if beside:
            blocks += ["Ours on the ports, beside the paper:", beside]
        blocks += [f"The paper ({_where(table)}):", grid(scores)]
        blocks += [SLIPS[table]] if table in SLIPS else []
    return "\n\n".join(blocks)


def _where(table: str) -> str:
    return table if table.startswith("Fig") else f"App. {table}" if table.startswith("C") else f"Table {table}"


def column(path: Path, name: str) -> list[str]:
    """A column of a CSV without repetitions; nothing where there is no such file or column."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(dict.fromkeys(row[name] for row in csv.DictReader(file) if name in row))


def grid(scores: Scores) -> str:
    """The paper's numbers: data sets down, cases and metrics across."""
    columns = list(dict.fromkeys((case, metric) for _, case, metric in scores))
    lines = ["| data | " + " | ".join(f"{case}, {metric}" for case, metric in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for dataset in dict.fromkeys(dataset for dataset, _, _ in scores):
        cells = [scores.get((dataset, *names)) for names in columns]
        lines.append(f"| {dataset} | " + " | ".join("–" if cell is None else _number(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _number(score: float) -> str:
    return f"{score:.2f}".removesuffix("0")  # one decimal of a score, two of a rate: as printed


def ports(path: Path, scores: Scores) -> str:
    """Our scores on Minari's ports beside the paper's on the originals; empty where there are none."""
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        # of several rows, as of a curve, the last one
        ours = {(row["dataset"], row.get("case")): row for row in csv.DictReader(file) if row.get("dataset") in PORTS}
    lines = []
    for (dataset, case), row in ours.items():
        for (original, theirs, metric), score in scores.items():
            name = "oms" if metric == "OMS" else "rat"
            if original.startswith(PORTS[dataset]) and theirs == case and row.get(name):
                cells = dataset, case, name.upper(), f"{float(row[name]):.1f}", f"{_number(score)}, {metric}"
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["| data | case | score | ours | the paper |", "|---|---|---|---|---|", *lines]) if lines else ""


def page(folder: Path) -> str:
    """The whole page."""
    rows = list(Ledger(folder / "runs.csv").rows.values())
    hours = sum(float(row["seconds"]) for row in rows) / 3600
    machines = ", ".join(sorted({row["processor"] for row in rows}))
    made = f"{len(rows)} training runs, {hours:.1f} hours of them, on {machines}" if rows else "No training runs so far"
    intro = [
        "# The paper's experiments",
        "Efficient Diffusion Policies for Offline Reinforcement Learning (https://arxiv.org/abs/2305.20081), run by "
        f"`examples/reproduce/`. {made}: `runs.csv` has each of them, with its settings and all its evaluations.",
        "RAT is the mean of the last ten evaluations, OMS the best of all. The paper's scores are on D4RL, after "
        "2,000,000 updates (1,000,000 outside of locomotion), over five seeds. Local data are none of its: what can be "
        "checked there is whether its claims hold; below each table is what differs.",
    ]
    return "\n\n".join([*intro, *(section(part, folder) for part in PARTS)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, write ``report.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results and of the page")
    folder = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.md"
    path.write_text(page(folder))
    print(path)


if __name__ == "__main__":
    main()
