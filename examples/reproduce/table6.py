"""Table 6: does energy-based action selection help a feed-forward policy as it helps a diffusion policy?

    python examples/reproduce/table6.py                  # the TD3 runs of table 2, trained where they are missing
    python examples/reproduce/table6.py --no-train       # those that are there
    python examples/reproduce/table6.py crr              # or iql: beyond the paper, which has TD3 only

The final policies of TD3+BC and EDP-TD3, ``--episodes`` episodes each. A deterministic policy has no candidates to
choose from: it gets 10, its action plus TD3's exploration noise N(0, 0.1) in units of the action range [-1, 1],
clipped. The policies of CRR and IQL are Gaussian and act by their mean: their candidates are drawn from them, as CRR's
own critic-weighted policy does (https://arxiv.org/abs/2006.15134); what one draw costs is shown beside. The run's
averaged critics choose by Alg. 2, as EDP's do by default. EDP with and without selection acts at full initial noise,
as in the paper; "low noise" is one action from a quarter of it. "Sharp" is a softmax of standardised values with
temperature 0.3 (``policy.standardize=true policy.temperature=0.3``), "spread" candidates from a tenth of the noise to
all of it (``policy.min_noise_scale=0.1``).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial

import torch
from points import (
    COLUMNS,
    FULL_NOISE,
    LITTLE_NOISE,
    ONE,
    PAPER,
    POINTS,
    Acting,
    Point,
    SavedPolicy,
    evaluate,
    load_acting,
)
from runs import Ledger, Run
from study import Row, draw, result_path, seeds_named, settings_note, table, taken, write_rows
from sweep import sweep_parser, trained
from tensordict import TensorDict, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictSequential

from torchrl_edp.modules import EnergyBasedActionSelector
from torchrl_edp.training import EnvironmentPolicy, build_qvalue, load_policy
from torchrl_edp.training.checkpoint import CheckpointStore

EXPLORATION = {"num_action_samples": 10, "exploration_noise": 0.1}
SHARP = {"standardize": True, "temperature": 0.3}
SPREAD = {"min_noise_scale": 0.1}
DRAWS = {"num_action_samples": 10, "exploration_noise": 0.0}  # a Gaussian policy explores by itself


def _cases(algorithm: str, candidates: Acting) -> dict[str, tuple[str, Acting]]:
    """Case of table 2 and acting, by the name that the table gives it."""
    feed_forward, edp = f"{algorithm} FF", f"{algorithm} EDP"
    return {
        algorithm: (feed_forward, {}),
        **({} if candidates["exploration_noise"] else {f"{algorithm}, drawn": (feed_forward, DRAWS | ONE)}),
        f"{algorithm} + EAS": (feed_forward, candidates),
        f"{algorithm} + EAS, sharp": (feed_forward, candidates | SHARP),
        "EDP": (edp, FULL_NOISE | ONE),
        "EDP + EAS": (edp, PAPER),
        "EDP + EAS, sharp": (edp, PAPER | SHARP),
        "EDP + EAS, spread": (edp, PAPER | SPREAD),
        "EDP + EAS, sharp, spread": (edp, PAPER | SHARP | SPREAD),
        "EDP, low noise": (edp, LITTLE_NOISE),
    }


CASES = {"td3": _cases("TD3", EXPLORATION), "crr": _cases("CRR", DRAWS), "iql": _cases("IQL", DRAWS)}
PAPER_SAYS = (
    "The paper: 85.5 for EDP, 69.2 for TD3 with EAS, 69.7 for TD3, on average over nine locomotion tasks of D4RL "
    "(Table 6)."
)


def with_selection(run: Run, saved: SavedPolicy, acting: Acting) -> EnvironmentPolicy:
    """The feed-forward policy of a run, its action chosen by the run's averaged critics among noisy copies or draws.

    Raises:
        ValueError: if the run's last checkpoint is not there.
    """
    policy = load_policy(saved.file)
    sizes = policy.observation_normalizer.loc.shape[-1], policy.action_scaler.center.shape[-1]
    store = CheckpointStore(run.folder / "checkpoints")
    checkpoint, skipped = store.newest()
    if checkpoint is None or checkpoint.step != run.settings.optim.gradient_steps:
        found = checkpoint and checkpoint.step
        raise ValueError(f"{store.path}: expected a checkpoint of the last update, found {found}. {' '.join(skipped)}")
    prefix = "train.loss.target_qvalue_network_params."
    critics = {
        name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)
    }
    params = TensorDict(critics).unflatten_keys(".").auto_batch_size_(1)

    def explore(action: torch.Tensor) -> torch.Tensor:
        return (action + acting["exploration_noise"] * torch.randn_like(action)).clamp(-1, 1)

    candidates = TensorDictSequential(policy.policy, TensorDictModule(explore, ["action"], ["action"]))
    policy.policy = EnergyBasedActionSelector(
        candidates,
        build_qvalue(*sizes, run.settings.network),
        qvalue_params=TensorDictParams(params, no_convert=True),
        **{name: value for name, value in acting.items() if name != "exploration_noise"},
    )
    return policy.eval()


def point(run: Run, policy: SavedPolicy, acting: Acting, episodes: int | None) -> Point:
    """How a run's policy is evaluated."""
    load = partial(with_selection, run) if "exploration_noise" in acting else load_acting
    return Point(policy, acting, episodes, load)


