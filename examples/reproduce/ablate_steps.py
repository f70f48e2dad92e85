"""K = 1000 against K = 100 diffusion steps (App. C.6): what the chain's length changes, at the same cost an update.

    python examples/reproduce/ablate_steps.py

EDP-TD3; the noise schedule is scaled with K, so that both start from the same noise.
"""

from __future__ import annotations

from study import Study

STUDY = Study(
    "ablate_steps",
    "EDP-TD3 by the number of diffusion steps",
    {"K = 1000": ("edp_td3", ("diffusion.num_steps=1000",)), "K = 100": ("edp_td3", ("diffusion.num_steps=100",))},
)

if __name__ == "__main__":
    STUDY.main(__doc__)
