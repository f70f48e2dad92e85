"""Table 7: the policy's gradient through the whole chain of denoising steps, or through one approximated action.

    python examples/reproduce/table7.py --seeds 0
    python examples/reproduce/table7.py --seeds 0 diffusion.num_steps=100 diffusion.schedule=linear    # the paper's K

The paper compares OMS on walker2d with K = 100. An update through that chain takes about as long as thirty of EDP, so
the default is K = 10 with Diffusion-QL's schedule, whose chain costs a few, and the guidance weight is the paper's.
"""

from __future__ import annotations

from study import Study

# Both sample by DDPM from full noise, and guide at all steps alike, as the chain cannot do otherwise.
SHARED = (
    "diffusion.num_steps=10",
    "diffusion.schedule=vp",
    "diffusion.solver=ddpm",
    "diffusion.num_calls=null",
    "diffusion.solver_kwargs={}",
    "diffusion.initial_noise_scale=1",
    "loss.guidance_weighting=uniform",
    "loss.guidance_weight=1",
)
STUDY = Study(
    "table7",
    "EDP-TD3 with and without action approximation",
    {
        "DDPM chain": ("edp_td3", (*SHARED, "loss.guidance_start=noise")),
        "Action approximation": ("edp_td3", SHARED),
    },
    updates=20_000,
    datasets={"local": ("local/walker2d/medium-v0",), "minari": ("mujoco/walker2d/medium-v0",)},
)

if __name__ == "__main__":
    STUDY.main(__doc__)
