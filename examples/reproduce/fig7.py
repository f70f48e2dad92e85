"""Figure 7: the score by the factor of the initial noise (deterministic sampling, App. C.4).

    python examples/reproduce/fig7.py
    python examples/reproduce/fig7.py --policies runs/edp_td3/*/*

No training: one trained policy per data set starts from noise that is scaled down, to nothing at 0. The paper holds
one action of little noise against selection at full noise: compare the left end of one panel with the right end of the
other.
"""

from __future__ import annotations

from sweep import Sweep

SWEEP = Sweep(
    "fig7",
    "EDP-TD3 by initial noise",
    "factor of the initial noise",
    (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
    {
        "one action": lambda factor: {"num_action_samples": 1, "initial_noise_scale": factor},
        "one of 10 candidates": lambda factor: {"num_action_samples": 10, "initial_noise_scale": factor},
    },
    '"the best performance is achieved at zero noise in most cases", and "a normal" start "performs worst"; '
    'it "still falls behind" energy-based action selection (Fig. 7).',
)

if __name__ == "__main__":
    SWEEP.main(__doc__)
