"""How far each solver lands from the exact ODE solution on a trained policy, and what it scores, by number of calls.

    python examples/benchmarks/solver_error.py runs/edp_iql/.../policy --dataset local/hopper/medium-expert-v0
    python examples/benchmarks/solver_error.py runs/edp_iql/.../policy --episodes 10

The reference is DPM-Solver++ 2M with 1000 calls, uniform in log-SNR, from the same initial noise at full scale.
Stochastic DDPM has no such error. Errors are root mean squares over observations and action dimensions, in units of the
action range [-1, 1]; scores are normalised, of the policy as it acts (its own noise scale and candidates), by the same
episodes for all. Prints one JSON line per case and Markdown tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from torchrl_edp.data import OfflineDataset, load_dataset
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import EnvironmentPolicy, load_policy

CASES = {
    "DDIM": ("ddim", {}),
    "DPM-Solver-1, time": ("dpm_solver", {"order": 1, "spacing": "time"}),
    "DPM-Solver-1, log-SNR": ("dpm_solver", {"order": 1, "spacing": "log_snr"}),
    "DPM-Solver-2, time": ("dpm_solver", {"order": 2, "spacing": "time"}),
    "DPM-Solver-2, log-SNR": ("dpm_solver", {"order": 2, "spacing": "log_snr"}),
    "DPM-Solver-3, time": ("dpm_solver", {"order": 3, "spacing": "time"}),
    "DPM-Solver-3, log-SNR": ("dpm_solver", {"order": 3, "spacing": "log_snr"}),
    "DPM-Solver++ 2M, time": ("dpm_solver_pp", {"spacing": "time"}),
    "DPM-Solver++ 2M, log-SNR": ("dpm_solver_pp", {"spacing": "log_snr"}),
}


@torch.no_grad()
def errors(policy: EnvironmentPolicy, dataset: OfflineDataset, num_observations: int) -> Callable[..., float]:
    """A function of solver, calls and options: its error on observations of the data."""
    torch.manual_seed(0)
    sampler = policy.policy.actor_network.module.double()
    observations = dataset.transitions["observation"]
    rows = observations[torch.randperm(len(observations))[:num_observations]]
    observation = policy.observation_normalizer(rows).double()
    noise = torch.randn(len(rows), sampler.action_size, dtype=torch.float64)
    sampler.initial_noise_scale = 1.0
    end = sampler.schedule.end_time

    @torch.no_grad()
    def solve(solver: str, calls: int, options: dict) -> Tensor:
        sampler.solver, sampler.solver_kwargs = solver, {}
        return sampler.sample(observation, noise, num_calls=calls, end_time=end, **options)

    exact = solve("dpm_solver_pp", 1000, {"spacing": "log_snr"})
    return lambda *case: (solve(*case) - exact).square().mean().sqrt().item()


def scores(policy: EnvironmentPolicy, evaluator: PolicyEvaluator) -> Callable[..., tuple[float, float]]:
    """A function of solver, calls and options: mean and deviation of the score over episodes."""
    sampler = policy.policy.actor_network.module

    def score(solver: str, calls: int, options: dict) -> tuple[float, float]:
        sampler.solver, sampler.num_calls, sampler.solver_kwargs = solver, calls, options
        result = evaluator(policy, seed=0)
        return result.normalized, result.normalized_std

    return score


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Every case, one after the other."""
    dataset = load_dataset(args.dataset)
    error = errors(load_policy(args.policy), dataset, args.observations)
    about = {"max_steps": dataset.max_episode_steps, "reference": dataset.reference[:2]}
    with PolicyEvaluator(dataset.env_id, num_episodes=max(args.episodes, 1), **about) as evaluator:
        score = scores(load_policy(args.policy), evaluator)
        for name, (solver, options) in CASES.items():
            for calls in args.calls:
                row = {"solver": name, "calls": calls, "rms_error": error(solver, calls, options)}
                if args.episodes:
                    mean, deviation = score(solver, calls, options)
                    row |= {"score": mean, "std": deviation, "episodes": args.episodes}
                yield row


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy saved by a run, without suffix")
    parser.add_argument("--dataset", default="local/hopper/medium-expert-v0", help="where the observations come from")
    parser.add_argument("--calls", type=int, nargs="+", default=[3, 5, 8, 10, 15, 30])
    parser.add_argument("--observations", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=0, help="episodes to score each case by")
    args = parser.parse_args()
    rows = []
    for row in measure(args):
        rows.append(row)
        print(json.dumps(row), flush=True)
    shown = {"rms_error": "{rms_error:.1e}"} | ({"score": "{score:.1f} ± {std:.1f}"} if args.episodes else {})
    for title, text in shown.items():
        print(f"\n| {title} | {' | '.join(map(str, args.calls))} |\n|---|{'---|' * len(args.calls)}")
        for name in CASES:
            print(f"| {name} | {' | '.join(text.format(**row) for row in rows if row['solver'] == name)} |")


if __name__ == "__main__":
    main()
