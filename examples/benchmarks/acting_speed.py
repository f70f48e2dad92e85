"""How many actions per second a policy takes: as it is, under torch.compile, and frozen.

    python examples/benchmarks/acting_speed.py --output examples/benchmarks/results/acting_speed
    python examples/benchmarks/acting_speed.py --settings paper --observations 1

What is timed is one call of the shipped policy, a tensordict of raw observations in, actions of the environment out:
normaliser, sampler, critics, choice, scaler. The work: observation 17, action 6, networks of 3 x 256 with Mish, two
critics. ``paper``: K = 1000, single-step DPM-Solver-3 with 15 calls, ten candidates of which one is drawn by its
energy. ``default``: EDP-IQL's sampler and choice by default, K = 100, velocity prediction, DPM-Solver++ 2M with 5 calls
uniform in log-SNR, one candidate.
Cases of one setting and number of observations are interleaved; compare within them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import Case, interleave, report
from tensordict import TensorDict, TensorDictParams

from torchrl_edp.data import ActionScaler, ObservationNormalizer
from torchrl_edp.modules import FrozenPolicy
from torchrl_edp.training import (
    DiffusionSettings,
    EnvironmentPolicy,
    NetworkSettings,
    SelectionSettings,
    build_actor,
    build_qvalue,
    build_selector,
)

OBSERVATION, ACTION = 17, 6
DEFAULT: dict[str, Any] = {"prediction": "velocity", "solver": "dpm_solver_pp", "initial_noise_scale": 0.25}
SETTINGS: dict[str, tuple[DiffusionSettings, SelectionSettings]] = {
    "paper": (DiffusionSettings(), SelectionSettings(num_action_samples=10)),
    "default": (
        DiffusionSettings(num_steps=100, num_calls=5, solver_kwargs={"spacing": "log_snr"}, **DEFAULT),
        SelectionSettings(num_action_samples=1),
    ),
}
FORMS: dict[str, Callable[[Any], Any]] = {
    "eager": lambda policy: policy,
    "torch.compile": torch.compile,
    "frozen": lambda policy: FrozenPolicy(policy, onednn=False),
    "frozen + oneDNN": lambda policy: FrozenPolicy(policy, onednn=True),
}
COLUMNS = ["setting", "observations", "case", "actions_per_second", "per_second", "quartiles"]
NOTES = "`actions_per_second`: calls per second times observations; `quartiles`: of calls per second over turns."


def make_policy(setting: str, network: NetworkSettings) -> EnvironmentPolicy:
    """A policy with random weights, as ``load_policy`` returns a trained one."""
    torch.manual_seed(0)
    diffusion, selection = SETTINGS[setting]
    critics = [build_qvalue(OBSERVATION, ACTION, network) for _ in range(2)]
    params = TensorDictParams(TensorDict.from_modules(*critics), no_convert=True)
    actor = build_actor(OBSERVATION, ACTION, network, diffusion)
    selector = build_selector(actor, critics[0], selection, qvalue_params=params)
    scaler = ActionScaler([-1.0] * ACTION, [1.0] * ACTION)
    policy = EnvironmentPolicy(selector, ObservationNormalizer.identity(OBSERVATION), scaler)
    return policy.requires_grad_(False).eval()


def acting(policy: Callable[[TensorDict], TensorDict], observations: int) -> Callable[[], TensorDict]:
    """A function that acts once."""
    observation = torch.randn(observations, OBSERVATION)

    @torch.no_grad()
    def act() -> TensorDict:
        return policy(TensorDict({"observation": observation}, [observations]))

    return act


@torch.no_grad()
def measure(setting: str, observations: int, forms: list[str], *, tiny: bool, rounds: int) -> list[dict[str, Any]]:
    """A row of results per form."""
    policy = make_policy(setting, NetworkSettings(hidden_sizes=[16]) if tiny else NetworkSettings())
    cases = []
    for form in forms:
        frozen = FORMS[form](policy) if form != "frozen" or not tiny else FrozenPolicy(policy, compile=False)
        cases.append(Case(form, acting(frozen, observations)))  # a frozen policy needs no switch as it runs
    rows = interleave(cases, rounds=rounds, seconds=0.01 if tiny else 0.3)
    about = {"setting": setting, "observations": observations}
    return [{**about, **row, "actions_per_second": row["per_second"] * observations} for row in rows]


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--observations", type=int, nargs="+", default=[1, 10, 256])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--output", help="where to write .json and .md, without suffix")
    parser.add_argument("--tiny", action="store_true", help="small networks, two rounds, nothing compiled")
    args = parser.parse_args()
    forms = ["eager", "frozen"] if args.tiny else list(FORMS)
    rounds = 2 if args.tiny else args.rounds
    rows = []
    for setting in args.settings:
        for observations in args.observations:
            rows += measure(setting, observations, forms, tiny=args.tiny, rounds=rounds)
    report(rows, COLUMNS, args.output, NOTES)


if __name__ == "__main__":
    main()
