"""Reward rules by name, as the literature applies them to each domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_edp.data.checks import problem, require_keys, require_single_steps
from torchrl_edp.data.dataset import OfflineDataset

Data = TypeVar("Data", OfflineDataset, TensorDictBase)


def _min_max(reward: Tensor, done: Tensor) -> Tensor:
    low, high = reward.min(), reward.max()
    if low == high:
        raise problem("rewards", "at least two different values", f"{low.item()} only", "Use the rule 'raw'.")
    return (2 * (reward.double() - low) / (high.double() - low) - 1).float()


def _return_range(reward: Tensor, done: Tensor) -> Tensor:
    # Where the record breaks off (the last row carries no flag), the piece counts as an episode.
    episode = done.flatten().long().cumsum(0) - done.flatten().long()
    sums = torch.zeros(int(episode[-1]) + 1, dtype=torch.float64).index_add(0, episode, reward.double().flatten())
    if sums.min() == sums.max():
        got = f"{sums[0].item():g} for all {len(sums)}"
        raise problem("episode returns", "at least two that differ", got, "Use the rule 'raw'.")
    return (reward.double() * 1000 / (sums.max() - sums.min())).float()


REWARD_RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "raw": lambda reward, done: reward.clone(),
    "antmaze_iql": lambda reward, done: reward - 1,
    "antmaze_td3": lambda reward, done: 4 * (reward - 0.5),
    "min_max": _min_max,
    "return_range": _return_range,
}
"""Rules by name, each ``(reward [N, 1], done [N, 1]) -> reward [N, 1]``; see :func:`apply_reward_rule`."""


def apply_reward_rule(name: str, data: Data) -> Data:
    """A copy of the data with rewards changed by a named rule; the input stays as it is.

    ``raw``: unchanged. ``antmaze_iql``: r - 1 (IQL). ``antmaze_td3``: 4 (r - 0.5) (TD3, CRR). ``min_max``: to
    [-1, 1] (kitchen, adroit). ``return_range``: times 1000 / (largest - smallest episode return), IQL's
    choice on locomotion.

    Args:
        name: a key of :data:`REWARD_RULES`.
        data: a data set, or transitions ``[N]`` in time order. A data set keeps its ``episode_returns`` raw,
            so that scores do not depend on the rule.

    Raises:
        DatasetError: for an unknown rule, after :func:`multi_step`, where there are no rewards or the results are not
            finite, or where rewards (or returns) are all equal and the rule divides by their range.

    Source: the released code of https://arxiv.org/abs/2305.20081; https://arxiv.org/abs/2110.06169 for IQL's
    rules.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import apply_reward_rule, from_arrays
        >>> data = from_arrays(torch.rand(3, 2), torch.rand(3, 1), [0.0, 1.0, 0.0], [0, 0, 1], [0, 0, 0])
        >>> apply_reward_rule("antmaze_iql", data).transitions["next", "reward"].flatten().tolist()
        [-1.0, 0.0, -1.0]
    """
    if name not in list(REWARD_RULES):
        raise problem("reward rule", f"one of {list(REWARD_RULES)}", repr(name), "Choose one of these.")
    if isinstance(data, OfflineDataset):
        return replace(data, transitions=apply_reward_rule(name, data.transitions))
    require_keys(data, (("next", "reward"), ("next", "done")))
    require_single_steps(data, "Apply the rule before multi_step.")
    if not data["next", "reward"].numel():
        raise problem("transitions", "at least one", "none", "Check the filter before this call.")
    reward = REWARD_RULES[name](data["next", "reward"], data["next", "done"])
    if not (finite := reward.isfinite().flatten()).all():
        i = int(finite.int().argmin())
        got = f"{reward.flatten()[i].item()} from {data['next', 'reward'].flatten()[i].item()}"
        raise problem(f"rewards after the rule {name!r}", "finite numbers", got, "Repair or scale the rewards.", i)
    return data.clone(recurse=False).set(("next", "reward"), reward)
