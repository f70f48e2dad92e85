"""The likelihood of a diffusion policy by its bound (Eq. 12) or by its approximated action (Eq. 13).

    python examples/reproduce/ablate_likelihood.py

Eq. 12 weighs the noise error by diffusion step, for K = 100 by 0.11 on average: under the same guidance weight it is
nearly cloning. So it is shown with weights of mean 1, too (those of reverse variance b), as the default's weights are.
"""

from __future__ import annotations

from study import Study

STUDY = Study(
    "ablate_likelihood",
    "EDP-IQL by its likelihood term",
    {
        "Eq. 12": ("edp_iql", ("loss.likelihood=elbo",)),
        "Eq. 12, mean weight 1": ("edp_iql", ("loss.likelihood=normalized_elbo",)),
        "Eq. 13": ("edp_iql", ("loss.likelihood=approximation",)),
        "noise error (default)": ("edp_iql", ("loss.likelihood=noise",)),
    },
)

if __name__ == "__main__":
    STUDY.main(__doc__)
