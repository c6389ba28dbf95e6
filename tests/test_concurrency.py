"""Layers used from several threads at once; training that repeats itself and leaks nothing."""

import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from dlnotes import (
    GELU,
    AdamW,
    AvgPool2d,
    Conv2d,
    CrossEntropyLoss,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    fit,
)


def network(seed=0, size=16):
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(3, 8, 3, padding=1, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Conv2d(8, 16, 3, padding=1, stride=2, rng=rng),
        GELU(),
        AvgPool2d(2),
        Flatten(),
        Linear(16 * (size // 8) ** 2, 10, rng=rng),
    )


def batch(seed, n=24, size=16):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3, size, size), dtype=np.float32), rng.integers(0, 10, n)


def both_ways(model, x, y):
    "The loss and all gradients."
    loss = CrossEntropyLoss()
    answer, cache = model.forward(x)
    value, at = loss.forward(answer, y)
    dx, grads = model.backward(loss.backward(at), cache)
    return [np.float64(value), dx, *grads.values()]


@pytest.mark.parametrize("n", [3, 200])  # the second is large enough to be shared out
def test_one_model_from_several_threads(n):
    model = network()
    alone = [both_ways(model, *batch(k, n)) for k in range(6)]
    together, errors = [None] * 6, []

    def work(k):
        try:
            for _ in range(5):
                together[k] = both_ways(model, *batch(k, n))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not errors
    for a, b in zip(alone, together):
        for one, other in zip(a, b):
            np.testing.assert_array_equal(one, other)


BESIDE_NUMBA = """
import threading, numpy as np
from numba import njit, prange
from tests.test_concurrency import batch, both_ways, network
@njit(parallel=True)
def other(a):
    for i in prange(a.size):
        a[i] += 1
model, wanted = network(), both_ways(network(), *batch(0, 200))
def work():
    for _ in range(10):
        for a, b in zip(both_ways(model, *batch(0, 200)), wanted):
            assert (a == b).all()
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]
a = np.zeros(10_000)
for _ in range(200):
    other(a)  # the program's own parallel kernel, in one thread as Numba asks
[t.join() for t in threads]
assert (a == 200).all()
print("alive")
"""


def test_beside_a_program_that_uses_numbas_threads(pytestconfig):
    "Numba's default threading layer ends the process if two threads enter it: ours never do."
    out = subprocess.run(
        [sys.executable, "-c", BESIDE_NUMBA],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=pytestconfig.rootpath,
    )
    assert out.stdout == "alive\n", out.stderr[-2000:]


def trained(epochs=2, seed=5):
    model = network(1)
    x, y = batch(9, 130)
    fit(
        model,
        CrossEntropyLoss(),
        AdamW(model.params, 1e-2),
        x,
        y,
        epochs=epochs,
        batch_size=32,
        rng=seed,
        progress=False,
    )
    return model.state_dict()


def test_the_same_seed_gives_the_same_weights():
    first, again, other = trained(), trained(), trained(seed=6)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


AGAIN = """
import hashlib
from tests.test_concurrency import trained
print(hashlib.sha256(b"".join(a.tobytes() for a in trained().values())).hexdigest())
"""


def test_the_same_weights_run_after_run(pytestconfig):
    runs = [
        subprocess.run(
            [sys.executable, "-c", AGAIN],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=pytestconfig.rootpath,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert len(runs[0]) == 65 and runs[0] == runs[1]


def steps_by_hand():
    model, loss = network(), CrossEntropyLoss()
    x, y = batch(0, 8)
    optimizer = AdamW(model.params, 1e-3)

    def steps(n):
        for _ in range(n):
            answer, cache = model.forward(x)
            _, at = loss.forward(answer, y)
            optimizer.step(model.backward(loss.backward(at), cache)[1])

    return steps


def steps_of_fit():
    model, data = network(), batch(0, 8)
    optimizer = AdamW(model.params, 1e-3)

    def steps(n):  # two an epoch, and validation with weights kept
        fit(
            model,
            CrossEntropyLoss(),
            optimizer,
            *data,
            epochs=n // 2,
            batch_size=4,
            rng=0,
            validation=data,
            patience=n,
            progress=False,
        )

    return steps


@pytest.mark.parametrize("make", [steps_by_hand, steps_of_fit])
def test_a_thousand_steps_leak_nothing(make):
    "Arrays that a step leaves behind would add up: one weight gradient, 1,000 times, is 4 MB."
    steps = make()
    steps(50)
    tracemalloc.start()
    steps(50)
    before = tracemalloc.get_traced_memory()[0]
    resident = _resident()
    steps(1000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    if resident:  # what kernels allocate, tracemalloc does not see
        assert _resident() - resident < 8_000_000


def _resident():
    "Bytes of this process in memory, or None where the system does not say."
    try:
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096
    except OSError:
        return None
