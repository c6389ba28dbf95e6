"""The tile's instructions beside its definition, for every place that they may be asked for."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes import tiles
from dlnotes.checking import compiled
from dlnotes.tiles import _BYTES, _ROWS, _VECTORS, _dots, _narrow_tile, _tile


@compiled()
def _tile_of(y, w, x, offsets, j):
    _tile(y, w, x, offsets, j)


@compiled()
def _narrow_tile_of(y, w, x, offsets, j):
    _narrow_tile(y, w, x, offsets, j)


@compiled()
def _dots_of(d, g, x, offsets, o, t, at, n):
    _dots(d, g, x, offsets, o, t, at, n)


def close(got, wanted, terms):
    "Sums of `terms` products of numbers near 1 in another order: each rounds once more."
    return abs(got - wanted).max() <= 8 * terms * np.finfo(got.dtype).eps


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), terms=st.integers(1, 60), j=st.integers(0, 50))
def test_tiles(dtype, seed, terms, j):
    rng = np.random.default_rng(seed)
    lanes = _BYTES // np.dtype(dtype).itemsize
    w = rng.standard_normal((_ROWS, 2 * terms)).astype(dtype)
    x = rng.standard_normal(50 + 100 + 2 * _VECTORS * lanes).astype(dtype)
    offsets = rng.integers(0, 100, terms)
    for run, plain in [(_tile_of, tiles._plain_tile), (_narrow_tile_of, tiles._plain_narrow_tile)]:
        for weights in (w[:, :terms], np.ascontiguousarray(w[:, :terms])):  # a slice has a pitch
            got = np.full((_ROWS, 60 + 2 * _VECTORS * lanes), 7, dtype)
            wanted = got.copy()
            run(got, weights, x, offsets, j)
            plain(wanted, weights, x, offsets, j)
            assert close(got, wanted, terms)
            assert ((got == 7) == (wanted == 7)).all()  # nothing written beside the tile


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), vectors=st.integers(1, 9), o=st.integers(0, 5),
       t=st.integers(0, 6), at=st.integers(0, 20))
def test_dots(dtype, seed, vectors, o, t, at):
    rng = np.random.default_rng(seed)
    n = vectors * _BYTES // np.dtype(dtype).itemsize
    g = rng.standard_normal((_ROWS + 5, 20 + n)).astype(dtype)
    x = rng.standard_normal(100 + n).astype(dtype)
    offsets = rng.integers(0, 100, 6 + _VECTORS)
    got = np.ones((6 + _VECTORS, _ROWS + 5), dtype)
    wanted = got.copy()
    _dots_of(got, g, x, offsets, o, t, at, n)
    tiles._plain_dots(wanted, g, x, offsets, o, t, at, n)
    assert close(got, wanted, n)
    assert ((got == 1) == (wanted == 1)).all()


@pytest.mark.parametrize("features, expected", [
    ({"avx512f": True, "avx2": True}, (64, 8)), ({"avx512f": False, "avx2": True}, (32, 4)),
    ({}, (16, 4))])
def test_vectors_follow_the_processor(monkeypatch, features, expected):
    monkeypatch.setattr(tiles.llvm, "get_host_cpu_features", lambda: features)
    assert tiles._vectors() == expected


@pytest.mark.parametrize("shape", [(64, 8), (32, 4), (16, 4)])
def test_other_processors_tiles(monkeypatch, shape):
    "The instructions of narrower vectors run here too, and give the same sums."
    from numba import njit
    monkeypatch.setattr(tiles, "_BYTES", shape[0])
    monkeypatch.setattr(tiles, "_ROWS", shape[1])
    tile, dots = tiles._make_tile(shape[1], _VECTORS), tiles._vector_dots

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
        tiles._plain_tile(wanted[0], w, x, offsets, 3)
        tiles._plain_dots(wanted[1], w, x, offsets, 0, 1, 2, n)
        for a, b in zip(got, wanted):
            assert b.any() and close(a, b, 40)
