"""Kernels of recurrent cells, attention and convolution beside their definitions in more digits.

float32 is compared with the definition in float64, float64 with it in long double. Each bound is
stated where it stands: in eps (the spacing of numbers at 1, two roundings), times the sum of the
absolute terms where numbers are added up. What is below the smallest normal number, `tiny`, may
become 0. Numbers come with large offsets, tiny, huge and denormal; infinity and NaN come out where
the definition has them.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlnotes import transformer
from dlnotes.kernels import attention_scores, recurrence, tiled_attention
from dlnotes.kernels.convolution import conv_plan, tuned_conv2d, tuned_conv2d_backward
from dlnotes.kernels.recurrence import RELU, TANH

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
KINDS = ["plain", "offset", "tiny", "denormal", "huge"]
seeds, kinds = st.integers(0, 2**32 - 1), st.sampled_from(KINDS)
some = settings(
    max_examples=15 if COMPILED else 6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
both_types = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def wide(a):
    "In more digits."
    return a.astype(np.float64 if a.dtype == np.float32 else np.longdouble)


def draw(rng, kind, dtype, *shape):
    a, info = rng.standard_normal(shape), np.finfo(dtype)
    a *= {
        "tiny": float(info.tiny) * 100,
        "denormal": float(info.tiny) / 100,
        "huge": 1e10 if dtype is np.float32 else 1e80,
    }.get(kind, 1)
    return (a + (1e4 if kind == "offset" else 0)).astype(dtype)


def within(got, wanted, bound):
    assert got.shape == wanted.shape
    error = abs(wide(got) - wanted)
    assert (error <= bound).all(), float(np.nanmax(error / np.maximum(bound, 1e-300)))


def same_specials(got, wanted):
    "NaN and infinities in the same places."
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert np.array_equal(np.isnan(got), np.isnan(wanted))
    assert np.array_equal(np.isposinf(got), np.isposinf(wanted))
    assert np.array_equal(np.isneginf(got), np.isneginf(wanted))


# --- scores and their weights


def softmax(z):
    "Along the last axis; zeros where all is -inf."
    top = z.max(-1, keepdims=True)
    e = np.exp(z - np.where(top == -np.inf, 0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


@pytest.mark.kernel
@both_types
@some
@given(seed=seeds, kind=kinds, n=st.integers(1, 70))
def test_weights(dtype, seed, kind, n):
    """Of exact scores: within (20 + distance from the largest score) eps of each weight. Their
    gradient: within 30 eps of |p| (|g| + sum |p g|)."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    e, mask = draw(rng, kind, dtype, 2, 3, n), rng.random((2, n)) < 0.7
    mask[1] = seed % 3 > 0
    z = np.where(mask[:, None], wide(e), -np.inf)
    wanted, got = softmax(z), e.copy()
    attention_scores.masked_softmax(got, mask)
    far = np.where(mask[:, None], np.maximum(z.max(-1, keepdims=True), -1e300) - z, 0)
    within(got, wanted, (20 + np.minimum(far, 800)) * info.eps * wanted + info.tiny)
    assert not got[~np.broadcast_to(mask[:, None], got.shape)].any()
    p, g = got, draw(rng, kind, dtype, 2, 3, n)
    total = (wide(p) * wide(g)).sum(-1, keepdims=True)
    size = abs(wide(p) * wide(g)).sum(-1, keepdims=True)
    dz = g.copy()
    attention_scores.weights_backward(p, dz)
    within(dz, wide(p) * (wide(g) - total), 30 * info.eps * wide(p) * (abs(g) + size) + info.tiny)


