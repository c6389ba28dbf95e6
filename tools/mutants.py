"""Can the checks fail? Small faults are planted in kernels and gradients, one at a time.

    python -m tools.mutants                           # 200 faults: `make mutants`
    python -m tools.mutants --only gradients --count 20
    python -m tools.mutants --show 17                 # the 17th fault as a diff

A fault is a sign, an index, a factor, a comparison or a constant changed in a function that is
compiled, or that computes a gradient or an optimizer's step. It is planted in a copy of the tree,
in the module and in the notebook's cell it comes from. Then three checks run until one fails: the
module's tests of kernels uncompiled, all tests of the module, and the cells of the notebook. A
fault that no check finds has survived: it needs a test, or a reason in `EQUIVALENT`. A check that
does not end within its time has found the fault, too. The choice is seeded and spread evenly over
modules.
"""

import argparse
import ast
import copy
import difflib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tools import REPO, claims

RESULT = REPO / "experiments" / "results" / "mutants.json"
COMPILED = {"compiled", "_for_kernels", "register_jitable", "overload", "intrinsic"}
GRADIENT = re.compile(r"backward|grad|_step|^step$")
NOT_ABOUT_CODE = re.compile(r"test_(project|pages|render|links|package|claims|mnist_lenet)\.py")
SECONDS = 400  # for one check

# Faults that change nothing that can be observed: where ("module: line of code") and what -> why.
ANY = "NumPy takes any negative length for the one that is to be found out"
EQUIVALENT: dict[tuple[str, str], str] = {
    ("rnn: h = state[0] if isinstance(state, tuple) else state", "0 -> 1"): (
        "only the shape and dtype of `h` are used, and those of the cell state are the same"
    ),
    ("mlp: grad_weight = np.dot(flat.T, x.reshape(-1, n))", "1 -> 2"): ANY,
    (
        "attention_scores: return np.dot(a.reshape(-1, a.shape[2]).T, b.reshape(-1, b.shape[2]))",
        "1 -> 2",
    ): ANY,
    (
        "tiled_attention: cost = n * blocks * (_BLOCK_GRAD_COST + products // _PRODUCTS_GRAD)",
        "products // _PRODUCTS_GRAD -> (products * _PRODUCTS_GRAD)",
    ): "an estimate of the work, which only says among how many threads it is shared",
    (
        "microkernels: c = _Code(context, builder, signature.args[:3], args[:3])",
        "3 -> 6",
    ): "the longer list of types is cut to the three arguments",
    (
        "rnn: total = used.T @ grad.reshape(n, width)",
        "used.T @ grad.reshape(n, width) -> (used.T * grad.reshape(n, width))",
    ): "for SciPy's `csr_matrix`, `*` is the product of matrices as well",
    (
        "recurrence: i, f, g, o = z[:n], z[n : 2 * n], z[2 * n : 3 * n], z[3 * n : 4 * n]",
        "2 -> 4",
    ): ("the slice becomes longer, and only its first n entries are used"),
    ("recurrence: x = np.where(mask, x, dtype.type(0))", "0 -> 1"): (
        "the gradients of masked steps are 0, and 0 times any finite number is 0"
    ),
    ("sequences: values = series.reshape(len(series), -1)", "1 -> 2"): ANY,
    ("tiled_attention: flat, weights = dz.reshape(-1), p.reshape(-1)", "1 -> 2"): ANY,
    (
        "training: size = math.ceil(arrays[0].size / threads)",
        "arrays[0].size / threads -> (arrays[0].size * threads)",
    ): "one thread gets all elements: only how the work is distributed",
    (
        "training: if max_norm < norm < math.inf:",
        "max_norm < norm < math.inf -> max_norm <= norm < math.inf",
    ): "where the two are equal, the gradients are multiplied by 1",
    (
        "convolution: if w.shape[0] > TILE_ROWS // 2:",
        "2 -> 4",
    ): "both micro-kernels add up the same products in the same order; one is faster",
    (
        "normalization: if not low < stats[1, i] < 1 / low:",
        "low < stats[1, i] < 1 / low -> low <= stats[1, i] < 1 / low",
    ): "a bound with a wide margin: at the bound itself, both ways are accurate",
}


