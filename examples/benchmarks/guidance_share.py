"""Which diffusion steps lead a trained policy: shares of the TD3 guidance gradient, by weighting.

    python examples/benchmarks/guidance_share.py runs/edp_td3/.../policy --data local/hopper/medium-expert-v0

Prints one JSON line per weighting and a Markdown table: the share of each tenth of the steps, from little noise to
much, over one large batch.
"""

from __future__ import annotations

import json

import torch
from trained import arguments, selector_and_batch, with_critics

from torchrl_edp import EDPTD3Loss
from torchrl_edp.objectives import guidance_share_by_step

WEIGHTINGS = ("uniform", "alpha_bar", "snr")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = arguments(__doc__, data="local/hopper/medium-expert-v0", samples=20_000)
    parser.add_argument("--no-clip", action="store_true", help="do not clip approximated actions (the paper)")
    args = parser.parse_args()
    torch.manual_seed(0)
    selector, batch = selector_and_batch(args)
    selector.requires_grad_()
    print(f"| weighting | {' | '.join(f'{10 * i}-{10 * i + 10} %' for i in range(10))} |\n|---|{'---|' * 10}")
    for weighting in WEIGHTINGS:
        options = {"guidance_weighting": weighting, "clip_approximation": not args.no_clip}
        loss = with_critics(EDPTD3Loss, selector, **options)
        shares = guidance_share_by_step(loss, batch)
        print(f"| `{weighting}` | {' | '.join(f'{share:.1%}' for share in shares.tolist())} |")
        print(json.dumps({"weighting": weighting, "shares": [round(x, 5) for x in shares.tolist()]}))


if __name__ == "__main__":
    main()
