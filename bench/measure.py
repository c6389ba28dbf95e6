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


def processor():
    "The processor's name, as far as the system tells it."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(packages):
    "What the numbers depend on: processor, versions, threads, settings that change them."
    settings = ("OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "NUMBA_CPU_NAME")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(), "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "blas": sorted({f"{i['internal_api']} {i['version']} ({i.get('architecture', '?')}), "
                        f"{i['num_threads']} threads" for i in threadpool_info()}),
        "numba_threads": numba.config.NUMBA_NUM_THREADS,
        "environment": {k: os.environ[k] for k in settings if k in os.environ},
    }


def write(name, rows, packages):
    "Keep the table `rows` with the machine it was measured on, for the book's speed appendix."
    RESULTS.mkdir(exist_ok=True)
    table = {"machine": machine(["dlnotes", "numba", "numpy", *packages]), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
