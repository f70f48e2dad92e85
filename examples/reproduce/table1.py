"""Table 1: EDP against Diffusion-QL, at equal updates and at equal wall time.

    python examples/reproduce/table1.py                     # trains what is missing, one run a core; EDP is table 2's
    python examples/reproduce/table1.py --no-train          # the table of what is recorded
    python examples/reproduce/table1.py --data minari

Both are our TD3 loss under the same loop, data, rewards, networks, optimiser, averages and evaluation; EDP as it is by
default. What makes Diffusion-QL is what its paper (https://arxiv.org/abs/2208.06193) describes, in the form that its
authors' code (Zhendong-Wang/Diffusion-Policies-for-Offline-RL on GitHub) gives it by default:

- the policy's gradient goes through the whole chain from pure noise: ``guidance_start=noise``, by which the weights of
  the diffusion steps and ``clip_approximation`` have no say;
- the chain has 5 steps of the vp schedule, predicts noise, starts from noise of deviation 1, and is DDPM with the
  posterior's variance; the clean action that each step implies is clipped to the bounds, as our DDPM always does;
- minus Q over the other critic's mean |Q| is added to the diffusion loss, times eta = 1, its value for all of
  locomotion (its paper tunes eta in other domains: ``loss.alpha``);
- it acts by one of 50 candidates, drawn in proportion to exp Q, the smaller of the averaged critics.

Unlike its code: candidates come from the averaged policy, as EDP's do, one gradient clip serves all data sets, returns
are of several steps (``data.return_steps``), and observations and rewards are normalised. Learning rate and its decay
(there 3e-4, none), the policy's average (there 0.005 every fifth update) and the order of updates (there critics first)
are EDP's defaults, which were chosen for EDP.

"Stopped when EDP was done" is the same Diffusion-QL run, cut at the last evaluation that fits into the training seconds
(compiling included, evaluating not) of EDP's run of the same seed on the same machine. Its learning rate was not yet
decayed by then, which may cost it a little: ``optim.decay=none``, of both, leaves that out. Run EDP and Diffusion-QL
in one go under the same load, or wall time says nothing: runs are paired by the processor's name alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from runs import Ledger, Run
from scores import curves, evaluations
from study import Study, average, other_data, summary

EDP, DIFFUSION_QL, STOPPED = "EDP", "Diffusion-QL", "Diffusion-QL, stopped when EDP was done"
SETTINGS = (
    "loss.guidance_start=noise",
    "loss.approximation_steps=null",
    "loss.guidance_qvalue=random",
    "loss.qvalue_normalization=other",
    "loss.alpha=1",
    "loss.guidance_weight=1",
    "loss.action_reduction=mean",
    "diffusion.num_steps=5",
    "diffusion.schedule=vp",
    "diffusion.prediction=noise",
    "diffusion.initial_noise_scale=1",
    "diffusion.solver=ddpm",
    "diffusion.num_calls=null",
    "diffusion.solver_kwargs={}",
    "diffusion.policy_scale=1",
    "policy.num_action_samples=50",
    "policy.mode=sample",
    "policy.temperature=1",
    "policy.standardize=false",
    "policy.averaged_critics=true",
)


def stopped(row: Mapping[str, str], seconds: float, eval_iter: int) -> dict[str, Any] | None:
    """The results that a run had after ``seconds`` of training; None before its first evaluation.

    Args:
        row: of the ledger.
        seconds: of training.
        eval_iter: updates between its evaluations.
    """
    share = 1.0 if seconds >= float(row["training_seconds"]) else seconds / float(row["training_seconds"])
    updates = share * int(row["updates"])
    scores = [score for at, score in evaluations(row, eval_iter) if at <= updates]
    if not scores:
        return None
    rat, oms = curves(scores)
    return {"rat": rat[-1], "oms": oms[-1], "seconds": share * float(row["seconds"]), "updates": updates}


class Table1(Study):
    """Its third case is no run but a part of one."""

    def finish(
        self,
        cells: Mapping[tuple[str, str], Sequence[Run]],
        ledger: Ledger,
        datasets: Sequence[str],
        args: argparse.Namespace,
    ) -> None:
        """Write the table with the third case, and how far it came."""
        rows = [summary(case, dataset, runs, ledger) for (case, dataset), runs in cells.items()]
        parts = {dataset: equal_time(cells[EDP, dataset], cells[DIFFUSION_QL, dataset], ledger) for dataset in datasets}
        rows += [average(STOPPED, dataset, found) for dataset, found in parts.items()]
        came = [
            f"{statistics.mean(part['updates'] for part in found):,.0f} on {dataset}"
            for dataset, found in parts.items()
            if found
        ]
        notes = [f"Of {args.updates:,} updates, Diffusion-QL made in EDP's training time: {', '.join(came)}."]
        self.write(rows, datasets, args, [*(notes if came else ()), *other_data(cells, ledger)])


def equal_time(edp: Sequence[Run], diffusion_ql: Sequence[Run], ledger: Ledger) -> list[dict[str, Any]]:
    """Diffusion-QL's results when EDP of the same seed was done; of pairs that one kind of machine trained."""
    results = []
    for first, second in zip(edp, diffusion_ql, strict=True):
        rows = ledger.rows.get(first.key), ledger.rows.get(second.key)
        if rows[0] and rows[1] and rows[0]["processor"] == rows[1]["processor"]:
            seconds = float(rows[0]["training_seconds"])
            results.append(stopped(rows[1], seconds, second.settings.logger.eval_iter))
    return [result for result in results if result]


STUDY = Table1(
    "table1",
    "EDP against Diffusion-QL",
    {DIFFUSION_QL: ("edp_td3", SETTINGS), EDP: ("edp_td3", ())},
)

if __name__ == "__main__":
    STUDY.main(__doc__)
