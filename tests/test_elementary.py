"""Elementary functions over their whole range: errors in ulp, special values, dtypes, vectors."""

import math
import re
from decimal import Decimal, localcontext

import numpy as np
import pytest
from numba import config, njit, types
from numba.core.errors import TypingError

from dlnotes.kernels.elementary import (
    fast_erf,
    fast_exp,
    fast_expm1,
    fast_log,
    fast_log1p,
    fast_sigmoid,
    fast_tanh,
    horizontal_sum,
    load_vector,
)

DTYPES = [np.float32, np.float64]
FUNCTIONS = [fast_exp, fast_expm1, fast_sigmoid, fast_tanh, fast_erf, fast_log, fast_log1p]
NAME = {"ids": lambda f: f.__name__}
MOST = {
    fast_exp: 1.5,
    fast_expm1: 2,
    fast_sigmoid: 2.5,
    fast_tanh: 2.8,
    fast_erf: 2.5,
    fast_log: 1,
    fast_log1p: 2,
}  # ulp
# where the answers are normal numbers and have not yet come to their limits
RANGE = {
    np.float32: {
        fast_exp: (-87.3, 88.7),
        fast_expm1: (-20, 88),
        fast_sigmoid: (-87.3, 20),
        fast_tanh: (-10, 10),
        fast_erf: (-4, 4),
        fast_log: (1e-3, 50),
        fast_log1p: (-0.999, 50),
    },
    np.float64: {
        fast_exp: (-708.3, 709.7),
        fast_expm1: (-40, 709),
        fast_sigmoid: (-708.3, 40),
        fast_tanh: (-20, 20),
        fast_erf: (-6, 6),
        fast_log: (1e-3, 50),
        fast_log1p: (-0.999, 50),
    },
}


def compiled_loop(f, **options):
    "f over an array, in a compiled loop."

    @njit(error_model="numpy", **options)
    def loop(x, y):
        for i in range(x.size):
            y[i] = f(x[i])

    def over(x):
        y = np.empty_like(x)
        loop(x, y)
        return y

    over.loop = loop
    return over


LOOPS = {f: compiled_loop(f) for f in FUNCTIONS}


def samples(f, dtype, n, seed=0):
    "Numbers all over the range, about 0, and (or, for log, all) of every size."
    rng = np.random.default_rng(seed)
    low, high = RANGE[dtype][f]
    info = np.finfo(dtype)
    sizes = 2.0 ** rng.uniform(info.minexp if f is fast_log else -info.nmant - 5, 0, n)
    if f is fast_log:
        sizes = np.where(rng.random(n) < 0.5, sizes, 1 / sizes)
        about = rng.uniform(0.5, 2, n)
    else:
        sizes *= rng.choice([-0.9, 0.9], n)
        about = rng.uniform(-0.9, 2, n)
    return np.concatenate([np.linspace(low, high, n), about, sizes]).astype(dtype)


def in_ulp(y, want, dtype):
    "Errors in units of the last place of `want`, float64 or exact."
    if isinstance(want, list):
        error = np.array([Decimal(a) - b for a, b in zip(y.tolist(), want)], float)
        want = np.array(want, float)
    else:
        error = y.astype(np.float64) - want
    return abs(error) / np.spacing(abs(want).astype(dtype))


def series(t):
    "Integral of exp(-u^2) from 0 to t."
    term = total = t
    i = 0
    while abs(term) > abs(total) * Decimal("1e-48"):
        i += 1
        term *= 2 * t * t / (2 * i + 1)
        total += term
    return total * (-t * t).exp()


EXACT = {
    fast_exp: lambda x: x.exp(),
    fast_expm1: lambda x: x.exp() - 1,
    fast_sigmoid: lambda x: 1 / (1 + (-x).exp()),
    fast_tanh: lambda x: 1 - 2 / ((2 * x).exp() + 1),
    fast_erf: lambda x: series(x) / series(Decimal(11)),
    fast_log: lambda x: x.ln(),
    fast_log1p: lambda x: (1 + x).ln(),
}
LIBRARY = {
    fast_exp: np.exp,
    fast_expm1: np.expm1,
    fast_sigmoid: lambda x: 1 / (1 + np.exp(-x)),
    fast_tanh: np.tanh,
    fast_erf: np.vectorize(math.erf),
    fast_log: np.log,
    fast_log1p: np.log1p,
}


# --- errors


@pytest.mark.kernel
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_float32_is_near_the_float64_of_libraries_everywhere(f):
    x = samples(f, np.float32, 2000 if config.DISABLE_JIT else 200_000)
    error = in_ulp(LOOPS[f](x), LIBRARY[f](x.astype(np.float64)), np.float32)
    assert error.max() < MOST[f], x[error.argmax()]


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_errors_against_fifty_digits(f, dtype):
    x = samples(f, dtype, 500, seed=1)
    with localcontext() as context:
        context.prec = 50
        want = [EXACT[f](Decimal(v)) for v in x.tolist()]
        error = in_ulp(LOOPS[f](x), want, dtype)
    assert error.max() < MOST[f], x[error.argmax()]


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", [fast_expm1, fast_tanh, fast_erf, fast_log1p], **NAME)
def test_tiny_arguments_keep_all_their_digits(f, dtype):
    x = np.array([1e-30, -1e-20, 1e-10, 3 * np.finfo(dtype).tiny], dtype)
    slope = dtype(2 / math.sqrt(math.pi)) if f is fast_erf else dtype(1)  # the next term is x^2 / 2
    np.testing.assert_allclose(LOOPS[f](x), slope * x, rtol=3e-10 + np.finfo(dtype).eps)


