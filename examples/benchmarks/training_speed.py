"""How fast one update is: the three EDP losses, TorchRL's feed-forward TD3+BC and IQL, Diffusion-QL, products alone.

    python examples/benchmarks/training_speed.py --output examples/benchmarks/results/training_speed
    python examples/benchmarks/training_speed.py --cases edp_iql iql    # only names that start with one of these

The work: observation 17, action 6, batch 256, networks of 3 x 256 with Mish, K = 1000, single-step DPM-Solver-3 with
15 calls for next actions (the paper's), two critics, Adam, clipping, targets, sampling of the batch. The feed-forward
losses get the same networks, batch, optimizer and loss, and train the actor at every update; "relu" is TD3+BC with the
networks it usually has. "products" are the matrix products of one update by ``torch.mm`` and nothing else, un-hoisted:
about the least that these networks cost. Diffusion-QL is our TD3 loss through the whole chain of DDPM; compiled, at 100
steps, it is the network that is compiled and not the unrolled chain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from feed_forward import iql_state, relu_work, td3_bc_state
from harness import Case, interleave, report, use_onednn
from work import Work, edp_state, gflop, product_list, products, tiny_work

COLUMNS = ["case", "onednn", "per_second", "quartiles", "of_products"]
NOTES = (
    "Updates per second, medians and quartiles over turns; `of_products`: share of the rate of the same update's "
    "matrix products alone, by the same library (oneDNN or MKL)."
)
CHAIN = {"guidance_start": "noise", "qvalue_normalization": "other"}


def makers(work: Work) -> dict[str, Callable[[], Callable[[], Any]]]:
    """How to build what every case runs, by its name."""
    cases: dict[str, Callable[[], Callable[[], Any]]] = {}
    for name in ("td3", "iql", "crr"):
        cases[f"edp_{name} compiled"] = lambda name=name: edp_state(work, name, compile=True).update
        cases[f"edp_{name} eager"] = lambda name=name: edp_state(work, name).update
        cases[f"products {name}"] = lambda name=name: products(work, name)
    cases["td3_bc compiled"] = lambda: td3_bc_state(work, compile=True).update
    cases["td3_bc relu compiled"] = lambda: td3_bc_state(relu_work(work), compile=True).update
    cases["iql compiled"] = lambda: iql_state(work, compile=True).update
    for steps in (5, 100):
        cases[f"diffusion_ql {steps} eager"] = lambda steps=steps: diffusion_ql(work, steps).update
    cases["diffusion_ql 5 compiled"] = lambda: diffusion_ql(work, 5, compile=True).update
    cases["diffusion_ql 100 compiled"] = lambda: diffusion_ql(work, 100, compile_network=True).update
    return cases


def diffusion_ql(work: Work, steps: int, *, compile: bool = False, compile_network: bool = False) -> Any:
    """Diffusion-QL: our TD3 loss through all ``steps`` of the vp chain."""
    chain = work.with_diffusion(num_steps=steps, schedule="vp", solver="ddpm", num_calls=None)
    return edp_state(chain, "td3", compile=compile, compile_network=compile_network, **CHAIN)


def run(work: Work, wanted: Sequence[str] | None, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time the wanted cases by both libraries."""
    cases = []
    for name, make in makers(work).items():
        for onednn in (False, True):
            if wanted is None or name.startswith(tuple(wanted)):
                use_onednn(onednn)  # what is compiled is fitted to the library
                cases.append(Case(name, make(), onednn))
    rows = interleave(cases, rounds=rounds, seconds=seconds)
    limits = {(row["case"].split()[1], row["onednn"]): row["per_second"] for row in rows if "products" in row["case"]}
    for row in rows:
        limit = limits.get((row["case"].split()[0].removeprefix("edp_"), row["onednn"]))
        if row["case"].startswith("edp_") and limit is not None:
            row["of_products"] = row["per_second"] / limit
    return rows


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", help="how wanted names start; all cases by default")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a case's turn")
    parser.add_argument("--device", help="torch device; the CPU by default")
    parser.add_argument("--output", help="where to write results, without suffix")
    parser.add_argument("--tiny", action="store_true", help="a size at which only the script is tested")
    args = parser.parse_args()
    work = tiny_work() if args.tiny else Work(device=args.device)
    print("Matrix products of one update: (of what, times, rows, in, out)")
    for name in ("td3", "iql", "crr"):
        print(f"{name}, {gflop(work, name):.2f} GFLOP: {product_list(work, name)}")
    report(run(work, args.cases, args.rounds, args.seconds), COLUMNS, args.output, NOTES)


if __name__ == "__main__":
    main()
