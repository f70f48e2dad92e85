"""What CRR's advantage says under different baselines: a trained policy and its critics on data-set actions.

    python examples/benchmarks/crr_baseline.py runs/edp_crr/.../policy --data local/walker2d/medium-v0

Prints one JSON line per baseline and a Markdown table: mean and deviation of the advantage, its correlation with that
over ten actions sampled from the policy, and how many weights exp(advantage) reach the cap.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from trained import arguments, selector_and_batch, with_critics

from torchrl_edp import EDPCRRLoss
from torchrl_edp.objectives import weight_saturation

AROUND = {"sample_from": "approximation", "num_action_samples": 10}
BASELINES: dict[str, dict[str, Any]] = {
    "ten of N(approximated, 1)": AROUND,
    "ten of N(approximated, 0.3)": AROUND | {"sample_deviation": 0.3},
    "the approximated action": AROUND | {"num_action_samples": 1, "sample_deviation": 0.0},
    "one of the policy": {"num_action_samples": 1},
    "two of the policy": {"num_action_samples": 2},
    "four of the policy": {"num_action_samples": 4},
    "ten of the policy": {"num_action_samples": 10},
}
CAP = 20.0


def main() -> None:
    """Parse the command line, measure, print."""
    args = arguments(__doc__, data="local/walker2d/medium-v0", samples=4096).parse_args()
    torch.manual_seed(0)
    selector, batch = selector_and_batch(args)

    def advantage(**options: Any) -> Tensor:
        with torch.no_grad():
            return with_critics(EDPCRRLoss, selector, **options).actor_loss(batch.copy())[1]["advantage"]

    reference = advantage(**BASELINES["ten of the policy"])
    print("| baseline | mean | deviation | correlation | at the cap |\n|---|---|---|---|---|")
    for name, options in BASELINES.items():
        found = advantage(**options)
        correlation = torch.corrcoef(torch.stack([found, reference]))[0, 1]
        at_cap, _ = weight_saturation(found, 1.0, CAP)
        row = [float(value) for value in (found.mean(), found.std(), correlation, at_cap)]
        print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.2f} | {row[3]:.0%} |")
        keys = ("mean", "deviation", "correlation", "at_cap")
        print(json.dumps({"baseline": name} | dict(zip(keys, (round(value, 4) for value in row), strict=True))))


if __name__ == "__main__":
    main()
