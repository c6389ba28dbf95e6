"""Everything that CI checks, step by step, with the time of each.

    python -m tools.check                   # all steps: `make test`
    python -m tools.check lint uncompiled   # some of them
    python -m tools.check notebooks         # what is no part of all: see `EXTRA`

The Makefile, `.ci/run` and the GitHub workflow all call this, so that they check the same on every
system (there is no make on Windows). The first step that fails ends the run.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable

from tools import REPO, claims, own_caches

WORKERS = str(os.cpu_count() or 1)
# test files beside each other, each in one process
PYTEST = [sys.executable, "-m", "pytest", "-n", WORKERS, "--dist", "loadfile"]
NBDEV_TEST = ["nbdev_test", "--path", "nbs", "--do_print", "--n_workers", WORKERS]
PACKAGE = REPO / "dlnotes"
FORMATTED = ["nbs", "tests", "tools", "bench", "experiments", "render", "setup.py"]
# the numerics that take their turn in `numerics`
DIFFERENT = ["no-avx512", "disturbed-1", "no-avx2", "disturbed-2", "haswell", "generic"]


def run(*command: str, **environment: str) -> None:
    "Run a command at the top of the repository; an empty value takes a variable away."
    merged = {**os.environ, **environment}
    subprocess.run(command, cwd=REPO, check=True, env={k: v for k, v in merged.items() if v})


def lint() -> None:
    "ruff: the linter over everything, the formatter over all that nbdev does not write; docstrings"
    run("ruff", "check", ".")
    run("ruff", "format", "--check", *FORMATTED)
    modules = [str(path) for path in PACKAGE.rglob("*.py") if path.parent.name != "kernels"]
    run("numpydoc", "lint", *sorted(modules))


def book() -> None:
    "the book is built, warnings are errors"
    run(sys.executable, "-m", "render")


def uncompiled() -> None:
    "kernels as plain Python, which also finds an index beyond an array's end"
    run(*PYTEST, "-m", "kernel", NUMBA_DISABLE_JIT="1")


def numerics() -> None:
    "half of the chapters, in turn by commit, under numerics that differ, by nbdev_test"
    history = subprocess.run(
        ["git", "rev-list", "--count", "HEAD"], cwd=REPO, capture_output=True, text=True
    )
    turn = int(history.stdout.strip() or 0)
    possible = [name for name in DIFFERENT if not claims.impossible(name)]
    name = possible[turn // 2 % len(possible)]
    chapters = list(claims.chapters())[turn % 2 :: 2]
    print(f"{claims.ENVIRONMENTS[name].says}: {', '.join(chapters)}", flush=True)
    pattern = rf"^({'|'.join(map(re.escape, chapters))})\.ipynb$"
    run(*NBDEV_TEST, "--file_re", pattern, **claims.variables(name))


def tests() -> None:
    "all tests; among them each notebook is executed and its outputs are compared"
    run(*PYTEST)


def notebooks() -> None:
    "all notebooks by nbdev_test"
    run(*NBDEV_TEST)


def bounds() -> None:
    "compiled kernels with bounds checks"
    run(*PYTEST, "-m", "kernel", NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=f"{REPO}/.cache/bounds")


ALL: list[Callable[[], None]] = [lint, book, uncompiled, numerics, tests]
EXTRA: list[Callable[[], None]] = [notebooks, bounds]


def main() -> int:
    steps = {step.__name__: step for step in ALL + EXTRA}
    parser = argparse.ArgumentParser(
        prog="python -m tools.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"among {', '.join(steps)}")
    wanted = parser.parse_args().steps or [step.__name__ for step in ALL]
    if unknown := {*wanted} - {*steps}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    own_caches()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # notebooks run beside each other
    times = {}
    for name in wanted:
        print(f"== {name}: {steps[name].__doc__}", flush=True)
        began = time.perf_counter()
        try:
            steps[name]()
        except subprocess.CalledProcessError as failed:
            print(f"== {name} FAILED: {' '.join(failed.cmd)}", flush=True)
            return 1
        times[name] = time.perf_counter() - began
    print("== passed: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