class Fault(NamedTuple):
    "A piece of a module's text and what is put in its place."

    module: str
    line: int
    start: int  # characters from the beginning of the file
    end: int
    old: str
    new: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.module}: {self.old} -> {self.new}"

    @property
    def code(self) -> str:
        "The line in which it is planted."
        path = REPO / places(self.module)[0]
        return path.read_text(encoding="utf-8").splitlines()[self.line - 1].strip()


def reason(fault: Fault) -> str:
    "Why nobody can observe the fault; nothing where it has to be found."
    return EQUIVALENT.get((f"{fault.module}: {fault.code}", f"{fault.old} -> {fault.new}"), "")


OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "Kind and replacement for each way in which this node is changed."
    new = copy.deepcopy(node)
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        new.op = OPERATORS[type(node.op)]()
        yield "operator", new
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        new.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield "comparison", new
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        yield "sign", node.operand
    elif is_number(node):
        yield "constant", ast.Constant(node.value + 1 if node.value in (0, 1) else node.value * 2)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("min", "max"):
            new.func.id = {"min": "max", "max": "min"}[node.func.id]
            yield "minimum, maximum", new
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name):
        for op in (ast.Add(), ast.Sub()):
            new = copy.deepcopy(node)
            new.slice = ast.BinOp(node.slice, op, ast.Constant(1))
            yield "index", new


def bodies(tree: ast.Module) -> Iterator[ast.stmt]:
    "Statements of the functions that are compiled, or that compute gradients or steps."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            called = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
            jitted = {d.id for d in called if isinstance(d, ast.Name)} & COMPILED
            if jitted or GRADIENT.search(node.name):
                yield from node.body


def candidates(module: str, text: str) -> list[Fault]:
    "All faults that can be planted in a module, in the order of its text."
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found = {}
    for statement in bodies(ast.parse(text)):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        for node in ast.walk(statement):
            if isinstance(node, (ast.JoinedStr, ast.Raise)):
                for inner in ast.walk(node):
                    inner.skipped = True  # type: ignore[attr-defined]
            if hasattr(node, "skipped") or not hasattr(node, "col_offset"):
                continue
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[node.end_lineno - 1] + node.end_col_offset
            for kind, new in changed(node):
                after = ast.unparse(ast.fix_missing_locations(new))
                if isinstance(node, ast.BinOp):
                    after = f"({after})"
                found[start, end, after] = Fault(
                    module, node.lineno, start, end, text[start:end], after, kind
                )
    return [found[key] for key in sorted(found)]


def chosen(count: int, seed: int, only: str | None) -> list[Fault]:
    "So many faults, by turns from each module."
    by_module = {}
    for path in sorted((REPO / "dlnotes").rglob("*.py")):
        if not path.stem.startswith("_") and only in (None, path.stem):
            found = candidates(path.stem, path.read_text(encoding="utf-8"))
            random.Random(f"{seed} {path.stem}").shuffle(found)
            by_module[path.stem] = found
    faults = []
    while len(faults) < count and any(by_module.values()):
        faults += [found.pop() for found in by_module.values() if found]
    return faults[:count]


def places(module: str) -> tuple[Path, Path]:
    "The module's file and its notebook, from the top of the repository."
    path = next((REPO / "dlnotes").rglob(f"{module}.py")).relative_to(REPO / "dlnotes")
    return "dlnotes" / path, "nbs" / path.with_suffix(".ipynb")


