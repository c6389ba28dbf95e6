"""Kernels against their definitions in more digits, on inputs of every offset and scale.

Each bound is stated beside its kernel, in units of `eps`, the distance from 1 to the next number of
the dtype, and of the magnitudes that the formula has: for a sum, those of its terms.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config
from ulp import near

from dlnotes import mlp, training
from dlnotes.core.execution import compiled
from dlnotes.gradients import _follow
from dlnotes.kernels import normalization, pooling, softmax
from dlnotes.kernels.elementary import vector_dot, vector_sum
from dlnotes.training import _squares

WIDE = np.longdouble
# where that is float64 itself, there is nothing to compare float64 with
DTYPES = [np.float32] + [np.float64] * bool(np.finfo(WIDE).eps < 1e-18)
both = pytest.mark.parametrize("dtype", DTYPES)
some = settings(max_examples=8 if config.DISABLE_JIT else 40, database=None, derandomize=True)
erf = np.vectorize(math.erf, otypes=[np.float64])


def numbers(draw, dtype, shape, special=True, top=1.0):
    "Normal numbers, by chance with an offset, at a scale from the whole range, or with odd ones."
    info = np.finfo(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal(shape)
    kind = draw(st.sampled_from(["plain", "plain", "offset", "scale", "odd"]))
    if kind == "offset":
        x = x + draw(st.sampled_from([1e2, -1e4, 1e6, -1e7]))
    if kind == "scale":
        low, high = int(info.minexp * top), int((info.maxexp - 4) * top)
        x = x * WIDE(2.0) ** draw(st.integers(low, high))
    x = x.astype(dtype)
    if kind == "odd":
        odd = [0.0, -0.0, info.tiny, info.tiny / 4, -info.smallest_subnormal, 1e4, -1e7]
        odd += [np.inf, -np.inf, np.nan, info.max, -info.max] * special
        places = rng.random(shape) < 0.2
        x[places] = rng.choice(np.array(odd, dtype), int(places.sum()))
    return x


def drawn(dtype, least=1, most=70, **options):
    "A vector as `numbers` makes it."

    @st.composite
    def vector(draw):
        return numbers(draw, dtype, draw(st.integers(least, most)), **options)

    return vector()


def wide(*arrays):
    return [np.asarray(a, WIDE) for a in arrays]


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


# --- entry by entry


def tanh_of(x):
    return WIDE(math.sqrt(2 / math.pi)) * x * (1 + WIDE(0.044715) * x * x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * WIDE(math.pi))


def phi(x):
    return (1 + erf((x * WIDE(0.5) ** WIDE(0.5)).astype(np.float64))) / 2


def gelu_tanh_slope(x):
    t, s = np.tanh(tanh_of(x)), WIDE(math.sqrt(2 / math.pi))
    bend = x * (1 - t * t) * s * (1 + 3 * WIDE(0.044715) * x * x) / 2
    return (1 + t) / 2 + np.where(abs(t) < 1, bend, 0 * t)


# kernel: definition, bound in eps from (x, answer). GELU subtracts 1 from 1 where x is negative,
# so its error is measured by x; a power of 2 is lost in exp's argument where that is large.
FORWARD = {
    "sigmoid_kernel": (sigmoid, lambda x, y: 2.5 * y),
    "tanh_kernel": (np.tanh, lambda x, y: 2.8 * abs(y)),
    "relu_kernel": (
        lambda x: np.where(x > 0, x, 0 * (x != x) + np.where(x != x, x, 0)),
        lambda x, y: 0 * x,
    ),
    "gelu_kernel": (lambda x: x * phi(x), lambda x, y: 4 * abs(x)),
    "_gelu_tanh_kernel": (lambda x: x * (1 + np.tanh(tanh_of(x))) / 2, lambda x, y: 6 * abs(x)),
}


@pytest.mark.kernel
@both
@pytest.mark.parametrize("name", FORWARD)
def test_activations(name, dtype):
    definition, bound = FORWARD[name]

    @given(drawn(dtype))
    @some
    def check(x):
        y = np.empty_like(x)
        getattr(mlp, name)(x, y)
        (x,) = wide(x)
        want = definition(x)
        error = np.nan_to_num(bound(x, want), nan=0, posinf=0)
        assert near(y, want, np.finfo(dtype).eps * error).all(), (x, y, want)

    check()


# kernel: slope from what it gets (answers, or for GELU the inputs), bound in eps for grad = 1
SLOPES = {
    "sigmoid_grad_kernel": (lambda y: y * (1 - y), lambda y: 2 * abs(y * (1 - y)), sigmoid),
    "tanh_grad_kernel": (lambda y: 1 - y * y, lambda y: 0 * y + 2, np.tanh),
    "relu_grad_kernel": (lambda y: np.where(y > 0, WIDE(1), 0), lambda y: 0 * y, None),
    "_gelu_grad": (lambda x: phi(x) + x * normal(x), lambda x: 0 * x + 6, None),
    "_gelu_tanh_grad": (gelu_tanh_slope, lambda x: 0 * x + 60, None),
}


@pytest.mark.kernel
@both
@pytest.mark.parametrize("name", SLOPES)
def test_slopes_of_activations(name, dtype):
    slope, bound, answer = SLOPES[name]

    @given(drawn(dtype, special=False), st.integers(0, 99), st.integers(-30, 30))
    @some
    def check(x, seed, exponent):
        grad = (np.random.default_rng(seed).standard_normal(x.size) * 2.0**exponent).astype(dtype)
        x = x if answer is None else answer(x.astype(WIDE)).astype(dtype)
        out = np.empty_like(x)
        getattr(mlp, name)(x, grad, out)
        x, grad = wide(x, grad)
        error = np.finfo(dtype).eps * np.nan_to_num(bound(x), nan=6) * abs(grad)
        assert near(out, grad * slope(x), error).all()

    check()


# --- sums and rows


@compiled()
def both_sums(a, b, out):
    out[0], out[1] = vector_sum(a), vector_dot(a, b)


@pytest.mark.kernel
@both
def test_sums_are_off_by_a_few_roundings_of_their_terms(dtype):
    @given(drawn(dtype, most=400, special=False, top=0.45), st.integers(0, 99))
    @some
    def check(a, seed):
        b = np.random.default_rng(seed).standard_normal(a.size).astype(dtype)
        out = np.empty(2, dtype)
        both_sums(a, b, out)
        x, y = wide(a, b)
        steps = (a.size / 16 + 6) * np.finfo(dtype).eps
        assert near(out[0], x.sum(), steps * abs(x).sum())
        assert near(out[1], (x * y).sum(), steps * abs(x * y).sum())
        total = np.array(_squares(a))
        exact = (x * x).sum()
        if 1e-300 < exact < 1e300:
            assert near(total, exact, (a.size / 16 + 6) * 2.3e-16 * exact)

    check()


def rows(draw, dtype, **options):
    return numbers(draw, dtype, (draw(st.integers(1, 9)), draw(st.integers(1, 70))), **options)


@pytest.mark.kernel
@both
def test_softmax_and_its_logarithm(dtype):
    eps = np.finfo(dtype).eps

    @given(st.data())
    @some
    def check(data):
        x = rows(data.draw, dtype)
        p, log_p = np.empty_like(x), np.empty_like(x)
        softmax.softmax_kernel(x, p)
        softmax.log_softmax_kernel(x, log_p)
        (z,) = wide(x)
        z = z - z.max(axis=1, keepdims=True)
        e = np.exp(z)
        total = e.sum(axis=1, keepdims=True)
        far = np.where(np.isfinite(z), abs(z), 0)
        # the roundings of x - max weigh as exp does; then those of exp and of the sum
        shared = x.shape[1] / 16 + 8 + (far * e / total).sum(axis=1, keepdims=True)
        right = np.where(e / total < np.finfo(dtype).tiny, 0, e / total)
        assert near(p, right, eps * np.nan_to_num(right * (far + shared))).all()
        want = z - np.log(total)
        assert near(log_p, want, eps * np.nan_to_num(far + shared + abs(np.log(total)))).all()

    check()


@pytest.mark.kernel
@both
def test_slopes_of_softmax_and_its_logarithm(dtype):
    eps = np.finfo(dtype).eps

    @given(st.data())
    @some
    def check(data):
        x = rows(data.draw, dtype, special=False, top=0.1)
        g = np.random.default_rng(x.size).standard_normal(x.shape).astype(dtype)
        (z,) = wide(x)
        z = z - z.max(axis=1, keepdims=True)
        log_p = (z - np.log(np.exp(z).sum(axis=1, keepdims=True))).astype(dtype)
        p = np.exp(log_p.astype(WIDE)).astype(dtype)
        d, d_log = np.empty_like(x), np.empty_like(x)
        softmax.softmax_grad_kernel(p, g, d)
        softmax.log_softmax_grad_kernel(log_p, g, d_log)
        p, g, log_p = wide(p, g, log_p)
        steps = x.shape[1] / 16 + 8
        sizes = abs(g * p).sum(axis=1, keepdims=True)
        want = p * (g - (g * p).sum(axis=1, keepdims=True))
        assert near(d, want, eps * p * (2 * abs(g) + steps * sizes)).all()
        p = np.exp(log_p)
        want = g - p * g.sum(axis=1, keepdims=True)
        bound = abs(g) + steps * p * abs(g).sum(axis=1, keepdims=True)
        # exp answers 0 below the normal numbers
        bound = eps * bound + np.finfo(dtype).tiny * abs(g).sum(axis=1, keepdims=True)
        assert near(d_log, want, bound).all()

    check()


# --- losses


@pytest.mark.kernel
@both
@pytest.mark.parametrize("share", [0, 0.25])
def test_cross_entropy_and_label_smoothing(dtype, share):
    eps, scale = np.finfo(dtype).eps, dtype(0.125)

    @given(st.data())
    @some
    def check(data):
        z = rows(data.draw, dtype, special=False, top=0.9)
        m, n = z.shape
        rng = np.random.default_rng(n)
        y = rng.integers(-1, n, m)
        loss, grad = np.empty(m), np.empty_like(z)
        softmax.cross_entropy_kernel(z, y, scale, loss, grad)
        if share:
            softmax.smooth_kernel(z, y, scale, share, loss, grad)
        (x,) = wide(z)
        far = x.max(axis=1, keepdims=True) - x
        e = np.exp(-far)
        total = e.sum(axis=1, keepdims=True)
        log_p = -far - np.log(total)
        target = (1 - share) * np.eye(n, dtype=WIDE)[y] + WIDE(share) / n
        counts = (y >= 0)[:, None]
        target = np.where(counts, target, 0)
        steps = n / 16 + 9 + (far * e / total).sum(axis=1, keepdims=True)
        spread = abs(x - x[np.arange(m), y][:, None]).sum(axis=1, keepdims=True)
        want = -(target * log_p).sum(axis=1, keepdims=True)
        bound = eps * (steps + far[np.arange(m), y][:, None]) + 1e-15 * share * spread / n
        assert near(loss[:, None], want, bound).all()
        want = np.where(counts, scale * (e / total - target), 0)
        bound = eps * scale * (e / total * (far + steps) + 4 * target)
        assert near(grad, want, np.where(counts, bound, 0)).all()

    check()


@pytest.mark.kernel
@both
def test_binary_cross_entropy_and_squared_error(dtype):
    eps, scale = np.finfo(dtype).eps, dtype(0.125)

    @given(
        drawn(dtype, most=2500 if not config.DISABLE_JIT else 70, special=False, top=0.4),
        st.booleans(),
    )
    @some
    def check(z, hard):
        rng = np.random.default_rng(z.size)
        y = (rng.integers(0, 2, z.size) if hard else rng.random(z.size)).astype(dtype)
        grad = np.empty_like(z)
        total = np.array(mlp.bce_kernel(z, y, scale, grad))
        a, b = wide(z, y)
        each = np.maximum(a, 0) - a * b + np.log1p(np.exp(-abs(a)))
        size = np.maximum(a, 0) + abs(a * b) + np.log1p(np.exp(-abs(a)))
        # the sum is formed in float64
        bound = (3 * eps * size).sum() + (z.size / 16 + 6) * 2.3e-16 * size.sum()
        assert near(total, each.sum(), bound + z.size * np.finfo(dtype).tiny)
        want = scale * (sigmoid(a) - b)
        assert near(grad, want, 4 * eps * scale * (sigmoid(a) + b)).all()
        total = np.array(mlp.mse_kernel(z, y, scale, grad))
        if (abs(a) < 1e150).all():
            exact = ((a - b) ** 2).sum()
            bound = (2 * eps + (z.size / 16 + 10) * 2.3e-16) * exact
            assert near(total, exact, bound)
        assert near(grad, scale * 2 * (a - b), 2 * eps * scale * 2 * abs(a - b)).all()

    check()


# --- optimizers


@pytest.mark.kernel
@both
@pytest.mark.parametrize("ahead", [0, 1])
def test_steps_of_optimizers(dtype, ahead):
    eps = np.finfo(dtype).eps

    @given(drawn(dtype, special=False, top=0.4))
    @some
    def check(g):
        rng = np.random.default_rng(g.size)
        w, m = rng.standard_normal((2, g.size)).astype(dtype)
        v = rng.random(g.size).astype(dtype)
        h = np.array([0.01, 0.1, 0.9, ahead, 0, 0, 0, 0], dtype)
        lr, decay, mu = h[:3].astype(WIDE)
        w1, w2, m2 = w.copy(), w.copy(), m.copy()
        training._sgd(w1, g, h)
        training._momentum(w2, g, m2, h)
        W, G, M, V = wide(w, g, m, v)
        d, size = G + decay * W, abs(G) + decay * abs(W)
        assert near(w1, W - lr * d, 3 * eps * (abs(W) + lr * size)).all()
        M2, size = mu * M + d, mu * abs(M) + size
        assert near(m2, M2, 3 * eps * size).all()
        step = d + mu * M2 if ahead else M2
        assert near(w2, W - lr * step, 5 * eps * (abs(W) + 2 * lr * size)).all()
        h = np.array([0.9, 0.1, 0.99, 0.01, 0.999, 0.02, 1.5, 1e-8], dtype)
        b1, new1, b2, new2, keep, rate, root, small = wide(h)[0]
        w3, m3, v3 = w.copy(), m.copy(), v.copy()
        training._adamw(w3, g, m3, v3, h)
        M3, V3 = b1 * M + new1 * G, b2 * V + new2 * G * G
        assert near(m3, M3, 3 * eps * (b1 * abs(M) + new1 * abs(G))).all()
        assert near(v3, V3, 4 * eps * V3).all()
        step = rate / (np.sqrt(V3) * root + small)
        size = abs(keep * W) + step * (b1 * abs(M) + new1 * abs(G))
        assert near(w3, keep * W - step * M3, 10 * eps * size).all()

    check()


# --- losses and optimizers: NaN and infinities stay where the definition has them

ODD = [np.nan, np.inf, -np.inf]


@pytest.mark.kernel
@both
@pytest.mark.parametrize("share", [0, 0.25])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("at_target", [False, True])
def test_cross_entropy_passes_on_what_is_no_number(dtype, share, odd, at_target):
    "A logit of inf or NaN leaves no probability; one of -inf has probability 0."
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((5, 37)).astype(dtype), rng.integers(0, 37, 5)
    plain_loss, plain_grad = np.empty(5), np.empty_like(z)
    loss, grad = np.empty(5), np.empty_like(z)

    def run(loss, grad):
        softmax.cross_entropy_kernel(z, y, dtype(1), loss, grad)
        if share:
            softmax.smooth_kernel(z, y, dtype(1), share, loss, grad)

    run(plain_loss, plain_grad)
    z[2, y[2] if at_target else (y[2] + 1) % 37] = odd
    run(loss, grad)
    others = np.arange(5) != 2
    np.testing.assert_array_equal(loss[others], plain_loss[others])
    np.testing.assert_array_equal(grad[others], plain_grad[others])
    if odd == -np.inf:
        assert loss[2] == np.inf if at_target or share else np.isfinite(loss[2])
        (row,) = wide(z[2])
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        want = p - (1 - share) * np.eye(37)[y[2]] - share / 37
        np.testing.assert_allclose(grad[2], want.astype(dtype), atol=8 * np.finfo(dtype).eps)
    else:
        assert np.isnan(loss[2]) and np.isnan(grad[2]).all()


@pytest.mark.kernel
@both
@pytest.mark.parametrize("kernel", [mlp.bce_kernel, mlp.mse_kernel])
@pytest.mark.parametrize("odd", ODD)
def test_losses_of_numbers_pass_on_what_is_no_number(kernel, dtype, odd):
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal(70).astype(dtype), rng.integers(0, 2, 70).astype(dtype)
    plain, grad = np.empty_like(z), np.empty_like(z)
    kernel(z, y, dtype(1), plain)
    z[33], y[33] = odd, 1
    total = kernel(z, y, dtype(1), grad)
    others = np.arange(70) != 33
    np.testing.assert_array_equal(grad[others], plain[others])
    if kernel is mlp.mse_kernel:
        want, slope = odd**2, 2 * odd
    else:  # max(z, 0) - y z + log(1 + exp(-|z|)), as the chapter has it
        want, slope = max(odd, 0) - odd + np.exp(-abs(odd)), sigmoid(WIDE(odd)) - 1
    np.testing.assert_equal(float(total), want)
    np.testing.assert_allclose(grad[33], dtype(slope), atol=np.finfo(dtype).eps)


@pytest.mark.kernel
@both
@pytest.mark.parametrize("odd", [*ODD, 1e-45, 3e38])
def test_optimizers_keep_what_is_no_number_to_itself(dtype, odd):
    "An odd gradient does to its own weight what the definition does, and nothing to others."
    rng = np.random.default_rng(0)
    w, g, m = rng.standard_normal((3, 40)).astype(dtype)
    v = rng.random(40).astype(dtype)
    g[21] = dtype(odd)
    h = np.array([0.01, 0.1, 0.9, 1, 0, 0, 0, 0], dtype)
    d = g + h[1] * w
    got = w.copy()
    training._sgd(got, g, h)
    np.testing.assert_allclose(got, w - h[0] * d, rtol=1e-5)
    got, moved = w.copy(), m.copy()
    training._momentum(got, g, moved, h)
    np.testing.assert_allclose(moved, h[2] * m + d, rtol=1e-5)
    np.testing.assert_allclose(got, w - h[0] * (d + h[2] * (h[2] * m + d)), rtol=1e-5)
    h = np.array([0.9, 0.1, 0.99, 0.01, 0.999, 0.02, 1.5, 1e-8], dtype)
    got, first, second = w.copy(), m.copy(), v.copy()
    training._adamw(got, g, first, second, h)
    m, v = h[0] * m + h[1] * g, h[2] * v + h[3] * (g * g)
    np.testing.assert_allclose(first, m, rtol=1e-5)
    np.testing.assert_allclose(second, v, rtol=1e-5)
    np.testing.assert_allclose(got, h[4] * w - h[5] * m / (np.sqrt(v) * h[6] + h[7]), rtol=1e-5)


# --- pooling


def windows(x, kernel, stride, padding):
    "The places of each window in channels (k, height, width)."
    k, height, width = x.shape
    (kh, kw), (sh, sw), (top, left) = kernel, stride, padding
    for i in range((height + 2 * top - kh) // sh + 1):
        for j in range((width + 2 * left - kw) // sw + 1):
            yield (
                i,
                j,
                [
                    (a, b)
                    for a in range(i * sh - top, i * sh - top + kh)
                    for b in range(j * sw - left, j * sw - left + kw)
                    if 0 <= a < height and 0 <= b < width
                ],
            )


def first_largest(values):
    for place, v in enumerate(values):
        if v != v:
            return place
    return int(np.argmax(values))


SHAPES = [((2, 2), (2, 2), (0, 0)), ((3, 2), (2, 1), (1, 1)), ((2, 3), (3, 2), (0, 1))]


@pytest.mark.kernel
@both
@pytest.mark.parametrize("plan", SHAPES)
def test_pooling(plan, dtype):
    kernel = plan[0]

    @given(st.data())
    @settings(some, max_examples=12)
    def check(data):
        x = numbers(data.draw, dtype, (2, 6, 8), top=0.9)
        place = list(windows(x, *plan))
        shape = (2, place[-1][0] + 1, place[-1][1] + 1)
        z, where, mean = np.empty(shape, dtype), np.empty(shape, np.uint32), np.empty(shape, dtype)
        g = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        pooling._max_pool(x, z, where, *plan)
        pooling._avg_pool(x, mean, *plan)
        dx, d_mean = np.empty_like(x), np.empty_like(x)
        pooling._max_pool_grad(g, where, dx)
        pooling._avg_pool_grad(g, d_mean, *plan)
        right, right_mean = np.zeros((2, *x.shape), WIDE)
        touched = np.zeros(x.shape, WIDE)
        n = kernel[0] * kernel[1]
        for i, j, pixels in place:
            at = tuple(np.array(pixels).T)
            for k in range(2):
                values = x[k][at]
                best = pixels[first_largest(values)]
                assert where[k, i, j] == best[0] * 8 + best[1]
                assert z[k, i, j] == x[k][best] or np.isnan(x[k][best])
                total = values.astype(WIDE).sum() / n
                # the sum comes first, and may overflow where the mean would not
                if abs(values).sum() < np.finfo(dtype).max or not np.isfinite(total):
                    bound = np.nan_to_num(n * np.finfo(dtype).eps * abs(values).sum() / n, posinf=0)
                    assert near(mean[k, i, j], total, bound)
                right[k][best] += g[k, i, j]
                right_mean[k][at] += WIDE(g[k, i, j]) / n
                touched[k][at] += abs(WIDE(g[k, i, j]))
        assert near(dx, right, n * np.finfo(dtype).eps * touched).all()
        assert near(d_mean, right_mean, n * np.finfo(dtype).eps * touched).all()
        if plan == SHAPES[0]:  # the kernels for windows side by side
            z2, where2, mean2 = np.empty_like(z), np.empty_like(where), np.empty_like(mean)
            pooling._max_pool_2x2(x, z2, where2)
            pooling._avg_pool_2x2(x, mean2)
            assert np.array_equal(z, z2, equal_nan=True) and (where == where2).all()
            assert np.array_equal(mean, mean2, equal_nan=True) or dtype is np.float32
            d2 = np.empty_like(x)
            pooling._avg_pool_2x2_grad(g, d2)
            assert np.array_equal(d_mean, d2)
            if dtype is np.float32:
                pairs = d2.view(np.uint64)
                pooling._max_pool_2x2_grad(g.view(np.uint32), where, pairs)
                assert np.array_equal(d2, dx)
            last = np.ascontiguousarray(x[..., None] * np.array([1, -1], dtype))
            z3, which = np.empty((*shape, 2), dtype), np.empty((*shape, 2), np.uint32)
            pooling._max_pool_last(last, z3, which)
            assert np.array_equal(z3[..., 0], z, equal_nan=True)
            d3 = np.empty_like(last)
            pooling._max_pool_last_grad(np.stack([g, g], axis=-1), which, d3)
            assert np.array_equal(d3[..., 0], dx)

    check()


# --- normalization

NORM_SCALES = {
    np.float32: [1, 1e-30, 1e-20, 1e-10, 1e10, 1e19, 1e20, 1e30, 1e37],
    np.float64: [1, 1e-250, 1e-160, 1e10, 1e150, 1e160, 1e200, 1e300],
}


def normed(x, weight, bias, grad, eps, axes):
    "Answer, mean, variance, 1 / deviation; gradients by input, weight and bias. All WIDE."
    mean = x.mean(axis=axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    root = 1 / np.sqrt(var + eps)
    hat = (x - mean) * root
    g = grad * weight
    dx = root * (
        g - g.mean(axis=axes, keepdims=True) - hat * (g * hat).mean(axis=axes, keepdims=True)
    )
    return hat, hat * weight + bias, mean, var, root, dx


def batch_norm_holds(x, grad, weight, bias, eps):
    "Both directions, against the definition in more digits."
    dtype, unit = x.dtype.type, np.finfo(x.dtype).eps
    y, stats = normalization.tuned_batch_norm(x, weight, bias, eps)
    dx, sums = normalization.tuned_batch_norm_backward(grad, x, weight, stats, True)
    w, b = (a.astype(WIDE)[:, None] for a in (weight, bias))
    hat, want, mean, var, root, want_dx = normed(*wide(x), w, b, *wide(grad), eps, (0, 2))
    # mean and variance come from sums of up to 64 roundings; the rest are single ones.
    # The mean is kept in float64: of a large one, that rounding remains
    few, kept = 100 * unit, 4e-16 * abs(mean) * root
    slack = few + kept
    bound = few * (abs(hat * w) + abs(w) / 10 + abs(b) / 50) + kept * abs(w)
    assert near(y, want, bound).all()
    mean, var, root, slack = (a[0, :, 0] for a in (mean, var, root, slack))
    assert (abs(stats[0] - mean) <= few * np.sqrt(var) + 4e-16 * abs(mean)).all()
    finite = var < np.finfo(np.float64).max
    assert (abs(stats[1] - var) <= few * var + 1e-300)[finite & (var > 1e-36)].all()
    assert np.isinf(stats[1][~finite]).all()
    assert near(stats[2] / root, 1 + 0 * root, few).all()
    g_sum = abs(grad.astype(WIDE)).sum(axis=(0, 2))
    assert near(sums[0], wide(grad)[0].sum(axis=(0, 2)), few * g_sum).all()
    products = grad * hat
    size = abs(products).sum(axis=(0, 2)) + g_sum
    assert near(sums[1], products.sum(axis=(0, 2)), slack * size).all()
    size = abs(grad) + (1 + abs(hat)) * 2
    assert near(dx, want_dx, (slack * root)[:, None] * abs(w) * size).all()
    # with statistics that are given, the answer is a line
    run = np.stack([stats[0], np.minimum(stats[1], np.finfo(dtype).max)]).astype(dtype)
    y, _ = normalization.tuned_batch_norm(x, weight, bias, eps, run)
    m, v = (a.astype(WIDE)[:, None] for a in run)
    if (v + eps > np.finfo(dtype).tiny).all() and abs(x).max() < 1e19:
        line = (x - m) / np.sqrt(v + eps) * w
        assert near(y, line + b, 8 * unit * (abs(line) + abs(b))).all()


def layer_norm_holds(x, grad, weight, bias, eps):
    "Both directions, against the definition in more digits."
    unit = np.finfo(x.dtype).eps
    y, stats = normalization.tuned_layer_norm(x, weight, bias, eps)
    dx, sums = normalization.tuned_layer_norm_backward(grad, x, weight, stats)
    w, b = wide(weight, bias)
    hat, want, mean, var, root, want_dx = normed(*wide(x), w, b, *wide(grad), eps, 1)
    few, kept = 100 * unit, 4e-16 * abs(mean) * root
    slack = few + kept
    bound = few * (abs(hat * w) + abs(w) / 10 + abs(b) / 50) + kept * abs(w)
    assert near(y, want, bound).all()
    assert (abs(stats[0] - mean[:, 0]) <= few * np.sqrt(var[:, 0]) + 4e-16 * abs(mean[:, 0])).all()
    assert near(stats[1] / root[:, 0], 1 + 0 * root[:, 0], few).all()
    size = abs(grad.astype(WIDE)).sum(axis=0)
    assert near(sums[0], wide(grad)[0].sum(axis=0), few * size).all()
    bound = (few * abs(grad * hat) + slack * abs(grad)).sum(axis=0)
    assert near(sums[1], (grad * hat).sum(axis=0), bound).all()
    size = abs(grad * w) + (1 + abs(hat)) * abs(grad * w).mean(axis=1, keepdims=True) * 2
    size += (1 + abs(hat)) * abs(grad * w * hat).mean(axis=1, keepdims=True)
    assert near(dx, want_dx, slack * root * size).all()


def inputs_of_norm(rng, scale, offset, shape, dtype):
    "Input and its gradient, weight and bias; no offset where it would leave the dtype's range."
    if scale * offset > np.finfo(dtype).max / 10:
        offset = 0
    x = (WIDE(scale) * (offset + rng.standard_normal(shape))).astype(dtype)
    grad = rng.standard_normal(shape).astype(dtype)
    return x, grad, *rng.standard_normal((2, shape[1])).astype(dtype)


@pytest.mark.kernel
@both
@pytest.mark.parametrize("shape", [(8, 3, 1), (70, 2, 3), (5, 2, 16), (3, 4, 50), (2, 1, 1500)])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_batch_norm_at_every_scale(shape, eps, dtype):
    if config.DISABLE_JIT and shape[0] * shape[2] > 250:
        shape = (5, 2, 20)
    rng = np.random.default_rng(0)
    for scale in NORM_SCALES[dtype]:
        for offset in (0, 1e4):
            batch_norm_holds(*inputs_of_norm(rng, scale, offset, shape, dtype), eps)


@pytest.mark.kernel
@both
@pytest.mark.parametrize("shape", [(1, 5), (70, 3), (9, 16), (5, 100), (3, 700)])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_layer_norm_at_every_scale(shape, eps, dtype):
    rng = np.random.default_rng(0)
    for scale in NORM_SCALES[dtype]:
        for offset in (0, 1e4):
            layer_norm_holds(*inputs_of_norm(rng, scale, offset, shape, dtype), eps)


@pytest.mark.kernel
@both
def test_norms_on_drawn_inputs(dtype):
    "Any shape, a scale from nearly the whole range, an offset of up to 30,000 deviations."
    info = np.finfo(dtype)

    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(st.integers(2, 40), st.integers(1, 4), st.integers(1, 40)),
        power=st.integers(int(info.minexp * 0.8), info.maxexp - 8),
        offset=st.sampled_from([0, 0, 1, -100, 3e4]),
        eps=st.sampled_from([0.0, 1e-5, 1e-12]),
    )
    @some
    def check(seed, shape, power, offset, eps):
        rng, scale = np.random.default_rng(seed), float(2.0**power)
        batch_norm_holds(*inputs_of_norm(rng, scale, offset, shape, dtype), eps)
        shape = (shape[1], shape[0] * shape[2])
        layer_norm_holds(*inputs_of_norm(rng, scale, offset, shape, dtype), eps)

    check()


@pytest.mark.kernel
@both
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_norms_pass_on_what_is_no_number(odd, dtype):
    weight, bias = np.ones((2, 3), dtype)
    for shape in ((6, 3, 4), (6, 3, 20)):
        x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
        clean, _ = normalization.tuned_batch_norm(x, weight, bias, 1e-5)
        x[2, 1, 3] = odd
        y, stats = normalization.tuned_batch_norm(x, weight, bias, 1e-5)
        assert np.isnan(y[:, 1]).all() and np.isnan(stats[2, 1])
        assert np.array_equal(y[:, ::2], clean[:, ::2])
        dx, sums = normalization.tuned_batch_norm_backward(x, x, weight, stats, True)
        assert np.isnan(dx[:, 1]).all() and np.isnan(sums[1, 1])
        assert np.isfinite(dx[:, ::2]).all() and np.isfinite(sums[:, ::2]).all()
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(dtype)
    clean, _ = normalization.tuned_layer_norm(x, weight, bias, 1e-5)
    x[1, 2] = odd
    y, stats = normalization.tuned_layer_norm(x, weight, bias, 1e-5)
    assert np.isnan(y[1]).all() and np.isnan(stats[1, 1])
    assert np.array_equal(np.delete(y, 1, 0), np.delete(clean, 1, 0))
    dx, _ = normalization.tuned_layer_norm_backward(np.ones_like(x), x, weight, stats)
    assert np.isnan(dx[1]).all() and np.isfinite(np.delete(dx, 1, 0)).all()


@pytest.mark.kernel
@both
def test_running_statistics_follow_those_of_the_batch(dtype):
    mean, var = np.array([1.0, -2.0], dtype), np.array([0.5, 4.0], dtype)
    stats = np.array([[3.0, 5.0], [2.0, 8.0], [0, 0]])
    want_mean, want_var = mean + 0.25 * (stats[0] - mean), var + 0.25 * (1.5 * stats[1] - var)
    _follow(mean, var, stats, 0.25, 1.5)
    unit = 2 * np.finfo(dtype).eps
    assert near(mean, want_mean, unit * abs(want_mean)).all()
    assert near(var, want_var, unit * abs(want_var)).all()
