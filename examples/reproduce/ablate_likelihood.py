"""The likelihood of a diffusion policy by its bound (Eq. 12) or by its approximated action (Eq. 13).

python examples/reproduce/ablate_likelihood.py
"""

from __future__ import annotations

from study import Study

STUDY = Study(
    "ablate_likelihood",
    "EDP-IQL by its likelihood term",
    {
        "Eq. 12, floored": ("edp_iql", ("loss.likelihood=elbo",)),
        "Eq. 13": ("edp_iql", ("loss.likelihood=approximation",)),
        "noise error (default)": ("edp_iql", ("loss.likelihood=noise",)),
    },
)

if __name__ == "__main__":
    STUDY.main(__doc__)
