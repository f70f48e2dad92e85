"""Which diffusion steps lead a trained policy: shares of the TD3 guidance gradient, by weighting.

    python examples/benchmarks/guidance_share.py runs/edp_td3/.../policy --data local/hopper/medium-expert-v0

Prints one JSON line per weighting and a Markdown table: the share of each tenth of the steps, from little noise to
much, over one large batch.
"""

from __future__ import annotations

import argparse
import json

import torch

from torchrl_edp import EDPTD3Loss
from torchrl_edp.data import load_dataset
from torchrl_edp.objectives import guidance_share_by_step
from torchrl_edp.training import load_policy

WEIGHTINGS = ("uniform", "alpha_bar", "snr")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy saved by a run, without suffix")
    parser.add_argument("--data", default="local/hopper/medium-expert-v0")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--no-clip", action="store_true", help="do not clip approximated actions (the paper)")
    args = parser.parse_args()
    torch.manual_seed(0)
    policy, data = load_policy(args.policy), load_dataset(args.data).transitions
    batch = data[torch.randint(len(data), (args.samples,))].clone()
    batch["observation"] = policy.observation_normalizer(batch["observation"])
    batch["action"] = policy.action_scaler(batch["action"])
    print(f"| weighting | {' | '.join(f'{10 * i}-{10 * i + 10} %' for i in range(10))} |\n|---|{'---|' * 10}")
    for weighting in WEIGHTINGS:
        selector = load_policy(args.policy).policy.requires_grad_()
        critics = len(next(iter(selector.qvalue_params.values(True, True))))
        loss = EDPTD3Loss(
            selector.actor_network,
            selector.qvalue_network,
            num_qvalue_nets=critics,
            guidance_weighting=weighting,
            clip_approximation=not args.no_clip,
        )
        loss.qvalue_network_params.data.update_(selector.qvalue_params.data)
        shares = guidance_share_by_step(loss, batch)
        print(f"| `{weighting}` | {' | '.join(f'{share:.1%}' for share in shares.tolist())} |")
        print(json.dumps({"weighting": weighting, "shares": [round(x, 5) for x in shares.tolist()]}))


if __name__ == "__main__":
    main()
