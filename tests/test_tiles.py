"""The tile's instructions beside its definition, for every place that they may be asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.core.execution import compiled
from dlnotes.kernels import microkernels
from dlnotes.kernels.microkernels import (
    PANEL,
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    compute_tile,
    dot_rows,
    matrix_product,
    narrow_tile,
    row_dot,
    row_max,
    row_sum,
    row_times_matrix,
)


@compiled()
def _tile_of(y, w, x, offsets, j):
    compute_tile(y, w, x, offsets, j)


@compiled()
def _narrow_tile_of(y, w, x, offsets, j):
    narrow_tile(y, w, x, offsets, j)


@compiled()
def _dots_of(d, g, x, offsets, o, t, at, n):
    dot_rows(d, g, x, offsets, o, t, at, n)


@compiled()
def _product_of(y, a, w, r, p):
    matrix_product(y, a, w, r, p)


@compiled()
def _row_product_of(y, a, w, r, p):
    row_times_matrix(y, a, w, r, p)


@compiled()
def _over_rows(a, b):
    return row_dot(a, b), row_sum(a), row_max(a)


def close(got, wanted, terms):
    "Sums of `terms` products of numbers near 1 in another order: each rounds once more."
    return abs(got - wanted).max() <= 8 * terms * np.finfo(got.dtype).eps


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 60), j=st.integers(0, 50))
def test_tiles(dtype, seed, terms, j):
    rng = np.random.default_rng(seed)
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    w = rng.standard_normal((TILE_ROWS, 2 * terms)).astype(dtype)
    x = rng.standard_normal(50 + 100 + 2 * TILE_VECTORS * lanes).astype(dtype)
    offsets = rng.integers(0, 100, terms)
    for run, plain in [
        (_tile_of, microkernels._plain_tile),
        (_narrow_tile_of, microkernels._plain_narrow_tile),
    ]:
        for weights in (w[:, :terms], np.ascontiguousarray(w[:, :terms])):  # a slice has a pitch
            got = np.full((TILE_ROWS, 60 + 2 * TILE_VECTORS * lanes), 7, dtype)
            wanted = got.copy()
            run(got, weights, x, offsets, j)
            plain(wanted, weights, x, offsets, j)
            assert close(got, wanted, terms)
            assert ((got == 7) == (wanted == 7)).all()  # nothing written beside the tile


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vectors=st.integers(1, 9),
    o=st.integers(0, 5),
    t=st.integers(0, 6),
    at=st.integers(0, 20),
)
def test_dots(dtype, seed, vectors, o, t, at):
    rng = np.random.default_rng(seed)
    n = vectors * VECTOR_BYTES // np.dtype(dtype).itemsize
    g = rng.standard_normal((TILE_ROWS + 5, 20 + n)).astype(dtype)
    x = rng.standard_normal(100 + n).astype(dtype)
    offsets = rng.integers(0, 100, 6 + TILE_VECTORS)
    got = np.ones((6 + TILE_VECTORS, TILE_ROWS + 5), dtype)
    wanted = got.copy()
    _dots_of(got, g, x, offsets, o, t, at, n)
    microkernels._plain_dots(wanted, g, x, offsets, o, t, at, n)
    assert close(got, wanted, n)
    assert ((got == 1) == (wanted == 1)).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    terms=st.integers(1, 60),
    below=st.integers(1, 2 * TILE_ROWS),
    r=st.integers(0, 9),
    p=st.integers(0, 2),
    turned=st.booleans(),
    more=st.integers(0, 4),
)
def test_products(dtype, seed, terms, below, r, p, turned, more):
    "From row r on there are `below` rows, fewer or more than a tile has; panels may be longer."
    rng = np.random.default_rng(seed)
    width, rows = PANEL * VECTOR_BYTES // np.dtype(dtype).itemsize, r + below
    a = rng.standard_normal((terms, rows) if turned else (rows, terms)).astype(dtype)
    a = (a.T if turned else a)[:, :]
    w = rng.standard_normal((3, terms + more, width)).astype(dtype)
    start = np.ones((rows + 3, 3 * width + 5), dtype)
    for run, n in [(_product_of, min(below, TILE_ROWS)), (_row_product_of, 1)]:
        wanted, got = start.copy(), start.copy()
        wanted[r : r + n, p * width : (p + 1) * width] += a[r : r + n] @ w[p, :terms]
        run(got[:, 0:], a, w, r, p)
        assert close(got, wanted, terms + 1)
        assert ((got == 1) == (wanted == 1)).all()  # nothing written beside the tile


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 200), scale=st.integers(-30, 15))
def test_over_rows(dtype, seed, n, scale):
    """Sums of at most 5 + n / lanes roundings for each term: within 20 eps of all terms' size;
    what lies before and after the row is not read."""
    rng, eps = np.random.default_rng(seed), np.finfo(dtype).eps
    rows = np.full((2, n + 2), np.nan, dtype)
    rows[:, 1:-1] = np.ldexp(rng.standard_normal((2, n)), scale) + 100 * rng.integers(2)
    a, b = rows[:, 1:-1].astype(np.longdouble)
    dot, total, greatest = _over_rows(*rows[:, 1:-1])
    assert abs(dot - (a * b).sum()) <= 20 * eps * abs(a * b).sum()
    assert abs(total - a.sum()) <= 20 * eps * abs(a).sum()
    assert greatest == max(a, default=-np.inf)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_over_rows_loses_no_infinity_and_no_nan(dtype):
    "Wherever it stands; the maximum leaves NaN out."
    for n in (1, 2, 5, 16, 31, 64, 100, 150):
        for i in range(n):
            a, ones = np.ones(n, dtype), np.ones(n, dtype)
            a[i] = np.inf
            assert _over_rows(a, ones) == (np.inf, np.inf, np.inf)
            a[i] = -np.inf
            assert _over_rows(a, ones) == (-np.inf, -np.inf, -np.inf if n == 1 else 1)
            a[i] = np.nan
            dot, total, greatest = _over_rows(a, ones)
            assert np.isnan(dot) and np.isnan(total)
            assert greatest == (-np.inf if n == 1 else 1)
            a[i] = 2
            assert _over_rows(a, ones) == (n + 1, n + 1, 2)


@pytest.mark.parametrize(
    "features, expected",
    [
        ("+sse4.2,+avx2,+avx512f", (64, 8)),
        ("-avx512f,+avx2", (32, 4)),
        ("+sse4.2,-avx2", (16, 4)),
        ("", (16, 4)),
    ],
)
def test_vectors_follow_the_processor_or_what_numba_is_told(monkeypatch, features, expected):
    monkeypatch.setattr(microkernels.config, "CPU_FEATURES", None)
    monkeypatch.setattr(microkernels, "get_host_cpu_features", lambda: features)
    assert microkernels._vectors() == expected
    monkeypatch.setattr(microkernels, "get_host_cpu_features", lambda: "+avx512f")
    monkeypatch.setattr(microkernels.config, "CPU_FEATURES", features)
    assert microkernels._vectors() == expected


@pytest.mark.parametrize("shape", [(64, 8), (32, 4), (16, 4)])
def test_other_processors_tiles(monkeypatch, shape):
    "The instructions of narrower vectors run here too, and give the same sums."
    from numba import njit

    monkeypatch.setattr(microkernels, "VECTOR_BYTES", shape[0])
    monkeypatch.setattr(microkernels, "TILE_ROWS", shape[1])
    tile, dots = microkernels._make_tile(shape[1], TILE_VECTORS), microkernels._vector_dots
    product, row_product = microkernels._make_product(shape[1]), microkernels._make_product(1)

    @njit
    def multiply(y, a, w):
        product(y, a, w, 0, 0)
        product(y, a, w, shape[1], 0)
        row_product(y, a, w, 0, 1)

    @njit
    def run(y, d, w, x, offsets, n):
        tile(y, w, x, offsets, 3)
        dots(d, w, x, offsets, 0, 1, 2, n)

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        n = 2 * shape[0] // np.dtype(dtype).itemsize
        w = rng.standard_normal((shape[1], 40)).astype(dtype)
        x = rng.standard_normal(300).astype(dtype)
        got = [np.zeros((shape[1], 90), dtype), np.zeros((40, shape[1]), dtype)]
        wanted = [a.copy() for a in got]
        offsets = rng.integers(0, 200, 40)
        run(*got, w, x, offsets, n)
        microkernels._plain_tile(wanted[0], w, x, offsets, 3)
        microkernels._plain_dots(wanted[1], w, x, offsets, 0, 1, 2, n)
        for a, b in zip(got, wanted):
            assert b.any() and close(a, b, 40)
        a, y = (
            np.ascontiguousarray(x[:70].reshape(-1, 7)[: shape[1] + 2]),
            np.ones((10, 200), dtype),
        )
        panels = rng.standard_normal((2, 7, PANEL * n // 2)).astype(dtype)
        sums = y.copy()
        multiply(y, a, panels)
        for r, p in [(0, 0), (shape[1], 0)]:
            microkernels._plain_product(sums, a, panels, r, p)
        microkernels._plain_row_product(sums, a, panels, 0, 1)
        assert (y != 1).any() and close(y, sums, 40)


@compiled()
def _lanes_of(lanes, rows):
    microkernels.lanes_max(lanes[0], rows)
    microkernels.lanes_sum(lanes[1], rows)
    microkernels.rows_minus(lanes[2], rows)
    microkernels.rows_times(lanes[3], rows)


@compiled()
def _turn_of(y, x, i, j):
    microkernels.transpose_square(y, x, i, j)


@compiled()
def _ask_of(x):
    microkernels.whole_vectors()
    for i in range(x.size):
        x[i] += 1


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_lanes(dtype, n):
    "Softmax's steps down the rows; sums of n numbers near 1 round n times at most."
    rng = np.random.default_rng(n)
    width = microkernels.PANEL * VECTOR_BYTES // np.dtype(dtype).itemsize
    memory = rng.standard_normal((n + 4, width)).astype(dtype)
    lanes = rng.standard_normal((4, width)).astype(dtype)
    lanes[0, :3] = -np.inf, 9, -9
    wanted, rows = lanes.copy(), memory[2 : 2 + n].copy()
    _lanes_of(lanes, memory[2 : 2 + n])
    assert (lanes[0] == np.maximum(wanted[0], rows.max(0))).all()
    assert close(lanes[1], wanted[1] + rows.sum(0), n)
    assert (lanes[2:] == wanted[2:]).all()
    assert (memory[2 : 2 + n] == (rows - wanted[2]) * wanted[3]).all()
    again = np.random.default_rng(n).standard_normal(memory.shape).astype(dtype)
    assert (memory[[0, 1, -2, -1]] == again[[0, 1, -2, -1]]).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_turned_square(dtype):
    n = VECTOR_BYTES // np.dtype(dtype).itemsize
    x = np.arange(9 * n * n, dtype=dtype).reshape(3 * n, 3 * n)
    for i, j in [(0, 0), (n, 2 * n), (n // 2, 2 * n - 1)]:
        y = np.full(x.shape, -1, dtype)
        _turn_of(y, x, i, j)
        assert (y[j : j + n, i : i + n] == x[i : i + n, j : j + n].T).all()
        y[j : j + n, i : i + n] = -1
        assert (y == -1).all()


@pytest.mark.kernel
def test_a_kernel_that_asks_for_whole_vectors_is_the_same():
    x = np.arange(100.0)
    _ask_of(x)
    assert (x == np.arange(1, 101)).all()


def test_other_processors_lanes(monkeypatch):
    "Vectors of 16 and 32 bytes, as other processors have them."
    from numba import njit

    for size in (16, 32):
        monkeypatch.setattr(microkernels, "VECTOR_BYTES", size)
        most, turned = (
            microkernels._make_lanes(lambda b, row, old: (b.fsub(row, old), old)),
            microkernels._vector_transpose_square,
        )

        @njit
        def run(lanes, rows, y, most=most, turned=turned):
            most(lanes, rows)
            turned(y, rows, 0, 0)

        for dtype in (np.float32, np.float64):
            n = size // np.dtype(dtype).itemsize
            rows = np.random.default_rng(0).standard_normal((2 * n, 2 * n)).astype(dtype)
            lanes, y, before = rows[0] + 1, np.zeros_like(rows), rows.copy()
            run(lanes, rows, y)
            assert (rows == before - lanes).all()
            assert (y[:n, :n] == rows[:n, :n].T).all()
