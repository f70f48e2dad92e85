"""Evaluation: roll-outs in parallel environments, normalised scores, RAT and OMS, pictures of a run."""

from torchrl_edp.evaluation.metrics import OnlineModelSelection, RunningAverage
from torchrl_edp.evaluation.plots import plot_curves, plot_diagnostics
from torchrl_edp.evaluation.rollout import EvaluationResult, PolicyEvaluator, evaluate

__all__ = [
    "EvaluationResult",
    "OnlineModelSelection",
    "PolicyEvaluator",
    "RunningAverage",
    "evaluate",
    "plot_curves",
    "plot_diagnostics",
]
