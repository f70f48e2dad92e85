"""The mathematics of diffusion policies: noise schedules, the forward process and samplers. Imports torch only."""

from torchrl_edp.diffusion.checks import check_interval, check_solver
from torchrl_edp.diffusion.partial import ddim_from_step
from torchrl_edp.diffusion.process import Bounds, add_noise, approximate_action, clip, posterior
from torchrl_edp.diffusion.schedule import NoiseSchedule
from torchrl_edp.diffusion.solvers import SOLVERS, ddim, ddpm, dpm_solver, dpm_solver_pp, plan_orders
from torchrl_edp.diffusion.tables import model_steps, solver_table

__all__ = [
    "SOLVERS",
    "Bounds",
    "NoiseSchedule",
    "add_noise",
    "approximate_action",
    "check_interval",
    "check_solver",
    "clip",
    "ddim",
    "ddim_from_step",
    "ddpm",
    "dpm_solver",
    "dpm_solver_pp",
    "model_steps",
    "plan_orders",
    "posterior",
    "solver_table",
]
