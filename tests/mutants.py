"""Mutation testing of ``diffusion/`` and ``objectives/``: break one thing at a time and see whether a test notices.

    nice python tests/mutants.py --count 300 --seed 0 --jobs 2

A mutant is the package with one change: another operator, comparison, constant or condition, a call or a sign left
out. Messages (what is raised or warned) and annotations stay. Every mutant of the sample runs its tests in a temporary
copy of the tree, those of its own file first, until one fails. ``tests/mutants.json`` gets its outcome at once:

- ``killed``: a test failed, a test file could not be collected, or the changed module could not be imported;
- ``timeout``: the tests used four times their usual CPU time and 20 s more, which a loaded machine cannot fake; counts
  as killed;
- ``survived``: all passed;
- ``error``: pytest itself failed, or waited an hour for something; it counts as survived.

Only tests whose names speak of compiling are left out, for their time. All tests must pass before anything is changed.
``--resume`` goes on where a run stopped, ``--again`` runs what was not killed once more, after new tests.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
OPTIONS = ["-x", "-q", "-o", "addopts=", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-k", "not compile"]  # plugins are imported already

# --- mutants

SWAPS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
}


@dataclass(frozen=True)
class Mutant:
    """One change: the bytes ``start`` to ``stop`` of ``file`` become ``after``."""

    file: str
    line: int
    column: int
    start: int
    stop: int
    before: str
    after: str

    def applied_to(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.stop :]


def sites(file: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    source = (ROOT / file).read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    tree, mutants = ast.parse(source), []
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {name.asname or name.name for node in imports for name in node.names}
    for node, new in _changes(tree, imported | {"self", "cls", "super"}):
        start, stop = lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset
        after = ast.unparse(new) if isinstance(new, ast.stmt) else f"({ast.unparse(new)})"
        before = " ".join(source[start:stop].decode().split())
        mutants.append(Mutant(file, node.lineno, node.col_offset, start, stop, before, after))
        compile(mutants[-1].applied_to(source), file, "exec")
    return mutants


def _changes(node: ast.AST, imported: set[str]) -> Iterator[tuple[Any, ast.AST]]:
    """Every (node, what takes its place) below and at a node."""
    if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        yield node, _with(node, op=SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield node, _with(node, ops=[*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]])
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield node, ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.UnaryOp):
        yield node, node.operand
    elif isinstance(node, (ast.If, ast.IfExp)) and isinstance(node.test, (ast.Name, ast.Attribute, ast.Call)):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, ast.Pass()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        if not (isinstance(owner, ast.Name) and owner.id in imported):
            yield node, owner
    parts = [value for name, value in ast.iter_fields(node) if name not in ("annotation", "returns", "decorator_list")]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # its owner alone would be the same as nothing
        is_warning = ast.unparse(node.value.func) == "warnings.warn"
        parts = [] if is_warning else [node.value.args, node.value.keywords]
    for part in parts:
        for child in part if isinstance(part, list) else [part]:
            if isinstance(child, ast.AST):
                yield from _changes(child, imported)


def _with(node: ast.AST, **changes: Any) -> ast.AST:
    node = copy.copy(node)
    vars(node).update(changes)
    return node


# --- tests


def groups_of(file: str) -> list[list[str]]:
    """Test files for mutants of a file: its own, then those of its folder, then those of what is built on it."""
    folder, stem = Path(file).parent.name, Path(file).stem
    of_folder = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / folder).glob("test_*.py"))
    first = [test for test in of_folder if Path(test).stem.removeprefix("test_").startswith(OWN.get(stem, (stem,)))]
    last = ["tests/configs/test_combinations.py"]
    if folder == "diffusion":
        last = ["tests/modules/test_actor.py", "tests/objectives/test_functional.py", *last]
    return [first, [test for test in of_folder if test not in first], last]


OWN = {  # test files by the beginnings of their names
    "solvers": ("solver",),
    "common": ("guidance_start", "td3_values", "iql_values", "contract_keys"),
    "critics": ("td3_values", "contract_targets"),
    "likelihood": ("iql", "crr"),
    "sampled_target": ("td3",),
}


class Progress:
    """Pytest plugin: names the test file at work through a pipe, so that it is known even if the process dies."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.file, self.not_collected = pipe, "", False

    def say(self, file: str) -> None:
        if file != self.file:
            os.write(self.pipe, f"\n{file}".encode())
            self.file = file

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.say(nodeid.split("::")[0])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.say(report.nodeid)
            self.not_collected = True


def run_tests(module: str, tests: list[str], seconds: float) -> tuple[str, str, float]:
    """Outcome, last test file and CPU seconds of tests in a fork of this process, in the current folder."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            code = _test(module, tests, seconds, Progress(write))
        finally:
            os._exit(code)
    os.close(write)
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests had started
    with open(read) as pipe:
        file = pipe.read().split("\n")[-1]
    code = os.waitstatus_to_exitcode(status)
    outcomes = {0: "survived", 1: "killed", -signal.SIGXCPU: "timeout", -signal.SIGSEGV: "killed"}
    return outcomes.get(code, "error"), file, usage.ru_utime + usage.ru_stime


def _test(module: str, tests: list[str], seconds: float, progress: Progress) -> int:
    os.setsid()
    log = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 60))
    signal.alarm(3600)
    try:
        found = importlib.import_module(module)
    except Exception:
        progress.say("import")
        return 1
    if not Path(found.__file__ or "").is_relative_to(Path.cwd()):
        raise ImportError(f"{module} comes from {found.__file__}, not from the copy")
    code = int(pytest.main([*OPTIONS, *tests], plugins=[progress]))
    return 1 if code == pytest.ExitCode.INTERRUPTED and progress.not_collected else code


# --- the work


def enter_copy(folder: str) -> None:
    """Go to a copy of the tree of this process's own, the one that the package will be imported from."""
    tree = Path(tempfile.mkdtemp(dir=folder)).resolve() / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "outputs"))
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)


