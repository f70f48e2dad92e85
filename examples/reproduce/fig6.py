"""Figure 6: the score by the factor of the predicted noise (policy scaling, App. C.4).

    python examples/reproduce/fig6.py
    python examples/reproduce/fig6.py --policies runs/edp_td3/*/*

No training: one trained policy per data set draws one action, without selection, from a policy that is sharper (above
1) or wider (below): at full initial noise, as in the paper, and at a quarter of it.
"""

from __future__ import annotations

from points import FULL_NOISE, LITTLE_NOISE, ONE
from sweep import Sweep

SWEEP = Sweep(
    "fig6",
    "EDP-TD3 by policy scale",
    "factor of the predicted noise",
    (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0),
    {
        "full initial noise, as in the paper": lambda scale: FULL_NOISE | ONE | {"policy_scale": scale},
        "a quarter of the initial noise": lambda scale: LITTLE_NOISE | {"policy_scale": scale},
    },
    '"the best performance is achieved when" the factor is 1: "sampling from a scaled policy does not work" (Fig. 6).',
)

if __name__ == "__main__":
    SWEEP.main(__doc__)
