"""What may import what, and what an import drags in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "torchrl_edp"
ROOT = Path(__file__).parents[1]
MATHS = {"diffusion", "modules"}
MAY_IMPORT = {  # sub-package -> sub-packages below it
    "diffusion": set(),
    "modules": {"diffusion"},
    "objectives": MATHS,
    "data": MATHS,
    "evaluation": MATHS,
    "training": MATHS | {"objectives", "data", "evaluation"},
    "configs": MATHS | {"objectives", "data", "evaluation", "training"},
    "": MATHS | {"objectives", "data", "evaluation", "training"},  # the package's own __init__
}


def read_package() -> dict[str, str]:
    """Module name -> source of every module of the package."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path.read_text() for name, path in zip(names, paths, strict=True)}


def layer_of(module: str) -> str:
    """The sub-package a module is in, "" for the package's own __init__."""
    return f"{module}.".split(".")[1]


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(dotted name, local alias) of everything a module imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((item.name, item.asname or item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            yield from ((f"{source}.{item.name}", item.asname or item.name) for item in node.names)


def import_violations(modules: dict[str, str]) -> list[str]:
    """The breaches of the import rules in `modules` (name -> source)."""
    breaches = []
    graph: dict[str, set[str]] = {}
    for module, source in modules.items():
        layer = layer_of(module)
        for name, _ in imported_names(ast.parse(source)):
            top, *rest = name.split(".")
            if top == PACKAGE:
                if not rest or rest[0] not in MAY_IMPORT.get(layer, set()) | {layer}:
                    breaches.append(f"{module} imports {name}")
                prefixes = (".".join([top, *rest[:i]]) for i in range(len(rest), -1, -1))
                graph.setdefault(module, set()).update([p for p in prefixes if p in modules][:1])
            elif not top:
                breaches.append(f"{module} imports {name}, write it absolute")
            elif layer == "diffusion" and top not in {"torch", *sys.stdlib_module_names}:
                breaches.append(f"{module} imports {name}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        breaches.append("circle: " + " <- ".join(error.args[1]))
    return breaches


def test_imports_run_one_way():
    modules = read_package()
    assert set(map(layer_of, modules)) <= MAY_IMPORT.keys(), "a new sub-package needs its rule"
    assert import_violations(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "breach"),
    [
        ("diffusion.solvers", "import numpy as np", "imports numpy"),
        (
            "diffusion.solvers",
            "from torchrl_edp.modules.actor import EDPActor",
            "imports torchrl_edp.modules.actor",
        ),
        (
            "modules.actor",
            "def f():\n    from torchrl_edp import EDPIQLLoss",
            "imports torchrl_edp.EDPIQLLoss",
        ),
        ("modules.actor", "import torchrl_edp", "imports torchrl_edp"),
        ("objectives.iql", "from torchrl_edp import training", "imports torchrl_edp.training"),
        (
            "objectives.iql",
            "from torchrl_edp.data import load_minari",
            "imports torchrl_edp.data.load_minari",
        ),
        ("data.loading", "from torchrl_edp.objectives import EDPIQLLoss", "imports torchrl_edp.objectives"),
        (
            "evaluation.rollout",
            "import torchrl_edp.training.loop as loop",
            "imports torchrl_edp.training.loop",
        ),
        ("training.loop", "from torchrl_edp.configs import presets", "imports torchrl_edp.configs"),
        ("training.loop", "from .state import State", "imports .state.State, write it absolute"),
    ],
)
def test_the_import_check_sees_a_breach(module, source, breach):
    (found,) = import_violations({f"torchrl_edp.{module}": source})
    assert found.startswith(f"torchrl_edp.{module} {breach}")


def test_the_import_check_sees_a_circle_and_allows_the_rest():
    package = {"torchrl_edp.data": "from torchrl_edp.data.a import f\nfrom torchrl_edp.data.b import g"}
    package["torchrl_edp.data.a"] = "import h5py\nfrom torchrl_edp.data.b import g\nimport torchrl_edp.diffusion"
    assert import_violations({**package, "torchrl_edp.data.b": "import torch, math"}) == []
    for closing in ("from torchrl_edp.data import a", "from torchrl_edp.data import f"):
        (found,) = import_violations({**package, "torchrl_edp.data.b": closing})
        assert found.startswith("circle: ")


def heavy_imports(statement: str) -> set[str]:
    """Which heavy packages `statement` imports in a fresh process, beyond what torchrl itself does."""
    code = (
        "import sys, torchrl\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print({'hydra', 'minari', 'gymnasium', 'matplotlib'} & (set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set() if run.stdout == "set()\n" else ast.literal_eval(run.stdout)


@pytest.mark.slow
def test_importing_is_light():
    assert heavy_imports("import torchrl_edp.data, torchrl_edp.evaluation") == set()


@pytest.mark.slow
def test_the_check_for_heavy_imports():
    assert heavy_imports("import matplotlib") == {"matplotlib"}
