"""Work shared between threads: every piece once, errors, nesting, forks, several callers."""

import os
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from dlnotes.core.execution import (
    available_threads,
    compiled,
    in_threads,
    num_threads,
    scratch_arrays,
    set_num_threads,
)
from dlnotes.mlp import ReLU


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = num_threads()
    set_num_threads(request.param)
    yield request.param
    set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 300])
def test_each_piece_is_done_once(threads, n):
    done = [0] * n

    def work(i):
        done[i] += 1

    in_threads(work, n)
    assert done == [1] * n


def test_an_error_reaches_the_caller_and_the_pool_goes_on(threads):
    def work(i):
        if i == 3:
            raise KeyError("third")

    for _ in range(20):
        with pytest.raises(KeyError, match="third"):
            in_threads(work, 9)
    test_each_piece_is_done_once(threads, 50)


def test_nested_and_from_several_threads(threads):
    totals = np.zeros(12, np.int64)

    def outer(i):
        parts = np.zeros(10, np.int64)

        def inner(k):
            parts[k] = k

        in_threads(inner, 10)
        totals[i] = parts.sum()

    callers = [threading.Thread(target=in_threads, args=(outer, 12)) for _ in range(4)]
    for t in callers:
        t.start()
    for t in callers:
        t.join(30)
    assert (totals == 45).all() and not any(t.is_alive() for t in callers)


@compiled()
def _busy(a):
    for _ in range(2000):
        for i in range(a.size):
            a[i] = a[i] * 0.5 + 1


def test_kernels_run_at_the_same_time():
    "Both threads are inside `work` at one moment, which a barrier proves without a clock."
    if num_threads() < 2:
        pytest.skip("one thread only")
    meeting = threading.Barrier(2)
    in_threads(lambda i: meeting.wait(30) and None, 2)
    a = np.zeros((4, 1000))
    in_threads(lambda i: _busy(a[i]), 4)
    assert abs(a - 2).max() < 1e-12


def test_scratch_is_each_threads_own_and_aligned():
    f = np.dtype(np.float32)
    seen = {}

    def take(name):
        seen[name] = scratch_arrays(f, 3, 100)

    others = [threading.Thread(target=take, args=(i,)) for i in range(3)]
    for t in others:
        t.start()
        t.join()
    mine = scratch_arrays(f, 3, 100)
    for arrays in seen.values():
        assert not np.shares_memory(arrays[1], mine[1])
    assert [a.size for a in mine] == [3, 100] and all(a.ctypes.data % 64 == 0 for a in mine)
    grown = scratch_arrays(np.dtype(np.float64), 10_000)[0]
    assert np.shares_memory(grown, scratch_arrays(f, 5)[0])


def test_scratch_is_kept_after_many_different_requests():
    f = np.dtype(np.float32)
    for n in range(1, 300):
        scratch_arrays(f, n)
    again = scratch_arrays(f, 7, 8)
    assert scratch_arrays(f, 7, 8)[0] is again[0]


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of any fork with threads
import numpy as np
from dlnotes.core.execution import in_threads, set_num_threads
set_num_threads(3)
def total():
    parts = np.zeros(50)
    in_threads(lambda i: parts.__setitem__(i, i), 50)
    return parts.sum()
assert total() == 1225
child = os.fork()
if child == 0:
    os._exit(0 if total() == 1225 else 1)
assert os.waitpid(child, 0)[1] == 0
assert total() == 1225
print("both right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own():
    out = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120
    )
    assert out.stdout == "both right\n", out.stderr


@pytest.mark.parametrize(
    "n, error",
    [
        (0, ValueError),
        (-1, ValueError),
        (2.0, TypeError),
        ("2", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_bad_numbers_of_threads(n, error):
    before = num_threads()
    with pytest.raises(error, match="^n: expected"):
        set_num_threads(n)
    assert num_threads() == before


def test_the_environment_says_how_many(monkeypatch):
    monkeypatch.setenv("DLNOTES_NUM_THREADS", "7")
    assert available_threads() == 7
    monkeypatch.setenv("DLNOTES_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="DLNOTES_NUM_THREADS: expected 1, 2, ..., got 'many'"):
        available_threads()
    monkeypatch.delenv("DLNOTES_NUM_THREADS")
    assert available_threads() >= 1


def test_pieces_are_counted_in_whole_numbers():
    with pytest.raises(TypeError):
        in_threads(lambda i: None, 2.5)


def test_memory_of_dropped_answers_is_not_kept():
    "2,000 answers of 100 KB and more, of different sizes: less than 1 MiB stays."
    layer = ReLU()
    layer(np.ones((100, 300), np.float32))
    tracemalloc.start()
    try:
        for i in range(2000):
            layer(np.ones((100 + i % 100, 300), np.float32))
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