@pytest.mark.kernel
@both_types
def test_weights_keep_nan_and_infinity(dtype):
    for special in (np.nan, np.inf):
        for n in (1, 4, 17, 40):
            for masked in (False, True):
                e, mask = np.ones((1, 3, n), dtype), np.ones((1, n), bool)
                e[0, 1, n // 2], mask[0, n // 2] = special, not masked
                with np.errstate(all="ignore"):
                    wanted = softmax(np.where(mask[:, None], e, -np.inf))
                    attention_scores.masked_softmax(e, mask)
                same_specials(e, wanted)
                g, p = np.ones((1, 3, n), dtype), np.full((1, 3, n), 1 / n, dtype)
                g[0, 1, n // 2] = special
                with np.errstate(all="ignore"):
                    wanted = p * (g - (p * g).sum(-1, keepdims=True))
                    attention_scores.weights_backward(p, g)
                same_specials(g, wanted)


@pytest.mark.kernel
@both_types
@some
@given(seed=seeds, kind=kinds, other=kinds, d=st.integers(1, 40))
def test_additive_scores(dtype, seed, kind, other, d):
    """Scores within 30 eps of sum |v tanh|, gradients by q and k of sum |g v|, by v of
    sum |g tanh|."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    q, k, v = (
        draw(rng, kind, dtype, 2, 3, d),
        draw(rng, other, dtype, 2, 4, d),
        draw(rng, kind, dtype, d),
    )
    g, e = draw(rng, other, dtype, 2, 3, 4), np.empty((2, 3, 4), dtype)
    g[0, 1, 2] = 0
    y = np.tanh(wide(q)[:, :, None] + wide(k)[:, None])
    attention_scores._additive_kernel(q, k, v, e)
    within(e, y @ wide(v), 30 * info.eps * (abs(y) @ abs(wide(v))) + d * info.tiny)
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros((2, d), dtype)
    attention_scores._additive_grad_kernel(g, q, k, v, dq, dk, dv)
    upon, size = wide(g)[..., None] * wide(v), abs(wide(g)[..., None] * wide(v))
    for got, axis in ((dq, 2), (dk, 1)):
        within(got, (upon * (1 - y * y)).sum(axis), 30 * info.eps * size.sum(axis) + info.tiny)
    upon = wide(g)[..., None] * y
    within(dv, upon.sum((1, 2)), 30 * info.eps * abs(upon).sum((1, 2)) + info.tiny)


@pytest.mark.kernel
@both_types
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", range(4))
def test_additive_scores_keep_nan_and_infinity(dtype, special, where):
    rng = np.random.default_rng(0)
    q, k, v, g = (
        rng.standard_normal(s).astype(dtype) for s in ((1, 3, 5), (1, 4, 5), (5,), (1, 3, 4))
    )
    (q[0, 1], k[0, 2], v, g[0, 1])[where][2] = special
    e, dq, dk, dv = (np.zeros(s, dtype) for s in ((1, 3, 4), q.shape, k.shape, (1, 5)))
    with np.errstate(all="ignore"):
        y = np.tanh(q[:, :, None] + k[:, None])
        back = g[..., None] * v * (1 - y * y)
        attention_scores._additive_kernel(q, k, v, e)
        attention_scores._additive_grad_kernel(g, q, k, v, dq, dk, dv)
        same_specials(e, (y * v).sum(-1))
        for got, wanted in (
            (dq, back.sum(2)),
            (dk, back.sum(1)),
            (dv, (g[..., None] * y).sum((1, 2))),
        ):
            same_specials(got, wanted)


# --- attention


def attend(q, k, v, g, mask, scale, info):
    "Definition with gradients, and for each of them its error at most."
    eps, step = info.eps, float(info.smallest_subnormal)
    tiny = np.finfo(np.float32 if q.dtype == np.float64 else np.float64).tiny
    kt, vt, mask = k.swapaxes(-1, -2), v.swapaxes(-1, -2), np.where(mask, 0, -np.inf)
    z = q @ kt * scale + mask
    p = weights = softmax(z)
    o, dp = p @ v, g @ vt
    d = (g * o).sum(-1, keepdims=True)
    dz = p * (dp - d)
    wanted = o, dz @ k * scale, dz.swapaxes(-1, -2) @ q * scale, p.swapaxes(-1, -2) @ g
    q, k, v, g = abs(q), abs(k), abs(v), abs(g)
    n = sum(a.shape[-1] for a in (q, v)) + k.shape[-2] + q.shape[-2]
    score = (q @ k.swapaxes(-1, -2) * abs(scale)).max(-1, keepdims=True)
    moved = 4 * (q.shape[-1] + 3) * eps * score
    with np.errstate(over="ignore", invalid="ignore"):
        # a score's error moves weights by its exponential
        off = np.minimum(np.expm1(moved), 1e4) + (4 * n + 200) * eps
        # and can make any of those scores the largest that are nearer to it than the error
        near = np.exp(np.minimum(z - z.max(-1, keepdims=True) + moved, 0))
    p = np.where(moved < 9, off * weights, np.maximum(off * weights, np.nan_to_num(near))) + tiny
    size = g @ v.swapaxes(-1, -2) + (g * (weights @ v)).sum(-1, keepdims=True)
    dz = p * size + tiny
    # queries and keys times scale are rounded to multiples of `step`
    lost = (weights + p) * size * step
    return list(
        zip(
            wanted,
            (
                p @ v + tiny,
                (dz @ k) * scale + lost.sum(-1, keepdims=True) + tiny,
                dz.swapaxes(-1, -2) @ q * scale + lost.sum(-2)[..., None] + tiny,
                p.swapaxes(-1, -2) @ g + tiny,
            ),
        )
    )


@pytest.fixture(params=[0, 1 << 30], ids=["tiles", "table"])
def path(request, monkeypatch):
    monkeypatch.setattr(tiled_attention, "_SMALL", request.param)


@pytest.mark.kernel
@both_types
@some
@given(
    seed=seeds,
    of=st.tuples(kinds, kinds, kinds),
    t=st.integers(1, 40),
    s=st.integers(1, 70),
    e=st.integers(1, 20),
)
@example(seed=295, of=("huge", "offset", "plain"), t=7, s=48, e=5)  # two scores within an error
@example(seed=0, of=("denormal", "plain", "huge"), t=1, s=3, e=2)  # denormal queries, scaled
def test_attention(path, dtype, seed, of, t, s, e):
    """A score of e terms is off by (e + 3) eps of the sum of their absolute values at most, Z;
    a weight by expm1(4 Z) + (4 n + 200) eps of itself, n terms being added in all products."""
    if not COMPILED:
        t, s = min(t, 9), min(s, 9)
    rng = np.random.default_rng(seed)
    q, k, v, g = (
        draw(rng, kind, dtype, 1, 2, n, e)
        for kind, n in ((of[0], t), (of[1], s), (of[2], s), (of[2], t))
    )
    mask = rng.random((1, 1, t, s)) < 0.8
    scale = wide(np.array(dtype(e**-0.5)))
    out, cache = tiled_attention.attention_forward(q, k, v, mask)
    got = out, *tiled_attention.attention_backward(g, cache)
    wanted = attend(*map(wide, (q, k, v, g)), mask, scale, np.finfo(dtype))
    for a, (b, bound) in zip(got, wanted):
        within(a, b, bound)


@pytest.mark.kernel
@both_types
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("where", range(4))
def test_attention_keeps_nan_and_infinity(path, dtype, special, where):
    rng = np.random.default_rng(0)
    arrays = q, k, v, g = [rng.standard_normal((1, 1, 6, 5)).astype(dtype) for _ in range(4)]
    k[..., 2] = abs(k[..., 2])  # so that infinity times it has one sign
    arrays[where][0, 0, 1, 2] = special
    with np.errstate(all="ignore"):
        out, cache = tiled_attention.attention_forward(q, k, v)
        got = out, *tiled_attention.attention_backward(g, cache)
        wanted = attend(q, k, v, g, np.ones((6, 6), bool), dtype(5**-0.5), np.finfo(dtype))
    for a, (b, _) in zip(got, wanted):
        assert np.array_equal(np.isfinite(a), np.isfinite(b))
    same_specials(out, wanted[0][0])


@pytest.mark.kernel
@both_types
@some
@given(seed=seeds, of=st.tuples(kinds, kinds, kinds), s=st.integers(1, 40), d=st.integers(1, 20))
def test_one_query(dtype, seed, of, s, d):
    "As `test_attention`, of the keys and values that decoding keeps."
    rng = np.random.default_rng(seed)
    q, y = draw(rng, of[0], dtype, 3, 2 * d), np.full((3, 2 * d), np.nan, dtype)
    store = np.full((3, s, 2, 2, 2 * d), np.nan, dtype)
    store[:, :, 1, 0], store[:, :, 1, 1] = (draw(rng, kind, dtype, 3, s, 2 * d) for kind in of[1:])
    real = rng.random((3, s)) < 0.8
    real[2] = seed % 2
    transformer._one_query(q, store, 1, real, 2, y)
    q, k, v = (
        wide(a).reshape(3, -1, 2, d).transpose(0, 2, 1, 3)
        for a in (q, store[:, :, 1, 0], store[:, :, 1, 1])
    )
    wanted, bound = attend(
        q, k, v, 0 * q, real[:, None, None], wide(np.array(dtype(d**-0.5))), np.finfo(dtype)
    )[0]
    within(y.reshape(3, 2, 1, d), wanted, bound)
    y[:], store[0, 0, 1, 1], real[0] = 0, np.nan, True
    transformer._one_query(q.reshape(3, -1).astype(dtype), store, 1, real, 2, y)
    assert np.isnan(y[0]).all() and np.isfinite(y[1:]).all()


@pytest.mark.kernel
@both_types
@some
@given(seed=seeds, kind=kinds)
def test_rotary(dtype, seed, kind):
    "Each number within 2 eps of |a cos| + |b sin|."
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    x, angles = draw(rng, kind, dtype, 2, 5, 3, 8), rng.uniform(0, 7, (5, 4))
    cos, sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    got = x.copy()
    transformer._rotate_pairs(got, cos, sin, 2, 0, 2)
    a, b, c, s = wide(x[..., ::2]), wide(x[..., 1::2]), *(wide(t)[:, None] for t in (cos, sin))
    for part, wanted in ((0, a * c - b * s), (1, a * s + b * c)):
        bound = 2 * info.eps * (abs(a * c) + abs(b * s) + abs(a * s) + abs(b * c)) + info.tiny
        within(got[:, :, :2, part::2], wanted[:, :, :2], bound[:, :, :2])
    assert np.array_equal(got[:, :, 2], x[:, :, 2])


# --- recurrent cells


def sigmoid(z):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


@pytest.mark.kernel
@both_types
@some
@given(seed=seeds, kind=kinds, other=kinds, n=st.integers(1, 40))
def test_steps(dtype, seed, kind, other, n):
    """From exact sums: gates within 8 eps of themselves, states within 24 eps of the sum of
    their terms."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    eps, tiny = 24 * info.eps, 4 * info.tiny
    z, h, c = (
        draw(rng, kind, dtype, 4 * n),
        draw(rng, "plain", dtype, n),
        draw(rng, other, dtype, n),
    )
    i, f, g, o = np.split(wide(z), 4)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    state, own, gates = h.copy(), c.copy(), z.copy()
    recurrence._lstm_step(gates, state, own)
    for got, wanted in zip(np.split(gates, 4), (i, f, g, o)):
        within(got, wanted, eps / 3 * abs(wanted) + tiny)
    size = abs(f * c) + abs(i * g) + tiny * (1 + abs(wide(c)))
    cell = f * wide(c) + i * g
    within(own, cell, eps * size + tiny * (1 + abs(wide(c))))
    within(
        state,
        o * np.tanh(cell),
        eps * o * (abs(np.tanh(cell)) + np.minimum(size, 1e30)) + tiny * (1 + abs(wide(c))),
    )

    b, r, keep, new = np.split(wide(z), 4)
    r, keep, state, gates = sigmoid(r), sigmoid(keep), h.copy(), z.copy()
    recurrence._gru_step(gates, state)
    off = eps * (abs(new) + abs(r * b)) / 3 + tiny * (1 + abs(b))  # of the sum in tanh
    new = np.tanh(new + r * b)
    for got, wanted in zip(np.split(gates, 4)[:3], (b, r, keep)):
        within(got, wanted, eps / 3 * abs(wanted) + tiny)
    within(gates[3 * n :], new, eps / 3 * abs(new) + off)
    within(state, new + keep * (wide(h) - new), eps * (abs(new) + abs(keep * h)) + off + tiny)
    for number, wanted in ((TANH, np.tanh(wide(z[:n]))), (RELU, np.maximum(wide(z[:n]), 0))):
        state = h.copy()
        recurrence._rnn_step(number, z[:n].copy(), state)
        within(state, wanted, eps / 3 * abs(wanted) + tiny)


def steps_back(dh, dc, gates, c, before):
    "Gradients of one step of LSTM, GRU, tanh and ReLU by their definition."
    i, f, g, o = np.split(gates, 4)
    t = np.tanh(c)
    dc = dc + dh * o * (1 - t * t)
    lstm = [
        dc * g * i * (1 - i),
        dc * before * f * (1 - f),
        dc * i * (1 - g * g),
        dh * t * o * (1 - o),
        dc * f,
    ]
    dnew = dh * (1 - f) * (1 - g * g)
    gru = [dnew * i, dnew * c * i * (1 - i), dh * (before - g) * f * (1 - f), dnew, dh * f]
    return lstm, gru, dh * (1 - g * g), np.where(g <= 0, 0, dh)


def kernels_back(dh, dc, gates, c, before):
    "The same by the kernels; a GRU's sums are b, r, keep, new."
    n, (i, f, g, _) = len(dh), np.split(gates, 4)
    d, own, cell = np.empty_like(gates), dh.copy(), dc.copy()
    recurrence._lstm_back(d, own, cell, np.concatenate([gates, c]), before)
    assert not own.any()
    lstm, d, own = [*np.split(d, 4), cell], np.empty_like(gates), dh.copy()
    recurrence._gru_back(d, own, np.concatenate([c, i, f, g]), before)
    gru, results = [*np.split(d, 4), own], []
    for number in (TANH, RELU):
        d, own = np.empty(n, dh.dtype), dh.copy()
        recurrence._rnn_back(number, d, own, g.copy())
        assert not own.any()
        results.append(d)
    return lstm, gru, *results


def some_gates(rng, dtype, n):
    gates = [rng.random(n), rng.random(n), rng.uniform(-1, 1, n), rng.random(n)]
    return np.concatenate(gates).astype(dtype)


@pytest.mark.kernel
@both_types
@some
@given(seed=seeds, kind=kinds, other=kinds, n=st.integers(1, 40))
def test_steps_back(dtype, seed, kind, other, n):
    "Within 24 eps of the terms' absolute values: dc + dh in place of a sum of the two."
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    gates = some_gates(rng, dtype, n)
    dh, dc, c, before = (draw(rng, k, dtype, n) for k in (kind, kind, other, other))
    got = kernels_back(dh, dc, gates, c, before)
    wanted = steps_back(*map(wide, (dh, dc, gates, c, before)))
    dh, dc, c, before = (abs(wide(a)) for a in (dh, dc, c, before))
    size, tiny = dh + dc, info.tiny * 8 * (1 + c + before)
    bounds = ([size, size * before, size, dh, size], [dh, dh * c, dh * (before + 1), dh, dh])
    for ours, theirs, largest in zip(got[:2], wanted[:2], bounds):
        for a, b, bound in zip(ours, theirs, largest):
            within(a, b, 24 * info.eps * bound + tiny)
    for a, b in zip(got[2:], wanted[2:]):
        within(a, b, 24 * info.eps * dh + tiny)


@pytest.mark.kernel
@both_types
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_steps_keep_nan_and_infinity(dtype, special):
    rng, n = np.random.default_rng(0), 19
    for place in range(4):
        z, h, c = (rng.standard_normal(k * n).astype(dtype) for k in (4, 1, 1))
        z[place * n + 3] = special
        with np.errstate(all="ignore"):
            i, f, g, o = np.split(z, 4)
            cell = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            new = np.tanh(o + sigmoid(f) * i)
            wanted = new + sigmoid(g) * (h - new)
            state, own = h.copy(), c.copy()
            recurrence._lstm_step(z.copy(), state, own)
            same_specials(own, cell)
            same_specials(state, sigmoid(o) * np.tanh(cell))
            state = h.copy()
            recurrence._gru_step(z.copy(), state)
            same_specials(state, wanted)
            for number, f in ((TANH, np.tanh), (RELU, lambda a: np.maximum(a, 0))):
                recurrence._rnn_step(number, z[:n], state)
                same_specials(state, f(z[:n]))
    for place in range(4):
        gates = some_gates(rng, dtype, n)
        args = [rng.standard_normal(n).astype(dtype) for _ in range(4)]
        args[place][3] = special
        args = *args[:2], gates, *args[2:]
        with np.errstate(all="ignore"):
            got, wanted = kernels_back(*args), steps_back(*args)
        for a, b in zip(got, wanted):
            same_specials(np.array(a), np.array(b))


def recurrent(cell, m, steps, dtype, seed=0):
    rng, k = np.random.default_rng(seed), {"lstm": 4, "gru": 3}.get(cell, 1) * 7
    weights = [(rng.standard_normal(s) / 2).astype(dtype) for s in ((k, 5), (k, 7), (k,), (k,))]
    x, grad = (rng.standard_normal((m, steps, n)).astype(dtype) for n in (5, 7))
    state, ends = (
        tuple(rng.standard_normal((m, 7)).astype(dtype) for _ in range(1 + (cell == "lstm")))
        for _ in range(2)
    )
    return cell, x, state, weights, grad, ends


def both_ways(ahead, back, cell, x, state, weights, grad, ends, mask=None, reverse=False):
    y, last, cache = ahead(cell, x, state, weights, mask, reverse)
    dx, first, dw = back(grad, ends, cache, weights)
    return [y, *last, dx, *first, *dw]


@pytest.mark.kernel
@both_types
@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
@pytest.mark.parametrize("m, steps", [(1, 1), (5, 1), (3, 4)])
def test_layers_beside_their_definition(cell, m, steps, dtype):
    """A step alone goes another way than several; states are below 10, sums have 12 terms, so
    4 steps differ by less than 4000 eps, forward and back."""
    for seed, mask in ((0, None), (1, np.random.default_rng(2).random((m, steps)) < 0.5)):
        for reverse in (False, True):
            args = recurrent(cell, m, steps, dtype, seed)
            got = both_ways(
                recurrence.recurrence_forward, recurrence.recurrence_backward, *args, mask, reverse
            )
            exact = [
                tuple(map(wide, a))
                if isinstance(a, (tuple, list))
                else a
                if isinstance(a, str)
                else wide(a)
                for a in args
            ]
            wanted = both_ways(
                recurrence.plain_forward, recurrence.plain_backward, *exact, mask, reverse
            )
            for a, b in zip(got, wanted):
                assert a.dtype == dtype and b.any()
                within(a, b, 4000 * np.finfo(dtype).eps * max(1, abs(b).max()))


@pytest.mark.kernel
@both_types
@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
@pytest.mark.parametrize("m, steps", [(3, 1), (3, 4)])
def test_layers_keep_nan(cell, m, steps, dtype):
    "In the input, a state or a gradient of one example: in it from then on, and in the weights'."
    for place in range(4):
        args = recurrent(cell, m, steps, dtype)
        (args[1][1, steps // 2], args[2][0][1], args[4][1, steps // 2], args[5][-1][1])[place][
            2
        ] = np.nan
        got = both_ways(recurrence.recurrence_forward, recurrence.recurrence_backward, *args)
        wanted = both_ways(recurrence.plain_forward, recurrence.plain_backward, *args)
        for a, b in zip(got, wanted):
            same_specials(a, b)


@pytest.mark.kernel
def test_a_single_step_with_a_mask_does_not_look_at_what_is_masked():
    for cell in ("tanh", "gru", "lstm"):
        args = recurrent(cell, 4, 1, np.float64)
        mask = np.array([[True], [False], [True], [False]])
        wanted = both_ways(
            recurrence.recurrence_forward, recurrence.recurrence_backward, *args, mask
        )
        args[1][1] = args[4][1] = np.nan
        for a, b in zip(
            both_ways(recurrence.recurrence_forward, recurrence.recurrence_backward, *args, mask),
            wanted,
        ):
            np.testing.assert_array_equal(a, b)


# --- convolution


def conv(x, w, b, g, stride, pad):
    "The answer, and the gradients by x, w and b."
    (h, width), (kh, kw) = x.shape[2:], w.shape[2:]
    padded, oh, ow = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), *g.shape[2:]
    y, dx, dw = np.zeros_like(g) + b[:, None, None], np.zeros_like(padded), np.zeros_like(w)
    for i, j in np.ndindex(kh, kw):
        at = (
            slice(None),
            slice(None),
            slice(i, i + stride * (oh - 1) + 1, stride),
            slice(j, j + stride * (ow - 1) + 1, stride),
        )
        y += np.einsum("nchw,oc->nohw", padded[at], w[:, :, i, j])
        dx[at] += np.einsum("nohw,oc->nchw", g, w[:, :, i, j])
        dw[:, :, i, j] = np.einsum("nohw,nchw->oc", g, padded[at])
    return y, dx[:, :, pad : pad + h, pad : pad + width], dw, g.sum((0, 2, 3))


def fast_conv(x, w, b, g, stride, pad):
    plan = conv_plan(x.shape, w.shape, (stride, stride), ((pad, pad), (pad, pad)), (1, 1), 1)
    return tuned_conv2d(x, w, b, plan), *tuned_conv2d_backward(g, x, w, plan)


def images(rng, of, dtype, n, c, o, size, k, stride, pad):
    out = (size + 2 * pad - k) // stride + 1
    return [
        draw(rng, kind, dtype, *shape)
        for kind, shape in zip(
            (*of, of[0]), ((n, c, size, size), (o, c, k, k), (o,), (n, o, out, out))
        )
    ]


@pytest.mark.kernel
@both_types
@some
@given(
    seed=seeds,
    of=st.tuples(kinds, kinds, kinds),
    n=st.sampled_from([1, 2, 9]),
    c=st.integers(1, 4),
    o=st.integers(1, 9),
    size=st.integers(3, 8),
    k=st.integers(1, 3),
    stride=st.integers(1, 2),
    pad=st.integers(0, 1),
)
def test_convolution(dtype, seed, of, n, c, o, size, k, stride, pad):
    "Each sum within (terms + 2) eps of the sum of the absolute terms."
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    args = images(rng, of, dtype, n, c, o, size, k, stride, pad)
    exact = [wide(a) for a in args]
    got, wanted = fast_conv(*args, stride, pad), conv(*exact, stride, pad)
    sizes = conv(*map(abs, exact), stride, pad)
    terms = c * k * k, o * k * k, n * got[0][0, 0].size, n * got[0][0, 0].size
    for a, b, total, number in zip(got, wanted, sizes, terms):
        within(a, b, (number + 2) * info.eps * total + info.tiny)


@pytest.mark.kernel
@both_types
@pytest.mark.parametrize("special", [np.nan, np.inf])
@pytest.mark.parametrize("n", [2, 9])
def test_convolution_keeps_nan_and_infinity(dtype, special, n):
    """Where the definition has them. A pixel that is no number may spread to all gradients by the
    weights of its channel: between rows the layout multiplies it by zeros."""
    for place in range(4):
        args = images(np.random.default_rng(0), ["plain"] * 3, dtype, n, 2, 3, 6, 3, 1, 1)
        args[1][:] = abs(args[1])
        if place == 2:
            args[2][1] = special
        else:
            args[place][1, 1, 2, 2] = special
        with np.errstate(all="ignore"):
            got, wanted = fast_conv(*args, 1, 1), conv(*args, 1, 1)
        same_specials(got[0], wanted[0])
        for a, b in zip(got[1:], wanted[1:]):
            assert (~np.isfinite(a) >= ~np.isfinite(b)).all()
        if place in (2, 3):
            for a, b in zip(got[1:], wanted[1:]):
                assert np.array_equal(np.isfinite(a), np.isfinite(b))
