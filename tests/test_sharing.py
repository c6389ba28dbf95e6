"""Work shared with listening threads: every piece once, failures, several callers, forks."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numba import config

from dlnotes.core.execution import compiled, in_threads, num_threads, set_num_threads
from dlnotes.kernels.sharing import (
    atomic_add,
    atomic_load,
    count_pieces,
    listener_pool,
    run_shared,
    yield_thread,
)

LARGE = 1 << 20  # numbers, so that all pieces are made and sleeping helpers are woken


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = num_threads()
    set_num_threads(request.param)
    yield request.param
    set_num_threads(before)


@compiled()
def _count(a, start, stop):
    for i in range(start, stop):
        a[i] += 1


@compiled()
def _fail(a, at, start, stop):
    for i in range(start, stop):
        a[i] += 1
        if i == at:
            raise ValueError("at")


@pytest.mark.kernel
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 1000])
def test_each_number_is_reached_once(threads, n):
    a = np.zeros(n, np.int64)
    for size in (0, LARGE):
        run_shared(_count, n, size, a)
    assert (a == 2).all()


@pytest.mark.kernel
def test_a_failure_is_told_and_sharing_goes_on(threads):
    for at in (0, 500, 999):
        with pytest.raises((RuntimeError, ValueError)):  # the second where nothing is compiled
            run_shared(_fail, 1000, LARGE, np.zeros(1000, np.int64), at)
    test_each_number_is_reached_once(threads, 1000)


def test_from_several_threads_and_within_the_pool(threads):
    arrays = np.zeros((6, 500), np.int64)

    def caller(k):
        for _ in range(300):
            run_shared(_count, 500, LARGE, arrays[k])

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(3)]
    for t in callers:
        t.start()
    in_threads(lambda k: caller(3 + k), 3)
    for t in callers:
        t.join(60)
    assert not any(t.is_alive() for t in callers) and (arrays == 300).all()


def test_pieces_do_not_depend_on_the_threads():
    assert count_pieces(0, 0) == count_pieces(100, 30_000) == 1
    assert count_pieces(3, LARGE) == 3 and count_pieces(1000, LARGE) == 64


@compiled()
def _meet(words, met, start, stop):
    "Each piece says that it has begun, and waits for the other: that shows who runs beside whom."
    atomic_add(words, 0, 1)
    for _ in range(1000):
        if atomic_load(words, 0, 0) == 2:
            met[start] = 1
            break
        yield_thread()


@pytest.mark.skipif(config.DISABLE_JIT or not hasattr(os, "sched_yield"), reason="nothing shared")
def test_two_pieces_are_worked_on_at_the_same_time():
    before = num_threads()
    set_num_threads(2)
    try:
        for _ in range(200):  # the helper may come late
            begun, met = np.zeros(1, np.int64), np.zeros(2)
            run_shared(_meet, 2, LARGE, begun.ctypes.data, met)
            assert begun == 2 and met[1]
            if met[0]:
                break
        assert met[0]
    finally:
        set_num_threads(before)


def test_helpers_sleep_when_there_is_nothing_to_do():
    run_shared(_count, 64, LARGE, np.zeros(64, np.int64))
    for _ in range(300):
        if len(listener_pool.sleeping) == listener_pool.size:
            return
        time.sleep(0.01)
    raise AssertionError("somebody listens for ever")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_shares_with_helpers_of_its_own():
    program = """
import os, numpy as np
from dlnotes.gradients import LayerNorm
from dlnotes.core.execution import set_num_threads
set_num_threads(3)
x, layer = np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32), LayerNorm(64)
right = layer(x)
def use():
    for _ in range(200):
        assert np.array_equal(layer(x), right)
use()
child = os.fork()
use()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("both")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "both\n", done.stderr