def planted(fault: Fault, tree: Path) -> None:
    "Put the fault into the module and into its notebook."
    module, path = (tree / place for place in places(fault.module))
    text = module.read_text(encoding="utf-8")
    module.write_text(text[: fault.start] + fault.new + text[fault.end :], encoding="utf-8")
    cell = text.rfind("\n# %% ", 0, fault.start)
    identity = re.match(r"\n# %% \S+ #(\w+)\n", text[cell:])
    book = json.loads(path.read_text(encoding="utf-8"))
    for entry in book["cells"]:
        source = "".join(entry["source"])
        code = source.find(text[cell + identity.end() : fault.start])
        if entry["id"] == identity.group(1) and code >= 0:
            start = code + fault.start - cell - identity.end()
            source = source[:start] + fault.new + source[start + fault.end - fault.start :]
            entry["source"] = source.splitlines(keepends=True)
            break
    else:
        raise ValueError(f"the cell of {fault.name} was not found")
    path.write_text(json.dumps(book), encoding="utf-8")


def imported(path: Path, names: dict[str, str]) -> set[str]:
    "The modules of the package that a file imports, or a public name of which."
    used = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or "dlnotes" in node.module):
            used.add((node.module or "").rpartition(".")[2])
            used |= {names.get(alias.name, alias.name) for alias in node.names}
    return used


