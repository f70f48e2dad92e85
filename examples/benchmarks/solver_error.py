"""How far each solver lands from the exact ODE solution on a trained policy, by number of network calls.

    python examples/benchmarks/solver_error.py runs/edp_iql/.../policy --dataset local/hopper/medium-expert-v0

The reference is DPM-Solver++ 2M with 1000 calls, uniform in log-SNR, from the same initial noise. Stochastic DDPM has
no such error. Prints one JSON line per case and a Markdown table; errors are root mean squares over observations and
action dimensions, in units of the action range [-1, 1].
"""

from __future__ import annotations

import argparse
import json

import torch

from torchrl_edp.data import load_dataset
from torchrl_edp.training import load_policy

SOLVERS = {
    "DDIM": ("ddim", {"end_time": None}),
    "DPM-Solver-1": ("dpm_solver", {"order": 1}),
    "DPM-Solver-2": ("dpm_solver", {"order": 2}),
    "DPM-Solver-3": ("dpm_solver", {"order": 3}),
    "DPM-Solver++ 2M": ("dpm_solver_pp", {}),
}


@torch.no_grad()
def solver_errors(policy_path: str, dataset: str, calls: list[int], num_observations: int) -> list[dict]:
    """Errors of every solver, spacing and number of calls."""
    torch.manual_seed(0)
    policy = load_policy(policy_path)
    sampler = policy.policy.actor_network.module.double()
    observations = load_dataset(dataset).transitions["observation"]
    rows = observations[torch.randperm(len(observations))[:num_observations]]
    observation = policy.observation_normalizer(rows).double()
    noise = torch.randn(len(rows), sampler.action_size, dtype=torch.float64)
    sampler.initial_noise_scale = 1.0
    end = sampler.schedule.end_time

    def solve(solver: str, **options: object) -> torch.Tensor:
        sampler.solver = solver
        sampler.solver_kwargs = {}
        return sampler.sample(observation, noise, **options)

    reference = solve("dpm_solver_pp", num_calls=1000, spacing="log_snr", end_time=end)
    results = []
    for name, (solver, options) in SOLVERS.items():
        for spacing in ("time", "log_snr") if solver.startswith("dpm") else ("time",):
            extra = {"spacing": spacing} if solver.startswith("dpm") else {}
            for count in calls:
                actions = solve(solver, num_calls=count, **({**options, **extra, "end_time": end}))
                error = (actions - reference).square().mean().sqrt().item()
                results.append({"solver": name, "spacing": spacing, "calls": count, "rms_error": error})
    return results


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy saved by a run, without suffix")
    parser.add_argument("--dataset", default="local/hopper/medium-expert-v0", help="where the observations come from")
    parser.add_argument("--calls", type=int, nargs="+", default=[3, 5, 8, 10, 15, 30])
    parser.add_argument("--observations", type=int, default=1000)
    args = parser.parse_args()
    results = solver_errors(args.policy, args.dataset, args.calls, args.observations)
    for row in results:
        print(json.dumps(row))
    print(f"| solver | spacing | {' | '.join(map(str, args.calls))} |\n|---|---|{'---|' * len(args.calls)}")
    cases = dict.fromkeys((row["solver"], row["spacing"]) for row in results)
    for solver, spacing in cases:
        errors = [r["rms_error"] for r in results if (r["solver"], r["spacing"]) == (solver, spacing)]
        print(f"| {solver} | {spacing} | {' | '.join(f'{error:.1e}' for error in errors)} |")


if __name__ == "__main__":
    main()
