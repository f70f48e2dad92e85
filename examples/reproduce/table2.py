"""Table 2: is a diffusion policy better than a feed-forward one under the same algorithm?

    python examples/reproduce/table2.py                     # 72 runs: trains what is missing, one run a core
    python examples/reproduce/table2.py --no-train          # the table of what is recorded
    python examples/reproduce/table2.py --data minari       # the public data sets
    python examples/reproduce/table2.py --seeds 0 --datasets local/hopper/medium-expert-v0 compile.onednn=true

TD3, CRR and IQL, each with a feed-forward policy and with EDP, under the same loop, data, evaluation and length.
"""

from __future__ import annotations

from study import Study

STUDY = Study(
    "table2",
    "Feed-forward policies and EDP under the same algorithms",
    {
        "TD3 FF": ("td3_bc", ()),
        "TD3 EDP": ("edp_td3", ()),
        "CRR FF": ("crr", ()),
        "CRR EDP": ("edp_crr", ()),
        "IQL FF": ("iql", ()),
        "IQL EDP": ("edp_iql", ()),
    },
)

if __name__ == "__main__":
    STUDY.main(__doc__)
