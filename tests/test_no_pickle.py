"""Nothing in the library or the examples can execute what a file says: no unsafe load is named anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve", "_pickle"}
NAMES = {
    "__import__",
    "builtins.eval",
    "builtins.exec",
    "eval",
    "exec",
    "importlib.import_module",
    "numpy.core.multiarray._reconstruct",
    "omegaconf._utils.yaml",
    "pandas.read_pickle",
    "runpy",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
    "torch.package",
    "torch.serialization",
    "yaml.FullLoader",
    "yaml.Loader",
    "yaml.UnsafeLoader",
    "yaml.full_load",
    "yaml.full_load_all",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
}


def unsafe(source: str) -> list[str]:
    """``line: name`` of everything in ``source`` that could load and execute, called or only named."""
    tree = ast.parse(source)
    aliases, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {item.asname or item.name.split(".")[0]: item.name if item.asname else None for item in node.names}
            aliases |= {alias: name or alias for alias, name in names.items()}
            found += [(node.lineno, item.name) for item in node.names if _refused(item.name)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
            aliases |= full
            found += [(node.lineno, name) for name in full.values() if _refused(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := _full_name(node, aliases)) and name in NAMES:
            found.append((node.lineno, name))
        elif isinstance(node, ast.Call) and _allows_pickle(node, _full_name(node.func, aliases)):
            found.append((node.lineno, "allow_pickle"))
    return [f"{line}: {name}" for line, name in sorted(set(found))]


def _refused(name: str) -> bool:
    return name.split(".")[0] in MODULES or any(f"{name}.".startswith(f"{refused}.") for refused in NAMES)


def _full_name(node: ast.expr, aliases: dict[str, str]) -> str:
    """``np.load`` as ``numpy.load``; empty for what is no dotted name."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (head := _full_name(node.value, aliases)):
        return f"{head}.{node.attr}"
    return ""


def _allows_pickle(call: ast.Call, name: str) -> bool:
    """Whether a call may turn on numpy's pickles: by name, by position or by what cannot be read here."""
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    if "allow_pickle" in options:
        value = options["allow_pickle"]
        return not (isinstance(value, ast.Constant) and value.value is False)
    hidden = None in options or any(isinstance(argument, ast.Starred) for argument in call.args)
    return name == "numpy.load" and (len(call.args) > 2 or hidden)


def test_no_unsafe_load_is_named():
    paths = sorted([*(ROOT / "torchrl_edp").rglob("*.py"), *(ROOT / "examples").rglob("*.py")])
    assert len(paths) > 40
    found = {str(path.relative_to(ROOT)): names for path in paths if (names := unsafe(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch as t\nt.load('x')", "torch.load"),
        ("import torch\ntorch.load('x', weights_only=True)", "torch.load"),
        ("from torch import load as read", "torch.load"),
        ("import torch\nf = torch.load", "torch.load"),
        ("import torch\ntorch.jit.load('x')", "torch.jit.load"),
        ("from torch.serialization import load", "torch.serialization.load"),
        ("def f():\n    import pickle", "pickle"),
        ("from pickle import loads", "pickle.loads"),
        ("from joblib import load", "joblib.load"),
        ("import marshal, shelve", "marshal"),
        ("import dill as safe", "dill"),
        ("import cloudpickle.compat", "cloudpickle.compat"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("from numpy import load\nload('x', None, True)", "allow_pickle"),
        ("import numpy as np\nnp.load('x', **options)", "allow_pickle"),
        ("import numpy as np\nnp.load('x', allow_pickle=flag)", "allow_pickle"),
        ("import pandas as pd\npd.read_pickle('x')", "pandas.read_pickle"),
        ("import yaml\nyaml.load('x', Loader=yaml.SafeLoader)", "yaml.load"),
        ("from yaml import unsafe_load", "yaml.unsafe_load"),
        ("import yaml\nyaml.full_load('x')", "yaml.full_load"),
        ("eval('1')", "eval"),
        ("run = exec", "exec"),
        ("import builtins\nbuiltins.eval('1')", "builtins.eval"),
        ("__import__('pickle').loads(b'')", "__import__"),
        ("import importlib\nimportlib.import_module('pickle')", "importlib.import_module"),
    ],
)
def test_planted_loads_are_found(source, name):
    assert [found.split(": ")[1] for found in unsafe(source)][0] == name


def test_every_refused_module_is_found():
    assert unsafe("\n".join(f"import {name}" for name in sorted(MODULES))) == [
        f"{line}: {name}" for line, name in enumerate(sorted(MODULES), 1)
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.load('x')\nnp.load('x', 'r')\nnp.load('x', allow_pickle=False)",
        "import json\njson.load(file)",
        "model.eval()\nself.load('x')\nstore.load(1)",
        "from safetensors.torch import load, load_file\nload(b'')",
        "import yaml\nyaml.safe_load('x')",
        "import torch\ntorch.compile(f)\ntorch.save",
    ],
)
def test_harmless_calls_pass(source):
    assert unsafe(source) == []
