"""Whether the book's claims hold on other machines: each chapter executed under other numerics.

    python -m tools.claims                              # all chapters, all environments
    python -m tools.claims --chapters rnn --environments own no-avx2
    env $(python -m tools.claims --environment no-avx512) COMMAND

Processors, BLAS builds and numbers of threads differ in the last bits of what they compute, and
training amplifies the difference. Each environment below changes last bits in another way; a claim
that fails in one of them is not true on every machine. Assertions that fail are named with their
cell, the table goes to `experiments/results/claims.json`, which the book shows, and the exit status
is 1 if anything failed.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tools import REPO, own_caches

RESULT = REPO / "experiments" / "results" / "claims.json"
ARROW = re.compile(r"^-+> *\d+ (.*)$", re.MULTILINE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# what a kernel says of the numerics that it has
PROBE = """
import json, dlnotes, llvmlite.binding, numba, numpy
try:
    from numpy._core import _multiarray_umath as umath
except ImportError:  # before NumPy 2
    from numpy.core import _multiarray_umath as umath
from threadpoolctl import threadpool_info
from dlnotes.kernels import microkernels
blas = [p for p in threadpool_info() if p["user_api"] == "blas"]
features = umath.__cpu_features__
cpu = numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
a = numpy.random.default_rng(0).normal(size=100)
b = numpy.random.Generator(numpy.random.PCG64(0)).normal(size=100)
levels = {"AVX-512": ("X86_V4", "AVX512_SKX"), "AVX2": ("X86_V3", "AVX2"), "NEON": ("ASIMD",)}
has = lambda keys: next((features[key] for key in keys if key in features), False)
simd = next((level for level, keys in levels.items() if has(keys)), "SSE")
print(json.dumps({
    "blas": ", ".join(sorted({p["architecture"] for p in blas})),
    "blas_threads": max(p["num_threads"] for p in blas), "threads": dlnotes.num_threads(),
    "numpy": simd, "numba": cpu, "vector_bytes": microkernels.VECTOR_BYTES,
    "disturbed": bool((a != b).any()),
}))
"""


class Environment(NamedTuple):
    "One way to change last bits."

    says: str  # what is other than usual
    variables: Callable[[], dict[str, str]]  # those that differ from `USUAL`
    expected: dict = {}  # what the probe has to say there


def numpy_narrowed(*names: str) -> str:
    "Those of NumPy's dispatched features, for NPY_DISABLE_CPU_FEATURES, whose name starts so."
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return ",".join(f for f in __cpu_dispatch__ if __cpu_features__[f] and f.startswith(names))


def numba_narrowed(*names: str) -> str:
    "The processor's features, those whose name starts so switched off, for NUMBA_CPU_FEATURES."
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return ",".join(
        ("+" if has and not name.startswith(names) else "-") + name
        for name, has in sorted(features.items())
    )


AVX512 = ("avx512", "avx10", "amx", "evex512")
AVX = (*AVX512, "avx", "fma", "f16c", "xop", "vaes", "vpclmul", "sha512", "sm3", "sm4")


def without_avx512() -> dict[str, str]:
    return {
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": numpy_narrowed("X86_V4", "AVX512"),
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": numba_narrowed(*AVX512),
    }


def without_avx2() -> dict[str, str]:
    return {
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": numpy_narrowed("X86_V", "AVX", "FMA", "F16C"),
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": numba_narrowed(*AVX),
    }


def disturbed(draw: int) -> Environment:
    "Initial weights changed in their last bits, from outside the package."
    path = os.pathsep.join(
        filter(None, [str(REPO / "tools/disturbed"), os.environ.get("PYTHONPATH")])
    )
    return Environment(
        f"initial weights disturbed, draw {draw}",
        lambda: {"DLNOTES_DISTURB": str(draw), "PYTHONPATH": path},
        {"disturbed": True},
    )


# Where an environment says nothing else. Empty: not set. Several chapters run at a time, so each
# BLAS has one thread.
USUAL = {
    "OPENBLAS_NUM_THREADS": "1",
    "DLNOTES_NUM_THREADS": "",
    "OPENBLAS_CORETYPE": "",
    "NPY_DISABLE_CPU_FEATURES": "",
    "NUMBA_CPU_NAME": "",
    "NUMBA_CPU_FEATURES": "",
    "DLNOTES_DISTURB": "",
}
ENVIRONMENTS = {
    "own": Environment("the machine's own", dict, {"disturbed": False}),
    "haswell": Environment(
        "OpenBLAS for AVX2", lambda: {"OPENBLAS_CORETYPE": "Haswell"}, {"blas": "Haswell"}
    ),
    "skylakex": Environment(
        "OpenBLAS for AVX-512", lambda: {"OPENBLAS_CORETYPE": "SkylakeX"}, {"blas": "SkylakeX"}
    ),
    "no-avx512": Environment(
        "everything for AVX2",
        without_avx512,
        {"blas": "Haswell", "numpy": "AVX2", "numba": "haswell", "vector_bytes": 32},
    ),
    "no-avx2": Environment(
        "everything for SSE4",
        without_avx2,
        {"blas": "Nehalem", "numpy": "SSE", "numba": "nehalem", "vector_bytes": 16},
    ),
    "generic": Environment(
        "Numba for any x86-64",
        lambda: {"NUMBA_CPU_NAME": "generic"},
        {"numba": "generic", "vector_bytes": 16},
    ),
    "one-thread": Environment(
        "one thread", lambda: {"DLNOTES_NUM_THREADS": "1"}, {"threads": 1, "blas_threads": 1}
    ),
    "two-threads": Environment(
        "two threads",
        lambda: {"OPENBLAS_NUM_THREADS": "2", "DLNOTES_NUM_THREADS": "2"},
        {"threads": 2, "blas_threads": 2},
    ),
    **{f"disturbed-{draw}": disturbed(draw) for draw in (1, 2, 3)},
}


def variables(name: str) -> dict[str, str]:
    "All variables of an environment; an empty value says that it is not set there."
    return USUAL | ENVIRONMENTS[name].variables()


def impossible(name: str) -> str:
    "Why this machine cannot have the environment; empty if it can."
    if name.startswith(("own", "disturbed")) or "threads" in ENVIRONMENTS[name].expected:
        return ""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "not an x86-64 processor"
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wanted = {"skylakex": "avx512f", "haswell": "avx2", "no-avx512": "avx2"}.get(name, "sse4.2")
    if not features.get(wanted):
        return f"no {wanted}"
    if name != "generic" and version("numpy").startswith("1."):
        return "the OpenBLAS of older NumPy has wrong kernels"
    return ""


def chapters() -> dict[str, Path]:
    "Name -> notebook of each chapter (at the top of nbs/), in the order of `_quarto.yml`."
    import yaml

    listed = yaml.safe_load((REPO / "_quarto.yml").read_text(encoding="utf-8"))["book"]["chapters"]
    flat = [
        page
        for entry in listed
        for page in ([entry] if isinstance(entry, str) else entry["chapters"])
    ]
    paths = [Path(page) for page in flat if page.endswith(".ipynb")]
    return {path.stem: REPO / path for path in paths if path.parent == Path("nbs")}


def failures(cells: list) -> list[dict]:
    "Number, failing line and error of each cell that failed."
    found = []
    for number, cell in enumerate(cells):
        for out in cell.get("outputs", []):
            if out["output_type"] == "error":
                trace = COLOUR.sub("", "\n".join(out["traceback"]))
                lines = [line.strip() for line in ARROW.findall(trace)]
                error = f"{out['ename']}: {out['evalue']}".strip(": ")
                found.append(
                    {"cell": number, "line": lines[0] if lines else "", "error": error[:300]}
                )
    return found


def execute(
    path: Path, environment: dict[str, str], expected: dict, to_its_end: bool = True
) -> dict:
    """Execute a notebook in that environment: seconds, failures, the numerics it had.

    To its end, or up to the first cell that fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    began, book = time.perf_counter(), nbformat.read(path, as_version=4)
    book.cells.insert(0, nbformat.v4.new_code_cell(PROBE))
    client = NotebookClient(
        book,
        timeout=1200,
        allow_errors=to_its_end,
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=40"],
    )
    whole = {**os.environ, **environment}
    with suppress(CellExecutionError):  # which `failures` finds
        client.execute(env={key: value for key, value in whole.items() if value})
    probed = book.cells.pop(0).outputs
    text = "".join(out.get("text", "") for out in probed if out.get("name") == "stdout")
    numerics, failed = json.loads(text) if text else {}, failures(book.cells)
    if differ := {k: numerics.get(k) for k in expected if numerics.get(k) != expected[k]}:
        failed.insert(0, {"cell": -1, "line": f"expected {expected}", "error": f"got {differ}"})
    seconds = round(time.perf_counter() - began)
    return {"seconds": seconds, "failures": failed, "numerics": numerics}


