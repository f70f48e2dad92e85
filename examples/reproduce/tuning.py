"""The tuning behind table 2: the same number of settings on both sides, one seed.

    python examples/reproduce/tuning.py td3                                                    # or crr, iql
    python examples/reproduce/tuning.py crr --datasets local/walker2d/medium-v0                # of one data set
    python examples/reproduce/tuning.py best               # table 2 again, each side with the best of its settings

The strength of the RL term from the algorithm's own value to what is much, for CRR also EDP's baseline by Eq. 21;
feed-forward policies also with what EDP's have by default, an average that acts and a decaying learning rate. The best
one has the highest average over all data sets; what was behind it on some was not run on the others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from study import DATASETS, Case, Study, taken


def _cases(policy: str, experiment: str, setting: str, values: Sequence[float]) -> dict[str, Case]:
    """One case for every value of a setting."""
    name = setting.split(".")[1]
    return {f"{policy} {name}={value:g}": (experiment, (f"{setting}={value:g}",)) for value in values}


PUBLIC = ("mujoco/halfcheetah/expert-v0", "mujoco/walker2d/medium-v0")
AVERAGED = ("policy.averaged_actor=true", "optim.decay=cosine")
CASES: dict[str, dict[str, Case]] = {
    "td3": {
        **_cases("FF", "td3_bc", "loss.alpha", (2.5, 10)),
        "FF, averaged": ("td3_bc", AVERAGED),
        **_cases("EDP", "edp_td3", "loss.guidance_weight", (1, 5, 20)),
    },
    "crr": {
        **_cases("FF", "crr", "loss.temperature", (1, 3)),
        "FF, averaged": ("crr", AVERAGED),
        **_cases("EDP", "edp_crr", "loss.temperature", (1, 3)),
        "EDP, Eq. 21": ("edp_crr", ("loss.sample_from=approximation", "loss.num_action_samples=10")),
    },
    "iql": {
        **_cases("FF", "iql", "loss.temperature", (3, 10)),
        "FF, averaged": ("iql", AVERAGED),
        **_cases("EDP", "edp_iql", "loss.temperature", (1, 3, 10)),
    },
}
STUDIES = {
    name: Study(
        f"tuning_{name}", f"Tuning of {name.upper()}", cases, datasets=DATASETS | {"minari": PUBLIC}, seeds=(0,)
    )
    for name, cases in CASES.items()
}
STUDIES["best"] = Study(
    "tuning_best",
    "Feed-forward policies and EDP, each with the best of its three settings",
    {
        f"{name.upper()} {case}": CASES[name][case]
        for name, case in (
            ("td3", "FF alpha=2.5"),
            ("td3", "EDP guidance_weight=5"),
            ("crr", "FF temperature=3"),
            ("crr", "EDP temperature=1"),
            ("iql", "FF temperature=10"),
            ("iql", "EDP temperature=10"),
        )
    },
)

if __name__ == "__main__":
    algorithm = taken(STUDIES) or ("td3" if {"-h", "--help"} & set(sys.argv) else None)  # all have the same options
    if algorithm is None:
        sys.exit(f"{__doc__}\nExpected one of {', '.join(STUDIES)}.")
    STUDIES[algorithm].main(__doc__)
