"""Table 7: the policy's gradient through the whole chain of K = 100 steps, or through one approximated action.

    python examples/reproduce/table7.py --datasets local/walker2d/medium-v0 --seeds 0

The paper compares OMS on walker2d. A run through the chain takes about as long as thirty runs of EDP; hence so few
updates by default.
"""

from __future__ import annotations

from study import Study

# Both sample by DDPM from full noise, and guide at all steps alike, as the chain cannot do otherwise.
SHARED = (
    "diffusion.num_steps=100",
    "diffusion.solver=ddpm",
    "diffusion.num_calls=null",
    "diffusion.solver_kwargs={}",
    "diffusion.initial_noise_scale=1",
    "loss.guidance_weighting=uniform",
)
STUDY = Study(
    "table7",
    "EDP-TD3 with and without action approximation, K = 100",
    {
        "DDPM chain": ("edp_td3", (*SHARED, "loss.guidance_start=noise")),
        "Action approximation": ("edp_td3", SHARED),
    },
    updates=5_000,
    datasets={"local": ("local/walker2d/medium-v0",), "minari": ("mujoco/walker2d/medium-v0",)},
)

if __name__ == "__main__":
    STUDY.main(__doc__)
