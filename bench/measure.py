"""Timing in turn, and the machine that it was done on."""

import datetime
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numba
import numpy as np
from threadpoolctl import threadpool_info

RESULTS = Path(__file__).parent / "results"


def interleaved(functions, repeats):
    "Seconds of each call, (repeats, functions): one of each in turn, after a call to warm up."
    for f in functions:
        f()
    times = np.empty((repeats, len(functions)))
    for row in times:
        for k, f in enumerate(functions):
            start = time.perf_counter()
            f()
            row[k] = time.perf_counter() - start
    return times


def contest(contenders, repeats, block=4e-3):
    """Milliseconds of a call of each function, and the times of the others as ratios to the first.

    In turn, each is called for `block` seconds that do not count, in which its own threads wake
    up and those of the one before fall asleep, and for `block` seconds that do. Medians over the
    repeats; the ratios are those of each turn, given with their quartiles.
    """
    calls = {}
    for name, f in contenders.items():
        f()
        start = time.perf_counter()
        f()
        calls[name] = max(1, round(block / (time.perf_counter() - start)))
    times = {name: np.empty(repeats) for name in contenders}
    for k in range(repeats):
        for name, f in contenders.items():
            for _ in range(calls[name]):
                f()
            start = time.perf_counter()
            for _ in range(calls[name]):
                f()
            times[name][k] = (time.perf_counter() - start) / calls[name] * 1e3
    first, *others = times
    ratios = {name: times[name] / times[first] for name in others}
    return {
        "ms": {name: float(f"{np.median(t):.3g}") for name, t in times.items()},
        "ratio": {name: round(float(np.median(r)), 2) for name, r in ratios.items()},
        "quartiles": {
            name: np.percentile(r, [25, 75]).round(2).tolist() for name, r in ratios.items()
        },
    }


def peak():
    "The machine's peak as NumPy's matrix product shows it: the most GFLOP/s in float32."
    a = np.ones((1536, 1536), np.float32)
    seconds = interleaved([lambda: a @ a], 9)
    return 2 * 1536**3 / seconds.min() / 1e9


def processor():
    "The processor's name, as far as the system tells it."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(packages):
    "What the numbers depend on: processor, versions, threads, settings that change them."
    settings = (
        "OPENBLAS_CORETYPE",
        "OPENBLAS_THREAD_TIMEOUT",
        "OMP_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NUMBA_CPU_NAME",
    )
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "blas": sorted(
            {
                f"{i['internal_api']} {i['version']} ({i.get('architecture', '?')}), "
                f"{i['num_threads']} threads"
                for i in threadpool_info()
            }
        ),
        "numba_threads": numba.config.NUMBA_NUM_THREADS,
        "environment": {k: os.environ[k] for k in settings if k in os.environ},
    }


def write(name, rows, packages, **more):
    "Keep the table `rows` with the machine it was measured on, for the book's speed appendix."
    RESULTS.mkdir(exist_ok=True)
    table = {"machine": machine(["dlnotes", "numba", "numpy", *packages]), **more, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
