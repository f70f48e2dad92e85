"""How much memory the policy update takes: EDP's against the full chain's (Diffusion-QL), over K.

    python examples/benchmarks/memory.py --output examples/benchmarks/results/memory
    python examples/benchmarks/memory.py --device cuda

What is measured is the peak of the bytes that tensors take during ``loss.actor_loss(batch)`` and its gradients, above
what is there before (parameters, data): of PyTorch's allocator, not of the process, which is noise at this size.
The work: observation 17, action 6, batch 256, networks of 3 x 256 with Mish, ``EDPTD3Loss``. Three policies:

- ``edp``: one differentiated network call, whatever K is;
- ``chain``: all K calls of DDPM, differentiated; the loss keeps only the inputs of every call (and the random
  generator's state, 5 KB) and computes the activations again in the backward pass;
- ``chain, all kept``: the same without that, as Diffusion-QL is usually written.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from harness import report
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from work import Work, make_buffer, make_loss, tiny_work

CHAIN = {"guidance_start": "noise", "qvalue_normalization": "other"}
STEPS = {"edp": (25, 100, 1000), "chain": (25, 100, 200), "chain, all kept": (25, 100, 200)}
TINY_STEPS = (25, 50, 100)
COLUMNS = ["policy", "K", "peak_mib", "of_edp", "growth"]
NOTES = (
    "`peak_mib`: peak of the policy update in MiB; `of_edp`: relative to EDP with the least K; `growth`: relative to "
    "the same policy with the least K."
)


def make_policy_loss(work: Work, policy: str, steps: int) -> nn.Module:
    """The TD3 loss of one of the policies."""
    if policy == "edp":
        return make_loss(work.with_diffusion(num_steps=steps), "td3")
    chain = work.with_diffusion(num_steps=steps, schedule="vp", solver="ddpm", num_calls=None)
    loss = make_loss(chain, "td3", **CHAIN)
    if policy == "chain, all kept":
        loss._checkpointed_network = loss._network  # there is no option for it: nobody wants it but a comparison
    return loss


def peak_bytes(run: Callable[[], Any], device: str | None) -> int:
    """The most bytes that tensors take during ``run``, above what they take before."""
    gc.collect()  # else tensors of earlier cases, held by cycles, may be freed during this one and count as less
    if torch.device(device or "cpu").type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:  # a trace is the public form of what was allocated when
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events))


def measure(work: Work, policy: str, steps: int) -> int:
    """The peak of one policy update in bytes."""
    loss, batch = make_policy_loss(work, policy, steps), make_buffer(work).sample()
    parameters = list(loss.actor_network_params.parameters())

    def update() -> Any:
        return torch.autograd.grad(loss.actor_loss(batch)[0], parameters)

    update()  # tables of the schedule
    return peak_bytes(update, work.device)


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="torch device; the CPU by default")
    parser.add_argument("--output", help="where to write .json and .md, without suffix")
    parser.add_argument("--tiny", action="store_true", help="a size at which only the script is tested")
    args = parser.parse_args()
    work = tiny_work() if args.tiny else Work(rows=1000, device=args.device)
    cases = [(policy, k) for policy, steps in STEPS.items() for k in (TINY_STEPS if args.tiny else steps)]
    rows: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for policy, steps in tqdm(cases, desc="measuring", leave=False):
        peak = measure(work, policy, steps)
        least = first.setdefault(policy, peak)
        row = {"policy": policy, "K": steps, "peak_bytes": peak, "peak_mib": peak / 2**20}
        rows.append(row | {"of_edp": peak / first["edp"], "growth": peak / least})
    report(rows, COLUMNS, args.output, NOTES)


if __name__ == "__main__":
    main()
