"""Figure 2: how fast EDP trains and acts, without DPM-Solver, without action approximation, and as Diffusion-QL.

    python examples/reproduce/fig2.py
    python examples/reproduce/fig2.py --steps 1000 --forms eager    # the chains as long as EDP's diffusion

The work is shaped like walker2d's: observation 17, action 6, batch 256, networks of 3 x 256 with Mish. EDP has K = 1000
diffusion steps and takes 15 calls of DPM-Solver-3, to train and to act. DDPM, which EDP without DPM-Solver and
Diffusion-QL sample by, takes one call a step; its ``--steps`` are 100 by default. The paper does not say what they
were: it gives 5 to 100 for Diffusion-QL, and its 18.67 actions a second of Diffusion-QL in PyTorch would be 18,670
calls of a network a second, one after the other, had it been 1000. Diffusion-QL's own setting is 5: shown too.

Acting is one observation and ten candidates at a time, of which one is drawn by its energy (the paper's EAS), in all
cases; environments take no part in it. Compiled, an update or a policy is one graph; of chains, which the compiler
would unroll, only the network is compiled if they have more than 30 calls, or more than 15 to differentiate.
Cases are timed in turns; the table has medians. Machines differ: read the ratios.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # the speed benchmarks' cases and clock

from acting_speed import SETTINGS, acting, make_policy
from harness import Case, interleave, machine
from paper import printed
from study import COLORS, RESULTS
from training_speed import CHAIN, diffusion_ql
from work import Work, edp_state, tiny_work

from torchrl_edp.training import DiffusionSettings, SelectionSettings
from torchrl_edp.training.setup import MOST_CALLS

TITLE = "Speed of EDP, of what it leaves out, and of Diffusion-QL"
OWN, DIFFUSION_QL = "Diffusion-QL, 5 steps", "Diffusion-QL"
NO_SOLVER, NO_APPROXIMATION, EDP = "EDP without DPM-Solver", "EDP without action approximation", "EDP"
CASES = (OWN, DIFFUSION_QL, NO_SOLVER, NO_APPROXIMATION, EDP)
LONGEST_DIFFERENTIATED = 15  # calls of the network in one compiled graph
COLUMNS = ("work", "case", "form", "per_second", "low", "high", "ratio", "paper", "paper_ratio")


def ddpm(work: Work, steps: int) -> Work:
    """The same work with DDPM over all of so many steps."""
    return work.with_diffusion(num_steps=steps, schedule="vp", solver="ddpm", num_calls=None)


def updates(work: Work, steps: int, *, compile: bool) -> dict[str, Callable[[], Any]]:
    """What builds the update of every case."""

    def form(longest: int) -> dict[str, bool]:
        whole = steps <= longest
        return {"compile": compile and whole, "compile_network": compile and not whole}

    return {
        OWN: partial(diffusion_ql, work, 5, compile=compile),
        DIFFUSION_QL: partial(diffusion_ql, work, steps, **form(LONGEST_DIFFERENTIATED)),
        NO_SOLVER: partial(edp_state, ddpm(work, steps), "td3", **form(MOST_CALLS)),
        NO_APPROXIMATION: partial(edp_state, work, "td3", compile=compile, **CHAIN),
        EDP: partial(edp_state, work, "td3", compile=compile),
    }


def policy(work: Work, diffusion: DiffusionSettings, *, compile: bool) -> Callable[[], Any]:
    """What takes one action."""
    SETTINGS["fig2"] = (diffusion, SelectionSettings(num_action_samples=10))
    acts: Any = make_policy("fig2", work.network)
    if compile and (diffusion.num_calls or diffusion.num_steps) > MOST_CALLS:
        acts.policy.actor_network.module.noise_network.compile()
    elif compile:
        acts = torch.compile(acts)
    return acting(acts, 1)


def measure(work: Work, steps: int, forms: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """A row per work, case and form, with ratios to Diffusion-QL; options are those of ``interleave``."""
    samplers = {OWN: ddpm(work, 5), DIFFUSION_QL: ddpm(work, steps), NO_SOLVER: ddpm(work, steps)}
    rows = []
    for form in forms:
        compile = form == "compiled"
        training = [Case(name, make().update) for name, make in updates(work, steps, compile=compile).items()]
        actors = [Case(name, policy(work, samplers.get(name, work).diffusion, compile=compile)) for name in CASES]
        for what, cases in (("training", training), ("acting", actors)):
            timed = {row["case"]: row for row in interleave(cases, **options)}
            base = timed[DIFFUSION_QL]["per_second"]
            rows += [
                {
                    "work": what,
                    "case": name,
                    "form": form,
                    "per_second": row["per_second"],
                    "low": row["quartiles"][0],
                    "high": row["quartiles"][1],
                    "ratio": row["per_second"] / base,
                    **paper(what, name),
                }
                for name, row in timed.items()
            ]
    return rows


def paper(work: str, case: str) -> dict[str, float | None]:
    """The paper's rate, and its ratio to its Diffusion-QL in JAX, as the rest of it is; None where it has none."""
    rates = {name: rate for (what, name, _), rate in printed("Fig. 2").items() if what == work}
    rate = rates.get("Diffusion-QL (JAX)" if case == DIFFUSION_QL else case)
    return {"paper": rate, "paper_ratio": rate and rate / rates["Diffusion-QL (JAX)"]}