def warm_up() -> None:
    """Import what the tests need except the package itself: forks then begin at once."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    for name in ("diffusers", "hydra", "hypothesis", "torchrl.data", "torchrl.modules", "torchrl.objectives"):
        importlib.import_module(name)
    importlib.import_module("torchrl.trainers.algorithms.configs")
    importlib.import_module("torch").set_num_threads(1)
    hypothesis = importlib.import_module("hypothesis")  # a slow machine is no failure
    hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.load_profile("patient")


def module_of(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def usual_seconds(test: str) -> float:
    """CPU time of a test file on the unchanged package, which it must pass."""
    outcome, _, seconds = run_tests("torchrl_edp", [test], 3600)
    if outcome != "survived":
        raise RuntimeError(f"Nothing is changed yet, but {test} fails ({outcome}):\n{Path('pytest.log').read_text()}")
    return seconds


def run_mutant(mutant: Mutant, groups: list[list[str]], usual: dict[str, float]) -> dict[str, Any]:
    path, used = Path(mutant.file), 0.0
    source = path.read_bytes()
    path.write_bytes(mutant.applied_to(source))
    try:
        for tests in groups:
            limit = 4 * sum(usual[test] for test in tests) + 20
            outcome, test, seconds = run_tests(module_of(mutant.file), sorted(tests, key=usual.__getitem__), limit)
            used += seconds
            if outcome != "survived":
                break
    finally:
        path.write_bytes(source)
    result = {name: getattr(mutant, name) for name in ("file", "line", "column", "before", "after")}
    return result | {"outcome": outcome, "test": None if outcome == "survived" else test, "seconds": round(used, 1)}


def is_alive(result: dict[str, Any]) -> bool:
    return result["outcome"] not in ("killed", "timeout")


def describe(result: dict[str, Any]) -> str:
    return "{outcome:8} {seconds:5} {file}:{line}  {before}  ->  {after}".format(**result)


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["file"], result["line"], result["column"], result["after"]


def save(results: dict[tuple[Any, ...], dict[str, Any]], header: dict[str, Any]) -> dict[str, Any]:
    """Write the outcomes, one to a line, and their sum."""
    counts = Counter(result["outcome"] for result in results.values())
    rate = 1 - sum(map(is_alive, results.values())) / len(results)
    header = header | {"done": len(results), **counts, "rate": round(rate, 4)}
    lines = ",\n".join(json.dumps(results[name]) for name in sorted(results))
    new = RESULTS.with_suffix(".new")
    new.write_text(f'{{"summary": {json.dumps(header)},\n"mutants": [\n{lines}\n]}}\n')
    new.replace(RESULTS)
    return header


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="size of the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--resume", action="store_true", help="keep the outcomes that tests/mutants.json has")
    parser.add_argument("--again", action="store_true", help="as --resume, but run those that were not killed again")
    args = parser.parse_args()
    folders = [ROOT / "torchrl_edp" / name for name in ("diffusion", "objectives")]
    files = [str(path.relative_to(ROOT)) for folder in folders for path in sorted(folder.glob("[!_]*.py"))]
    every = [mutant for file in files for mutant in sites(file)]
    sample = {key(vars(mutant)): mutant for mutant in random.Random(args.seed).sample(every, args.count)}
    found = json.loads(RESULTS.read_text())["mutants"] if (args.resume or args.again) and RESULTS.exists() else []
    kept = [result for result in found if key(result) in sample and not (args.again and is_alive(result))]
    results = {key(result): result for result in kept}
    header = {"seed": args.seed, "count": args.count, "possible": len(every)}
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        context = get_context("fork")
        with ProcessPoolExecutor(args.jobs, context, initializer=enter_copy, initargs=(folder,)) as pool:
            groups = {file: groups_of(file) for file in files}
            tests = sorted({test for file in files for group in groups[file] for test in group})
            usual = dict(zip(tests, pool.map(usual_seconds, tests), strict=True))
            print(f"The tests pass, in {sum(usual.values()):.0f} CPU seconds.", flush=True)
            left = [mutant for name, mutant in sample.items() if name not in results]
            futures = [pool.submit(run_mutant, mutant, groups[mutant.file], usual) for mutant in left]
            for future in as_completed(futures):
                result = future.result()
                results[key(result)] = result
                save(results, header)
                print(describe(result), flush=True)
    print("Not killed:", *(describe(results[name]) for name in sorted(results) if is_alive(results[name])), sep="\n")
    print(save(results, header))


if __name__ == "__main__":
    main()