def tests_of_modules() -> dict[str, list[str]]:
    "Module -> test files: its own, those that import it, those of modules that import it."
    modules = {p.stem: p for p in (REPO / "dlnotes").rglob("*.py") if not p.stem.startswith("_")}
    names = {}
    for module, path in modules.items():
        listed = re.search(r"^__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), re.M | re.S)
        names |= dict.fromkeys(ast.literal_eval(listed.group(1)) if listed else (), module)
    files = [
        p for p in sorted((REPO / "tests").glob("test_*.py")) if not NOT_ABOUT_CODE.match(p.name)
    ]
    uses = {f"tests/{path.name}": imported(path, names) for path in files}
    importers = {
        m: {k for k, path in modules.items() if m in imported(path, names)} for m in modules
    }
    tests = {}
    for module in modules:
        direct = [test for test, used in uses.items() if module in used]
        direct.sort(key=lambda test: (module not in test, "accuracy" not in test, test))
        others = [f"tests/test_{importer}.py" for importer in sorted(importers[module])]
        tests[module] = direct + [test for test in others if test in uses and test not in direct]
    return tests


class Checks:
    "The three checks, in a copy of the tree that is one worker's own."

    def __init__(self, tests: dict[str, list[str]]):
        self.tests, self.folder = tests, Path(tempfile.mkdtemp(prefix="mutants-"))
        self.tree = self.folder / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "_book", "build", "*.egg-info")
        shutil.copytree(REPO, self.tree, ignore=ignored)

    def run(self, *command: str, **environment: str) -> bool:
        "Whether the command ends well, and in time."
        merged = {**os.environ, "PYTHONPATH": str(self.tree), "OPENBLAS_NUM_THREADS": "1",
                  "PYTHONDONTWRITEBYTECODE": "1", **environment}  # fmt: skip
        merged.pop("DLNOTES_ALL_TESTS", None)
        try:
            done = subprocess.run(command, cwd=self.tree, env=merged, timeout=SECONDS,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        return done.returncode in (0, 5)  # 5: no test of this kind

    def found_by(self, fault: Fault) -> str:
        "The check that finds the fault, or nothing."
        module, notebook = places(fault.module)
        cache = self.folder / "cache"
        files = self.tests.get(fault.module, [])
        pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        pytest += ["--hypothesis-profile=mutants", *files]
        cells = f"import sys; from tools.mutants import cells; sys.exit(cells({str(notebook)!r}))"
        try:
            planted(fault, self.tree)
            if files and not self.run(*pytest, "-m", "kernel", NUMBA_DISABLE_JIT="1"):
                return "uncompiled kernels"
            if files and not self.run(*pytest, NUMBA_CACHE_DIR=str(cache)):
                return "tests"
            fresh = {"NUMBA_CACHE_DIR": f"{cache}-cells", "XDG_CACHE_HOME": f"{cache}-cells"}
            return "" if self.run(sys.executable, "-c", cells, **fresh) else "cells"
        finally:
            for path in (module, notebook):
                shutil.copy(REPO / path, self.tree / path)


def cells(notebook: str) -> int:
    "1 if a cell of a notebook fails."
    return len(claims.execute(Path(notebook).resolve(), {}, {}, to_its_end=False)["failures"])


def run(faults: list[Fault], jobs: int) -> list[str]:
    "For each fault the check that found it; progress on standard error."
    tests, workers, found = tests_of_modules(), SimpleQueue(), [""] * len(faults)
    for _ in range(jobs):
        workers.put(Checks(tests))

    def check(i: int) -> int:
        worker = workers.get()
        try:
            found[i] = worker.found_by(faults[i])
        finally:
            workers.put(worker)
        return i

    with ThreadPoolExecutor(jobs) as pool:
        for n, future in enumerate(as_completed(pool.submit(check, i) for i in range(len(faults)))):
            i = future.result()
            fault, state = faults[i], found[i] or "SURVIVED"
            claims.say(f"[{n + 1}/{len(faults)}] {i} {fault.name} (line {fault.line}): {state}")
    while not workers.empty():
        shutil.rmtree(workers.get().folder)
    return found


def report(faults: list[Fault], found: list[str], seed: int, seconds: float) -> dict:
    "What the result file says."
    survivors = [fault for fault, by in zip(faults, found) if not by]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "seed": seed,
        "seconds": round(seconds),
        "planted": len(faults),
        "found": len(faults) - len(survivors),
        "found_later": 0,  # by tests that were written for survivors
        "by_check": dict(Counter(by for by in found if by)),
        "by_module": {
            module: [sum(bool(by) for f, by in zip(faults, found) if f.module == module), n]
            for module, n in sorted(Counter(fault.module for fault in faults).items())
        },
        "by_kind": {
            kind: [sum(bool(by) for f, by in zip(faults, found) if f.kind == kind), n]
            for kind, n in sorted(Counter(fault.kind for fault in faults).items())
        },
        "survivors": [
            {"fault": f.name, "line": f.line, "code": f.code, "reason": reason(f)}
            for f in survivors
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--count", type=int, default=200, help="how many faults (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    parser.add_argument("--only", metavar="MODULE", help="faults in one module")
    parser.add_argument("--show", type=int, metavar="I", help="show a fault as a diff, run nothing")
    parser.add_argument("--faults", type=int, nargs="+", metavar="I", help="these of them only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    options = parser.parse_args()
    faults = chosen(options.count, options.seed, options.only)
    if options.show is not None:
        fault = faults[options.show]
        text = (REPO / places(fault.module)[0]).read_text(encoding="utf-8")
        new = text[: fault.start] + fault.new + text[fault.end :]
        print(*difflib.unified_diff(text.split("\n"), new.split("\n"), lineterm=""), sep="\n")
        return 0
    whole = not options.only and not options.faults and options.count >= 200
    if options.faults:
        faults = [faults[i] for i in options.faults]
    began = time.perf_counter()
    result = report(faults, run(faults, options.jobs), options.seed, time.perf_counter() - began)
    result["seconds"] = round(time.perf_counter() - began)
    for survivor in result["survivors"]:
        print("survived: {fault} (line {line}) {reason}".format(**survivor))
    print("found by module:", *(f"{m} {a}/{b}" for m, (a, b) in result["by_module"].items()))
    print("found by kind:", *(f"{k} {a}/{b};" for k, (a, b) in result["by_kind"].items()))
    if whole:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['found']} of {result['planted']} faults found")
    return int(result["found"] < 0.9 * result["planted"])


if __name__ == "__main__":
    sys.exit(main())