# --- special values and limits


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "f, values",
    [
        (
            fast_exp,
            {0: 1, 1000: np.inf, np.inf: np.inf, -1000: 0, -np.inf: 0, 1e30: np.inf, -1e30: 0},
        ),
        (fast_expm1, {0: 0, -1000: -1, -np.inf: -1}),
        (fast_sigmoid, {0: 0.5, 1000: 1, np.inf: 1, -1000: 0, -np.inf: 0, 1e30: 1, -1e30: 0}),
        (fast_tanh, {0: 0, 1000: 1, np.inf: 1, -1000: -1, -np.inf: -1, 1e30: 1, -1e30: -1}),
        (fast_erf, {0: 0, 1000: 1, np.inf: 1, -1000: -1, -np.inf: -1, 1e30: 1, -1e30: -1}),
        (
            fast_log,
            {1: 0, 0: -np.inf, -1: np.nan, np.inf: np.inf, -np.inf: np.nan, 1e-310: -np.inf},
        ),
        (fast_log1p, {0: 0, -1: -np.inf, -2: np.nan, np.inf: np.inf, -np.inf: np.nan}),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_special_values(f, values, dtype):
    y = LOOPS[f](np.array([*values, np.nan], dtype))
    assert np.array_equal(y, np.array([*values.values(), np.nan], dtype), equal_nan=True)


@pytest.mark.kernel
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_every_nan_stays_nan(f):
    payloads = np.array([0x7FC00001, 0x7F800001, 0x7FFFFFFF, 0xFFC00001, 0xFFFFFFFF], np.uint32)
    assert np.isnan(LOOPS[f](payloads.view(np.float32))).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_ends_where_it_should(dtype):
    info = np.finfo(dtype)
    spread = 1 + np.arange(-50, 51) * info.eps
    x = (np.log(float(info.max)) * spread).astype(dtype)
    y = LOOPS[fast_exp](x)
    assert (np.diff(y[np.isfinite(y)]) >= 0).all() and y[0] > 0.99 * info.max
    assert np.isinf(y[-1]) and not np.isnan(y).any()
    x = (np.log(float(info.tiny)) * spread).astype(dtype)
    y = LOOPS[fast_exp](x)
    assert (y[x > x[50]] >= info.tiny).all() and (y[x < x[50]] == 0).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype, end", [(np.float32, 88), (np.float64, 709)])
def test_expm1_grows_no_more_above_its_end(dtype, end):
    y = LOOPS[fast_expm1](np.array([end, end + 1, 1000, np.inf], dtype))
    assert y[0] < y[1] == y[2] == y[3] < np.inf


# --- dtypes, vectors, callers


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_dtype_is_kept_and_python_agrees_with_the_compiled_loop(f, dtype):
    x = samples(f, dtype, 60, seed=2)
    y = [f(v) for v in x]
    assert {type(v) for v in y} == {dtype}
    difference = abs(np.array(y, dtype) - LOOPS[f](x))  # there without fused multiply-add
    assert (difference <= 3 * np.spacing(abs(np.array(y)))).all()


@pytest.mark.skipif(config.DISABLE_JIT, reason="about compiled code")
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_compiled_return_type(f):
    one = njit(lambda x: f(x))
    for dtype in DTYPES:
        one(dtype(0.5))
    returned = [s.return_type for s in one.nopython_signatures]
    assert returned == [types.float32, types.float64]
    with pytest.raises(TypingError):
        one(1)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_vectors_give_what_single_numbers_give(f, dtype):
    x = samples(f, dtype, 67, seed=3)
    y = LOOPS[f](x)
    assert np.array_equal(y, np.concatenate([LOOPS[f](x[i : i + 1]) for i in range(x.size)]))
    assert np.array_equal(y[1:-2], LOOPS[f](x[1:-2]))


@pytest.mark.kernel
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_a_caller_with_other_liberties_changes_nothing(f):
    x = samples(f, np.float32, 200, seed=4)
    assert np.array_equal(compiled_loop(f, fastmath=True)(x), LOOPS[f](x))


@pytest.mark.skipif(config.DISABLE_JIT or config.BOUNDSCHECK, reason="about vectorised code")
@pytest.mark.parametrize("dtype, name", [(np.float32, "float"), (np.float64, "double")])
@pytest.mark.parametrize("f", FUNCTIONS, **NAME)
def test_loops_are_vectorised(f, dtype, name):
    over = compiled_loop(f)
    over(np.ones(3, dtype))
    (code,) = over.loop.inspect_llvm().values()
    assert re.search(rf"fmul [a-z ]*<\d+ x {name}>", code)
    assert not re.search(r"call (float|double) @(exp|log|tanh|erf)", code)
    if dtype is np.float32:
        assert not re.search(r"<\d+ x double>", code)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", [fast_tanh, fast_erf], **NAME)
def test_odd_functions_are_odd(f, dtype):
    x = samples(f, dtype, 200, seed=5)
    assert np.array_equal(LOOPS[f](-x), -LOOPS[f](x))


@pytest.mark.skipif(config.DISABLE_JIT, reason="about compiled code")
def test_vectors_are_of_contiguous_arrays_only():
    @njit
    def first(a):
        return horizontal_sum(load_vector(a, 0, a.dtype.type(0)))

    assert first(np.ones(40)) == 16 and first(np.ones(40)[3:9]) == 6
    for a in (np.ones(40)[::2], np.ones((40, 2))[:, 0], np.ones((4, 4))):
        with pytest.raises(TypingError, match="contiguous"):
            first(a)
