"""A feed-forward network twice as wide against EDP (App. C.5): is it only the size of the network?

python examples/reproduce/ablate_width.py
"""

from __future__ import annotations

from study import Study

STUDY = Study(
    "ablate_width",
    "TD3+BC with wider networks, and EDP-TD3",
    {
        "FF, 3 x 256": ("td3_bc", ()),
        "FF, 3 x 512": ("td3_bc", ("network.hidden_sizes=[512,512,512]",)),
        "EDP, 3 x 256": ("edp_td3", ()),
    },
)

if __name__ == "__main__":
    STUDY.main(__doc__)