def say(line: str) -> None:
    "A line of progress."
    print(line, file=sys.stderr, flush=True)


def run(names: list[str], environments: list[str], jobs: int) -> dict:
    "(chapter, environment) -> what `execute` says; progress on standard error."
    paths, settings = chapters(), {name: variables(name) for name in environments}
    pairs, results = [(chapter, name) for name in environments for chapter in names], {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {
            pool.submit(execute, paths[c], settings[e], ENVIRONMENTS[e].expected): (c, e)
            for c, e in pairs
        }
        for future in as_completed(running):
            chapter, name = running[future]
            result = results[chapter, name] = future.result()
            state = f"{len(result['failures'])} FAILED" if result["failures"] else "ok"
            say(f"[{len(results)}/{len(pairs)}] {chapter}, {name}: {state} ({result['seconds']} s)")
            for failure in result["failures"]:
                say("    cell {cell}: {line}\n        {error}".format(**failure))
    return results


def table(results: dict, names: list[str], environments: list[str]) -> str:
    "Chapters by environments: 'ok', or how many cells failed."
    width = max(map(len, names))
    lines = [" " * width + "  " + "  ".join(environments)]
    for chapter in names:
        cells = []
        for name in environments:
            failed = len(results[chapter, name]["failures"])
            cells.append((f"{failed} failed" if failed else "ok").rjust(len(name)))
        lines.append(chapter.ljust(width) + "  " + "  ".join(cells))
    return "\n".join(lines)


def report(results: dict, names: list[str], environments: list[str], left_out: dict) -> dict:
    "What the result file says."
    packages = ("numpy", "numba", "llvmlite", "scipy", "scikit-learn")
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "date": time.strftime("%Y-%m-%d"),
        "environments": {
            name: {
                "says": ENVIRONMENTS[name].says,
                "numerics": results[names[0], name]["numerics"],
                "seconds": sum(results[chapter, name]["seconds"] for chapter in names),
            }
            for name in environments
        },
        "left_out": left_out,
        "failures": {
            chapter: {name: results[chapter, name]["failures"] for name in environments}
            for chapter in names
        },
    }


