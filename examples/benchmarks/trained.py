"""A trained policy and rows of data as it sees them, for the scripts that ask one."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_edp.data import load_dataset
from torchrl_edp.training import load_policy


def arguments(doc: str, *, data: str, samples: int) -> argparse.ArgumentParser:
    """A parser of ``policy``, ``--data`` and ``--samples``; the latter two by default as given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", help="a policy saved by a run, without suffix")
    parser.add_argument("--data", default=data)
    parser.add_argument("--samples", type=int, default=samples)
    return parser


def selector_and_batch(args: argparse.Namespace) -> tuple[Any, TensorDictBase]:
    """The policy's selector, with its critics, and random rows, normalised and scaled as in its training."""
    policy, data = load_policy(args.policy), load_dataset(args.data).transitions
    batch = data[torch.randint(len(data), (args.samples,))].clone()
    batch["observation"] = policy.observation_normalizer(batch["observation"])
    batch["action"] = policy.action_scaler(batch["action"])
    return policy.policy, batch


def with_critics(loss: type, selector: Any, **options: Any) -> Any:
    """A loss on the selector's networks, with the critics that it was saved with."""
    critics = len(next(iter(selector.qvalue_params.values(True, True))))
    found = loss(selector.actor_network, selector.qvalue_network, num_qvalue_nets=critics, **options)
    found.qvalue_network_params.data.update_(selector.qvalue_params.data)
    return found
