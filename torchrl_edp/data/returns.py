"""Multi-step returns: rewards summed over several steps of the data before the critics take over."""

from __future__ import annotations

from numbers import Integral

import torch
from tensordict import TensorDictBase

from torchrl_edp.data.checks import problem, require_keys, require_single_steps

_KEYS = ("reward", "done", "terminated", "observation")


def multi_step(transitions: TensorDictBase, steps: int, gamma: float) -> TensorDictBase:
    """Transitions that look ``steps`` ahead: discounted rewards added up, and the state where that sum ends.

    The target of a critic becomes r_0 + gamma r_1 + ... + gamma^(n-1) r_(n-1) + gamma^n Q(s_n, a_n). What the policy of
    the data did for n steps then tells good behaviour from bad, which one action of many per second hardly does; the
    price is a bias towards that policy. No sum goes beyond its episode: n is smaller where a terminal state, a time-out
    or the end of the record comes first, and the flags are those of the last step. TorchRL's ``MultiStep`` keeps those
    of the first step, and bootstraps from terminal states.

    Losses read n from ``steps_to_next_obs`` with the value estimator TD0. TD1 and TDLambda, which go from row to row,
    would give wrong targets without a word, and so would ``torchrl.objectives.IQLLoss``, which hides all but ``next``
    from its estimator: ``loss.value_estimator.set_keys(steps_to_next_obs=("next", "steps_to_next_obs"))`` shows it n.
    Rules of rewards come before.

    Args:
        transitions: TensorDict ``[N]`` in time order, episode after episode, as in :class:`OfflineDataset`.
        steps: n, at least 1; 1 is the usual one-step return.
        gamma: discount in [0, 1], that of the loss.

    Returns:
        A TensorDict ``[N]`` with other entries in ``next``, and ``steps_to_next_obs [N, 1]``, integers in 1..n, at the
        root and in ``next``.

    Raises:
        DatasetError: where ``steps`` or ``gamma`` is out of range, keys are missing, the batch size is not ``[N]``, or
            the transitions look several steps ahead already.

    Examples:
        >>> import torch
        >>> from torchrl_edp.data import from_arrays, multi_step
        >>> data = from_arrays(torch.rand(3, 2), torch.rand(3, 1), [1.0, 2.0, 4.0], [0, 0, 1], [0, 0, 0])
        >>> ahead = multi_step(data.transitions, steps=2, gamma=0.5)
        >>> ahead["next", "reward"].flatten().tolist(), ahead["steps_to_next_obs"].flatten().tolist()
        ([2.0, 4.0, 4.0], [2, 2, 1])

    Source: Sec. 7.1 of Sutton and Barto, Reinforcement Learning (2018); as an option in the released code of
    https://arxiv.org/abs/2305.20081.
    """
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise problem("return steps", "a whole number of at least 1", repr(steps), "1 is the usual one-step return.")
    if not 0 <= gamma <= 1:
        raise problem("gamma", "a number in [0, 1]", repr(gamma), "Take the discount of the loss.")
    require_keys(transitions, tuple(("next", key) for key in _KEYS))
    if transitions.ndim != 1:
        raise problem("transitions", "batch size [N]", str(list(transitions.shape)), "Flatten, episode after episode.")
    require_single_steps(transitions, "Begin with the transitions as recorded.")
    reward, done = transitions["next", "reward"].double(), transitions["next", "done"].flatten()
    first = torch.arange(len(transitions), device=reward.device)
    total, last = reward.clone(), first.clone()
    for k in range(1, steps):
        goes_on = ~done[last] & (first + k < len(transitions))  # once it is false it stays so
        last = torch.where(goes_on, first + k, last)
        total += gamma**k * torch.where(goes_on.unsqueeze(-1), reward[last], 0.0)
    after = transitions["next"][last]
    after["reward"] = total.to(transitions["next", "reward"].dtype)
    after["steps_to_next_obs"] = (last - first + 1).unsqueeze(-1)
    ahead = transitions.clone(recurse=False).set("next", after)
    return ahead.set("steps_to_next_obs", after["steps_to_next_obs"].clone())