def processor() -> str:
    "The processor's name, where the system tells it."
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        if found:
            return found.group(1)
    return platform.processor() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.claims", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--chapters", nargs="+", choices=list(chapters()), metavar="NAME", help="chapters (all)"
    )
    parser.add_argument(
        "--environments",
        nargs="+",
        choices=list(ENVIRONMENTS),
        metavar="NAME",
        help=f"among {', '.join(ENVIRONMENTS)} (all)",
    )
    parser.add_argument(
        "--environment",
        choices=list(ENVIRONMENTS),
        metavar="NAME",
        help="only print the variables of an environment, for `env`",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="chapters at a time")
    parser.add_argument(
        "--output", type=Path, help="the result file (written after a whole run only)"
    )
    options = parser.parse_args()
    if options.environment:
        chosen = variables(options.environment)
        print(
            *(f"--unset={key}" for key, value in chosen.items() if not value and key in os.environ),
            *(f"{key}={value}" for key, value in chosen.items() if value),
            sep="\n",
        )
        return 0
    wanted, names = options.environments or list(ENVIRONMENTS), options.chapters or list(chapters())
    left_out = {name: why for name in wanted if (why := impossible(name))}
    environments = [name for name in wanted if name not in left_out]
    for name, why in left_out.items():
        say(f"left out: {name} ({why})")
    own_caches()
    results = run(names, environments, options.jobs)
    failed = sum(bool(r["failures"]) for r in results.values())
    print(table(results, names, environments))
    print(f"{len(results) - failed} passed, {failed} failed")
    whole = not (options.chapters or options.environments)
    if output := options.output or (RESULT if whole else None):
        output.write_text(
            json.dumps(report(results, names, environments, left_out), indent=1) + "\n"
        )
        print(f"written to {output}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
