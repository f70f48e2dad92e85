"""What a trained policy scores by initial-noise factor and by number of candidates, without training again.

    python examples/benchmarks/acting_settings.py runs/edp_iql/.../policy

Prints one JSON line per case and a Markdown table of normalised scores: mean and deviation over episodes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from torchrl_edp.data import reference_for
from torchrl_edp.evaluation import PolicyEvaluator
from torchrl_edp.training import load_policy


def main() -> None:
    """Parse the command line, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy saved by a run, without suffix")
    parser.add_argument("--env", help="the one it was trained for by default")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0], help="initial-noise factors")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 10], help="numbers of candidates")
    parser.add_argument("--mode", choices=["argmax", "sample"], default="argmax", help="how the critics choose")
    parser.add_argument("--episodes", type=int, default=20)
    args = parser.parse_args()
    policy = load_policy(args.policy)
    env = args.env or json.loads(Path(f"{args.policy}.json").read_text())["info"]["env"]
    policy.policy.mode = args.mode
    scores = {}
    with PolicyEvaluator(env, num_episodes=args.episodes, reference=reference_for(env)) as evaluator:
        for count in args.candidates:
            for noise in args.noise:
                policy.policy.num_action_samples = count
                policy.policy.actor_network.module.initial_noise_scale = noise
                result = evaluator(policy, seed=0)
                scores[count, noise] = f"{result.normalized:.1f} ± {result.normalized_std:.1f}"
                row = {"candidates": count, "mode": args.mode, "initial_noise_scale": noise, "score": result.normalized}
                print(json.dumps({**row, "std": result.normalized_std, "episodes": args.episodes}), flush=True)
    print(f"| candidates | {' | '.join(map(str, args.noise))} |\n|---|{'---|' * len(args.noise)}")
    for count in args.candidates:
        print(f"| {count} | {' | '.join(scores[count, noise] for noise in args.noise)} |")


if __name__ == "__main__":
    main()