def main() -> None:
    """Parse the command line, evaluate what is missing, write table and picture."""
    algorithm = taken(CASES) or "td3"
    cases = CASES[algorithm]
    args = sweep_parser(__doc__, seeds=[0, 1, 2]).parse_intermixed_args()
    actings: dict[str, list[Acting]] = {}
    for case, acting in cases.values():
        actings.setdefault(case, []).append(acting)
    runs = {
        case: trained(case, args, lambda *found, wanted=wanted: [point(*found, each, args.episodes) for each in wanted])
        for case, wanted in actings.items()
    }
    ledger = Ledger(args.output / POINTS, COLUMNS)
    cells: dict[tuple[str, str], list[Point]] = {}
    for case, (policies, acting) in cases.items():
        for run, policy in runs[policies]:
            cells.setdefault((case, run.settings.dataset), []).append(point(run, policy, acting, args.episodes))
    points = [each for group in cells.values() for each in group]
    evaluate(points, ledger, onednn="compile.onednn=true" in args.overrides)
    datasets = list(dict.fromkeys(dataset for _, dataset in cells))
    rows = [summary(case, dataset, cells.get((case, dataset), []), ledger) for case in cases for dataset in datasets]
    title = f"Energy-based action selection (EAS) for feed-forward policies and for EDP, {algorithm.upper()}"
    parts = [
        f"# {title}",
        f"Normalised scores, mean ± deviation over {seeds_named(args.seeds)} (how many are here):",
        table(rows, list(cases), datasets, "rat"),
        *([PAPER_SAYS] if algorithm == "td3" else []),
    ]
    text = "\n\n".join([*parts, *settings_note(args.overrides)])
    path = partial(result_path, args, "table6" if algorithm == "td3" else f"table6-{algorithm}")
    write_rows(rows, path(".csv"))
    path(".md").write_text(text + "\n")
    print(text)
    draw(rows, list(cases), datasets, path(".png"), title, "normalised score")


def summary(case: str, dataset: str, group: Sequence[Point], ledger: Ledger) -> Row:
    """Mean and deviation over runs."""
    scores = [float(ledger.rows[each.key]["score"]) for each in group]
    mean = statistics.mean(scores) if scores else None
    return Row(
        case, dataset, len(scores), mean, statistics.stdev(scores) if len(scores) > 1 else None, None, None, None
    )


if __name__ == "__main__":
    main()
