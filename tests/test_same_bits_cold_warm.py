"""Each layer gives the same bits in the process that compiles its kernels and in all later ones."""

import os
import subprocess
import sys

import pytest
from numba import config

CHILD = r"""
import hashlib
import multiprocessing
import sys

import numpy as np
import dlnotes as d


def arrays(thing):
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, dict):
        for key in sorted(thing):
            yield from arrays(thing[key])
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from arrays(part)


def hashes():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((32, 8, 32, 32)).astype(np.float32)
    series = rng.standard_normal((16, 20, 24)).astype(np.float32)
    table = rng.standard_normal((2000, 100)).astype(np.float32)
    layers = {
        "Linear": (d.Linear(100, 50, rng=0), table), "ReLU": (d.ReLU(), images),
        "Tanh": (d.Tanh(), images), "Sigmoid": (d.Sigmoid(), images), "GELU": (d.GELU(), images),
        "GELU tanh": (d.GELU("tanh"), images), "Softmax": (d.Softmax(), table),
        "LogSoftmax": (d.LogSoftmax(), table), "Conv2d": (d.Conv2d(8, 16, 3, rng=0), images),
        "MaxPool2d": (d.MaxPool2d(2), images), "MaxPool2d 3": (d.MaxPool2d(3), images),
        "AvgPool2d": (d.AvgPool2d(2), images), "AvgPool2d 3": (d.AvgPool2d(3), images),
        "BatchNorm": (d.BatchNorm(8), images), "BatchNorm rows": (d.BatchNorm(100), table),
        "LayerNorm": (d.LayerNorm((8, 32, 32)), images),
        "LayerNorm rows": (d.LayerNorm(100), table),
        "RNN": (d.RNN(24, 32, rng=0), series), "GRU": (d.GRU(24, 32, rng=0), series),
        "LSTM": (d.LSTM(24, 32, rng=0), series),
        "TransformerEncoderLayer": (d.TransformerEncoderLayer(24, 4, 48, 0.0, rng=0), series),
    }
    for name, (layer, x) in layers.items():
        y, cache = layer.forward(x)
        out = y[0] if isinstance(y, tuple) else y
        grad = np.random.default_rng(1).standard_normal(out.shape).astype(out.dtype)
        try:
            back = layer.backward((grad, None) if isinstance(y, tuple) else grad, cache)
        except (TypeError, ValueError):
            back = layer.backward((grad, np.zeros_like(y[1])), cache)
        yield name, [out, back, getattr(layer, "buffers", {})]
    y = rng.integers(0, 100, 2000)
    for name, loss, target in (("CE", d.CrossEntropyLoss(label_smoothing=0.1), y),
                               ("BCE", d.BCEWithLogitsLoss(), (table > 0).astype(np.float32)),
                               ("MSE", d.MSELoss(), table[::-1].copy())):
        value, cache = loss.forward(table, target)
        yield name, [np.array(value), loss.backward(cache)]
    for name, make in (("SGD", d.SGD), ("AdamW", d.AdamW)):
        params = {"w": table.copy()}
        optimizer = make(params, 0.1)
        for _ in range(2):
            optimizer.step({"w": table[::-1].copy()})
        yield name, [params]


def show(process):
    for name, thing in hashes():
        code = hashlib.sha256(b"".join(a.tobytes() for a in arrays(thing))).hexdigest()[:16]
        print(f"{process}|{name}|{code}", flush=True)


if __name__ == "__main__":
    show("first")
    child = multiprocessing.get_context("spawn").Process(target=show, args=("spawned",))
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.skipif(config.DISABLE_JIT or config.BOUNDSCHECK, reason="about compiled code")
def test_first_later_and_spawned_processes_give_the_same_bits(tmp_path):
    program = tmp_path / "layers.py"
    program.write_text(CHILD)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    bits = {}
    for run in ("first", "later"):
        done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        for line in done.stdout.splitlines():
            process, layer, code = line.split("|")
            bits.setdefault(layer, {})[run, process] = code
    assert len(bits) == 26 and all(len(codes) == 4 for codes in bits.values())
    differ = [layer for layer, codes in bits.items() if len(set(codes.values())) > 1]
    assert not differ