def table(rows: Sequence[Mapping[str, Any]], steps: int) -> str:
    """Rates and ratios, ours by form and the paper's."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    text = []
    for what, unit in (("training", "Updates per second"), ("acting", "Actions per second")):
        head = ["case", *forms, *(f"ratio, {form}" for form in forms), "paper", "ratio, paper"]
        text += [f"{unit}, and ratios to Diffusion-QL of {steps} steps:\n"]
        text += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for case in CASES:
            found = [row for row in rows if (row["work"], row["case"]) == (what, case)]
            cells = [_rate(row["per_second"]) for row in found] + [f"{row['ratio']:.2f}" for row in found]
            theirs = found[0]["paper"], found[0]["paper_ratio"]
            cells += [f"{theirs[0]:.2f}", f"{theirs[1]:.2f}"] if theirs[0] else ["–", "–"]
            text.append(f"| {case} | {' | '.join(cells)} |")
        text.append("")
    about = ", ".join(f"{name} {value}" for name, value in machine().items())
    return "\n".join([*text, f"Ours: {about}. The paper: one GPU, JAX; its Diffusion-QL in PyTorch: 4.66 and 18.67."])


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def draw(rows: Sequence[Mapping[str, Any]], path: Path, steps: int) -> None:
    """Bars of rates on a logarithmic axis, ours beside the paper's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    forms = list(dict.fromkeys(row["form"] for row in rows))
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    for panel, (what, label) in zip(
        figure.subplots(1, 2), (("training", "updates per second"), ("acting", "actions per second")), strict=True
    ):
        bars = [
            (f"ours, {form}", [row["per_second"] for row in rows if (row["work"], row["form"]) == (what, form)])
            for form in forms
        ]
        bars.append(("the paper, its GPU", [paper(what, case)["paper"] or 0.0 for case in CASES]))
        width = 0.8 / len(bars)
        for i, (name, rates) in enumerate(bars):
            at = [place + (i - (len(bars) - 1) / 2) * width for place in range(len(CASES))]
            color = COLORS[-1] if i == len(forms) else COLORS[i]
            drawn = panel.barh(at, rates, width, label=name, color=color)
            panel.bar_label(drawn, [_rate(rate) if rate else "" for rate in rates], fontsize=6, padding=2)
        names = [f"{case}, {steps} steps" if case in (DIFFUSION_QL, NO_SOLVER) else case for case in CASES]
        panel.set_yticks(range(len(CASES)), names if what == "training" else [""] * len(CASES), fontsize=8)
        panel.set_xscale("log")
        shown = [rate for _, rates in bars for rate in rates if rate]
        panel.set_xlim(10 ** math.floor(math.log10(min(shown))), 2 * max(shown))
        panel.xaxis.set_minor_formatter("")
        panel.invert_yaxis()
        panel.set_xlabel(f"{label} (other machines: read ratios)", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panel.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    figure.suptitle(TITLE, fontsize=10)
    FigureCanvasAgg(figure).print_figure(path, dpi=160, format="png")


def main() -> None:
    """Parse the command line, measure, write ``fig2.csv``, ``.md`` and ``.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="of DDPM's chains")
    parser.add_argument("--forms", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a case's turn")
    parser.add_argument("--tiny", action="store_true", help="a size at which only the script is tested")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of table and picture")
    args = parser.parse_args()
    work = tiny_work() if args.tiny else Work()
    rows = measure(work, args.steps, args.forms, rounds=args.rounds, seconds=args.seconds)
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "fig2.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = f"# {TITLE}\n\n{table(rows, args.steps)}"
    (args.output / "fig2.md").write_text(text + "\n")
    print(text)
    draw(rows, args.output / "fig2.png", args.steps)


if __name__ == "__main__":
    main()
