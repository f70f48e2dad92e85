"""Figure 4: the score by the number of candidates from which energy-based action selection chooses.

    python examples/reproduce/fig4.py                                    # EDP-TD3 of table 2, trained if missing
    python examples/reproduce/fig4.py --policies runs/edp_td3/*/* --episodes 50

No training: one trained policy per data set acts with 1 to 200 candidates. The paper's policies, and EDP-TD3's, draw
them at full noise; from a quarter of it, where EDP-IQL starts by default, they hardly differ. Hence both.
"""

from __future__ import annotations

from points import FULL_NOISE, LITTLE_NOISE
from sweep import Sweep

SWEEP = Sweep(
    "fig4",
    "EDP-TD3 by the number of candidates",
    "candidates of energy-based action selection, N",
    (1, 2, 5, 10, 20, 50, 100, 200),
    {
        "full initial noise, as in the paper": lambda n: FULL_NOISE | {"num_action_samples": n},
        "a quarter of the initial noise": lambda n: LITTLE_NOISE | {"num_action_samples": n},
    },
    'the score "monotonically grows as the number of actions increases on 8 out of 9 tasks" (Fig. 4).',
    log=True,
)

if __name__ == "__main__":
    SWEEP.main(__doc__)
