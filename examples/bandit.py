"""A two-dimensional bandit with four modes: what each algorithm makes of multi-modal data, in one picture.

    python examples/bandit.py
    python examples/bandit.py --updates 3000 --seed 1 --picture bandit.png

One state, actions in the square [-1, 1]^2, data around four points of which two, in opposite corners, pay best.
Diffusion cloning shows all four; the RL losses lead the same policy to the best two; a Gaussian policy has to cover
what lies between them. After the toy task of Diffusion-QL, https://arxiv.org/abs/2208.06193. Takes less than two
minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import IQLLoss, LossModule, SoftUpdate
from tqdm import tqdm

from torchrl_edp import EDPActor, EDPCRRLoss, EDPIQLLoss, EDPTD3Loss, NoiseSchedule
from torchrl_edp.data import from_arrays, make_replay_buffer
from torchrl_edp.modules import NoisePredictionMLP, QValueNetwork, ValueNetwork

MODES = torch.tensor([[-0.6, -0.6], [-0.6, 0.6], [0.6, -0.6], [0.6, 0.6]])
PAYOFFS = torch.tensor([3.0, 0.0, 1.0, 3.0])  # mean reward of each mode
SPREAD, NOISE = 0.1, 0.3  # deviations of the data's actions and of the rewards
WIDTHS = [64, 64, 64]


def make_data(size: int) -> TensorDict:
    """Transitions of one step each, equally many from each mode."""
    mode = torch.randint(len(MODES), (size,))
    action = (MODES[mode] + SPREAD * torch.randn(size, 2)).clamp(-1, 1)
    reward = PAYOFFS[mode] + NOISE * torch.randn(size)
    ends = torch.ones(size, dtype=torch.bool)
    return from_arrays(torch.zeros(size, 1), action, reward, ends, ~ends).transitions


def critics() -> tuple[ValueOperator, ValueOperator]:
    """Q(s, a) and V(s)."""
    qvalue = QValueNetwork(1, 2, hidden_sizes=WIDTHS)
    return ValueOperator(qvalue, in_keys=["observation", "action"]), ValueOperator(ValueNetwork(1, hidden_sizes=WIDTHS))


def diffusion_policy() -> EDPActor:
    """The same actor for all EDP losses."""
    network = NoisePredictionMLP(1, 2, hidden_sizes=WIDTHS)
    schedule = NoiseSchedule(50, "vp")
    solver = {"solver": "dpm_solver_pp", "num_calls": 10, "solver_kwargs": {"spacing": "log_snr"}}
    return EDPActor(network, schedule=schedule, prediction="velocity", **solver)


def gaussian_policy() -> ProbabilisticActor:
    """A tanh-normal policy."""
    net = nn.Sequential(nn.Linear(1, 64), nn.Mish(), nn.Linear(64, 4), NormalParamExtractor())
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    return ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=TanhNormal)


def losses() -> dict[str, Callable[[], LossModule]]:
    """Title of each panel, and how its loss is made."""
    cloning = {"guidance_weight": 0.0}
    return {
        "Diffusion cloning": lambda: EDPIQLLoss(diffusion_policy(), *critics(), **cloning),
        "EDP-IQL": lambda: EDPIQLLoss(diffusion_policy(), *critics()),
        "EDP-CRR": lambda: EDPCRRLoss(diffusion_policy(), critics()[0], guidance_weight=1.0),
        "EDP-TD3": lambda: EDPTD3Loss(diffusion_policy(), critics()[0], guidance_weight=1.0),
        "Gaussian IQL": lambda: IQLLoss(gaussian_policy(), *critics(), temperature=3.0, expectile=0.7),
    }


def train(loss: LossModule, data: TensorDict, updates: int, title: str) -> Tensor:
    """Train for ``updates``, then draw 500 actions."""
    targets = SoftUpdate(loss, tau=0.005)
    actor = list(loss.actor_network_params.values(True, True))
    others = [p for p in loss.parameters() if all(p is not q for q in actor)]
    optimizer = torch.optim.Adam([{"params": actor, "lr": 3e-3}, {"params": others, "lr": 1e-3}])
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    buffer = make_replay_buffer(data, batch_size=256)
    for _ in tqdm(range(updates), desc=title, unit="update"):
        values = loss(buffer.sample())
        sum(value for key, value in values.items() if key.startswith("loss_")).backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        targets.step()
    with torch.no_grad(), loss.actor_network_params.to_module(loss.actor_network):
        policy, states = loss.actor_network, TensorDict({"observation": torch.zeros(500, 1)}, [500])
        return policy(states)["action"] if isinstance(policy, EDPActor) else policy.get_dist(states).sample()


def main() -> None:
    """Train all, print what each earns, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=Path("bandit.png"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    data = make_data(10_000)
    actions = {"Data": data["action"][:500]}
    actions |= {title: train(make(), data, args.updates, title) for title, make in losses().items()}
    figure, axes = plt.subplots(1, len(actions), figsize=(3 * len(actions), 3.3), sharex=True, sharey=True)
    for axis, (title, action) in zip(axes, actions.items(), strict=True):
        distance = torch.cdist(action, MODES)
        at_mode = distance.amin(1) < 3 * SPREAD
        earned = (PAYOFFS[distance.argmin(1)] * at_mode).mean()  # between the modes nothing is known to pay
        best = (distance[:, PAYOFFS == PAYOFFS.max()].amin(1) < 3 * SPREAD).float().mean()
        astray = 1 - at_mode.float().mean()
        print(f"{title:18} mean payoff {earned:.2f}, at the best modes {best:.0%}, between modes {astray:.0%}")
        axis.scatter(*action.T, s=4, alpha=0.5)
        axis.scatter(*MODES.T, c=PAYOFFS, marker="x", cmap="autumn_r", s=60)
        axis.set(title=f"{title}\npayoff {earned:.2f}", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
    figure.tight_layout()
    figure.savefig(args.picture, dpi=110, bbox_inches="tight")
    print(f"{args.picture}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
