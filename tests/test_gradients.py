"""First weights, clipping and normalisation beyond their chapter: PyTorch, bad input, threads."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes import gradients
from dlnotes.cnn import Conv2d
from dlnotes.core.checking import check_gradients, numerical_grad
from dlnotes.core.execution import num_threads, set_num_threads
from dlnotes.core.layers import Sequential, summary
from dlnotes.gradients import (
    BatchNorm,
    LayerNorm,
    kaiming_normal,
    kaiming_uniform,
    orthogonal,
    xavier_normal,
    xavier_uniform,
)
from dlnotes.mlp import CrossEntropyLoss, Linear, ReLU
from dlnotes.training import SGD, clip_grad_norm, evaluate, fit, load, save

DTYPES = [np.float32, np.float64]
DRAWS = [xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform, orthogonal]
RNG = np.random.default_rng(0)


# --- first weights

SIZES = [(300, 200), (200, 300), (40, 30, 5, 3), (30, 60, 7)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_xavier_is_that_of_pytorch(shape, gain):
    torch = pytest.importorskip("torch")
    theirs = torch.empty(shape, dtype=torch.float64)
    torch.nn.init.xavier_uniform_(theirs, gain)
    n_in, n_out = torch.nn.init._calculate_fan_in_and_fan_out(theirs)
    assert gradients._fans(shape) == (n_in, n_out)
    even, normal = (
        f(shape, gain, rng=1, dtype=np.float64) for f in (xavier_uniform, xavier_normal)
    )
    bound = gain * math.sqrt(6 / (n_in + n_out))
    # the largest of at least 12,000 even draws is nearer to the bound than 0.2%
    assert 0.998 * bound < abs(even).max() <= bound and abs(theirs).max() <= bound
    # a variance of 12,000 draws is off by about 1.3%
    for draw in (even, normal):
        np.testing.assert_allclose(draw.var(), bound**2 / 3, rtol=0.07)
        assert abs(draw.mean()) < 5 * bound / math.sqrt(3 * draw.size)
    assert abs(normal).max() > 1.5 * bound  # it has tails


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize(
    "nonlinearity,a",
    [
        ("linear", 0),
        ("sigmoid", 0),
        ("tanh", 0),
        ("relu", 0),
        ("leaky_relu", 0),
        ("leaky_relu", 0.3),
        ("leaky_relu", -2),
    ],
)
def test_kaiming_is_that_of_pytorch(shape, mode, nonlinearity, a):
    torch = pytest.importorskip("torch")
    gain = torch.nn.init.calculate_gain(nonlinearity, a)
    fan = torch.nn.init._calculate_correct_fan(torch.empty(shape), mode)
    settings = (a, mode, nonlinearity)
    even, normal = (
        f(shape, *settings, rng=2, dtype=np.float64) for f in (kaiming_uniform, kaiming_normal)
    )
    bound = gain * math.sqrt(3 / fan)
    assert 0.998 * bound < abs(even).max() <= bound
    for draw in (even, normal):
        np.testing.assert_allclose(draw.var(), bound**2 / 3, rtol=0.07)


@pytest.mark.parametrize(
    "shape", [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1), (4, 2, 3, 3), (20, 2, 3)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonal_is_orthogonal(shape, dtype):
    a = orthogonal(shape, 1.5, rng=3, dtype=dtype)
    assert a.shape == shape and a.dtype == dtype and a.flags.c_contiguous
    flat = a.reshape(shape[0], -1).astype(np.float64)
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    np.testing.assert_allclose(
        gram, 2.25 * np.eye(len(gram)), rtol=0, atol=50 * np.finfo(dtype).eps
    )


def test_orthogonal_favours_no_sign():
    "Without the correction of signs, numpy's QR gives diagonals of one sign only."
    firsts = [orthogonal((2, 2), rng=seed)[0, 0] for seed in range(200)]
    assert 60 < np.sum(np.array(firsts) > 0) < 140
    turns = [np.linalg.det(orthogonal((3, 3), rng=seed)) > 0 for seed in range(200)]
    assert 60 < sum(turns) < 140


@pytest.mark.parametrize("draw", DRAWS)
def test_draws_follow_the_seed_and_the_dtype(draw):
    a = draw((6, 5), rng=4)
    assert a.dtype == np.float32 and (a == draw((6, 5), rng=4)).all()
    assert (a != draw((6, 5), rng=5)).any()
    rng = np.random.default_rng(4)
    assert (draw((6, 5), rng=rng) == a).all() and (draw((6, 5), rng=rng) != a).any()
    assert draw([6, 5], rng=4, dtype="float64").dtype == np.float64
    assert draw((6, 5)).shape == (6, 5)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(
    "arguments,named",
    [
        (dict(shape=(3,)), "shape"),
        (dict(shape=()), "shape"),
        (dict(shape=5), "shape"),
        (dict(shape=(3, 0)), "shape"),
        (dict(shape=(3, -1)), "shape"),
        (dict(shape=(3, 2.0)), "shape"),
        (dict(shape="ab"), "shape"),
        (dict(shape=(3, 2), rng="x"), "rng"),
        (dict(shape=(3, 2), rng=-1), "rng"),
        (dict(shape=(3, 2), dtype=np.int32), "dtype"),
        (dict(shape=(3, 2), dtype=np.float16), "dtype"),
    ],
)
def test_draws_refuse(draw, arguments, named):
    with pytest.raises((ValueError, TypeError), match=named):
        draw(**arguments)


@pytest.mark.parametrize("draw", [xavier_normal, xavier_uniform, orthogonal])
@pytest.mark.parametrize("gain", [-1, np.nan, np.inf, "1", None, True])
def test_gain_is_a_number(draw, gain):
    with pytest.raises((ValueError, TypeError), match="gain"):
        draw((3, 2), gain)


@pytest.mark.parametrize("draw", [kaiming_normal, kaiming_uniform])
@pytest.mark.parametrize(
    "name,value",
    [
        ("a", np.nan),
        ("a", "x"),
        ("mode", "fan"),
        ("mode", None),
        ("nonlinearity", "softmax"),
        ("nonlinearity", 3),
    ],
)
def test_kaiming_refuses(draw, name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        draw((3, 2), **{name: value})


# --- clipping


def some_grads(seed=0, scale=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(scale * rng.normal(size=shape), dtype)
        for name, shape in {"w": (7, 5), "b": (5,), "k": (2, 3, 2, 2), "s": ()}.items()
    }


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1.0, 7.0, 1e3, np.inf])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_clipping_is_that_of_pytorch(max_norm, scale):
    torch = pytest.importorskip("torch")
    grads = some_grads(scale=scale)
    tensors = [torch.nn.Parameter(torch.zeros(g.shape).double()) for g in grads.values()]
    for tensor, g in zip(tensors, grads.values()):
        tensor.grad = torch.tensor(g)
    theirs = float(torch.nn.utils.clip_grad_norm_(tensors, max_norm))
    norm = clip_grad_norm(grads, max_norm)
    np.testing.assert_allclose(norm, theirs, rtol=1e-12)
    # PyTorch divides by the norm + 1e-6, so its gradients are shorter by that share
    share = (norm + 1e-6) / norm if max_norm < norm else 1
    for g, tensor in zip(grads.values(), tensors):
        np.testing.assert_allclose(g, tensor.grad.numpy() * share, rtol=1e-10, atol=1e-300)


@pytest.mark.kernel
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    power=st.integers(-30, 30),
    dtype=st.sampled_from(DTYPES),
    limit=st.floats(1e-3, 1e3),
)
def test_clipping_keeps_the_direction(seed, power, dtype, limit):
    grads = some_grads(seed, 10.0**power, dtype)
    before = {name: g.astype(np.float64) for name, g in grads.items()}
    whole = math.sqrt(sum((g**2).sum() for g in before.values()))
    norm = clip_grad_norm(grads, limit)
    np.testing.assert_allclose(norm, whole, rtol=1e-12)
    for name, g in grads.items():
        assert g.dtype == dtype and g.shape == before[name].shape
        expected = before[name] * min(1, limit / whole)
        # one rounding of the factor and one of the product
        np.testing.assert_allclose(g, expected, rtol=3 * np.finfo(dtype).eps, atol=1e-44)


@pytest.mark.kernel
@pytest.mark.parametrize("size", [1e-200, 1e-160, 1e160, 1e200, 1e300])
def test_the_length_neither_overflows_nor_underflows(size):
    grads = {"a": np.full(4, size), "b": np.zeros((0, 3))}
    assert math.isclose(clip_grad_norm(grads, np.inf), 2 * size, rel_tol=1e-12)
    clip_grad_norm(grads, size / 1000)
    np.testing.assert_allclose(grads["a"], size / 2000, rtol=1e-12)


def test_float32_gradients_whose_squares_overflow_are_clipped():
    grads = {"a": np.full(4, 1e30, np.float32)}
    assert math.isclose(clip_grad_norm(grads, 1.0), 2e30, rel_tol=1e-6)
    np.testing.assert_allclose(grads["a"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_stay(bad):
    grads = {"a": np.array([1.0, bad]), "b": np.ones(3)}
    norm = clip_grad_norm(grads, 1.0)
    assert not np.isfinite(norm) and (grads["b"] == 1).all() and grads["a"][0] == 1


def test_clipping_of_other_layouts_and_of_nothing():
    a = np.asfortranarray(RNG.normal(size=(6, 5)))
    grads = {"turned": a, "slices": RNG.normal(size=(8, 9))[::2, 1::3]}
    whole = np.sqrt(sum((g**2).sum() for g in grads.values()))
    np.testing.assert_allclose(clip_grad_norm(grads, 0.5), whole, rtol=1e-12)
    np.testing.assert_allclose(clip_grad_norm(grads, 0.5), 0.5, rtol=1e-12)
    assert clip_grad_norm({}, 1.0) == 0 and clip_grad_norm({"a": np.zeros(3)}, 1.0) == 0


@pytest.mark.parametrize(
    "grads",
    [
        None,
        [np.ones(2)],
        {"a": [1.0]},
        {"a": None},
        {"a": 1.0},
        {"a": np.ones(2, np.int64)},
        {"a": np.ones(2, np.float16)},
    ],
)
def test_clipping_refuses_what_is_no_gradient(grads):
    with pytest.raises(TypeError, match="grads"):
        clip_grad_norm(grads, 1.0)


@pytest.mark.parametrize("max_norm", [-1, np.nan, -np.inf, "1", None, True])
def test_clipping_refuses_other_lengths(max_norm):
    grads = some_grads()
    with pytest.raises((ValueError, TypeError), match="max_norm"):
        clip_grad_norm(grads, max_norm)
    assert (grads["w"] == some_grads()["w"]).all()


def test_clipping_changes_nothing_if_one_cannot_be():
    grads = some_grads()
    grads["b"].flags.writeable = False
    with pytest.raises(ValueError, match="'b'"):
        clip_grad_norm(grads, 1e-3)
    assert (grads["w"] == some_grads()["w"]).all()


# --- batch normalisation


def torch_batch_norm(layer, dims):
    torch = pytest.importorskip("torch")
    kind = {
        2: torch.nn.BatchNorm1d,
        3: torch.nn.BatchNorm1d,
        4: torch.nn.BatchNorm2d,
        5: torch.nn.BatchNorm3d,
    }[dims]
    theirs = kind(
        layer.num_features, layer.eps, layer.momentum, bool(layer.params), bool(layer.buffers)
    ).double()
    theirs.load_state_dict({k: torch.tensor(v) for k, v in layer.state_dict().items()})
    return theirs.train(layer.training)


def compare(layer, theirs, x, atol=1e-10):
    "Forward and backward of one step of both."
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(x, requires_grad=True)
    answer, (y, cache) = theirs(tensor), layer.forward(x)
    grad = np.random.default_rng(9).normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    grad_x, grads = layer.backward(grad, cache)
    assert y.shape == x.shape and grad_x.shape == x.shape
    np.testing.assert_allclose(y, answer.detach().numpy(), rtol=0, atol=atol)
    np.testing.assert_allclose(grad_x, tensor.grad.numpy(), rtol=0, atol=atol)
    named = dict(theirs.named_parameters())
    assert grads.keys() == named.keys() == layer.params.keys()
    for name, g in grads.items():
        np.testing.assert_allclose(g, named[name].grad.numpy(), rtol=1e-10, atol=atol)
        named[name].grad = None
    state = layer.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, a in theirs.state_dict().items():
        np.testing.assert_allclose(state[name], a.numpy(), rtol=0, atol=atol)


@st.composite
def batches(draw):
    "A layer and three batches for it."
    dims = draw(st.integers(2, 5))
    channels, rng = draw(st.integers(1, 7)), np.random.default_rng(draw(st.integers(0, 2**20)))
    pixels = [draw(st.integers(1, 7)) for _ in range(dims - 2)]
    sizes = [draw(st.integers(2, 9)) for _ in range(3)]
    layer = BatchNorm(
        channels,
        draw(st.sampled_from([1e-5, 0.1, 1e-3])),
        draw(st.sampled_from([0.1, None, 0.0, 1.0, 0.37])),
        draw(st.booleans()),
        draw(st.booleans()),
        dtype=np.float64,
    )
    for a in layer.params.values():
        a[...] = rng.normal(size=a.shape)
    shift = rng.normal(size=(channels, *[1] * len(pixels)))
    return layer, [2 * rng.normal(size=(n, channels, *pixels)) + shift for n in sizes]


@settings(deadline=None, max_examples=60)
@given(case=batches(), order=st.permutations([True, True, False]))
def test_batch_norm_is_that_of_pytorch(case, order):
    layer, arrays = case
    theirs = torch_batch_norm(layer, arrays[0].ndim)
    for x, training in zip(arrays, order):
        layer.train(training)
        compare(layer, theirs.train(training), x)


@pytest.mark.parametrize(
    "shape",
    [(70, 3), (200, 5), (65, 2, 15), (3, 4, 16), (3, 2, 17), (2, 3, 40, 33), (129, 2, 3, 5)],
)
def test_batch_norm_on_both_sides_of_each_limit(shape):
    layer = BatchNorm(shape[1], dtype=np.float64)
    compare(layer, torch_batch_norm(layer, len(shape)), RNG.normal(3, 2, shape))


def plain(x, eps=1e-5):
    axes = (0, *range(2, x.ndim))
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def plain_grad(grad, x, eps=1e-5):
    axes, root = (0, *range(2, x.ndim)), np.sqrt(x.var((0, *range(2, x.ndim)), keepdims=True) + eps)
    normed = plain(x, eps)
    return (
        grad - grad.mean(axes, keepdims=True) - normed * (grad * normed).mean(axes, keepdims=True)
    ) / root


@pytest.mark.kernel
@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(2, 70),
    channels=st.integers(1, 5),
    pixels=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_batch_norm_is_its_definition(m, channels, pixels, dtype, seed):
    rng = np.random.default_rng(seed)
    x, grad = (rng.normal(1, 2, (m, channels, pixels)).astype(dtype) for _ in range(2))
    layer = BatchNorm(channels, dtype=dtype)
    y, cache = layer.forward(x)
    grad_x, grads = layer.backward(grad, cache)
    wide, wide_grad = x.astype(np.float64), grad.astype(np.float64)
    spread = wide.std((0, 2)).min() + 1e-3
    # sums of up to 1,400 numbers of a few units; two numbers may be near each other
    atol = 200 * np.finfo(dtype).eps / spread**2
    assert y.dtype == grad_x.dtype == grads["bias"].dtype == dtype
    np.testing.assert_allclose(y, plain(wide), rtol=0, atol=atol)
    np.testing.assert_allclose(grad_x, plain_grad(wide_grad, wide), rtol=0, atol=10 * atol / spread)
    for name, terms in (("bias", wide_grad), ("weight", wide_grad * plain(wide))):
        np.testing.assert_allclose(
            grads[name], terms.sum((0, 2)), rtol=0, atol=atol * abs(terms).sum((0, 2)).max()
        )


@pytest.mark.kernel
@pytest.mark.parametrize("shape", [(300, 4), (20, 3, 5), (20, 3, 100)])
@pytest.mark.parametrize("mean", [1e3, -1e5, 1e6])
def test_a_large_mean_does_not_destroy_the_variance(shape, mean):
    x = (RNG.normal(size=shape) + mean).astype(np.float32)  # its spread is now that of roundings
    exact = plain(x.astype(np.float64))
    y = BatchNorm(shape[1])(x)
    # the mean is a float32, and so half a unit in its last place off at most
    tolerance = np.spacing(np.float32(abs(mean))) + 1e-5
    assert abs(y - exact).max() <= tolerance
    rows = LayerNorm(shape[-1])(x)
    spread = x.astype(np.float64).std(-1, keepdims=True)
    right = (x - x.astype(np.float64).mean(-1, keepdims=True)) / np.sqrt(spread**2 + 1e-5)
    assert (abs(rows - right) <= (tolerance + 1e-4) / spread.clip(0.1)).all()


@pytest.mark.kernel
def test_an_odd_first_image_does_not_destroy_the_variance():
    x = RNG.normal(size=(64, 2, 50)).astype(np.float32)
    x[0] += 1e4
    layer = BatchNorm(2)
    np.testing.assert_allclose(layer(x), plain(x.astype(np.float64)), rtol=0, atol=1e-4)
    table = RNG.normal(size=(1000, 2)).astype(np.float32)
    table[:64] += 1e4
    np.testing.assert_allclose(layer(table), plain(table.astype(np.float64)), rtol=0, atol=1e-4)


@pytest.mark.kernel
def test_equal_numbers_have_no_variance():
    for shape in [(8, 2), (8, 2, 30)]:
        layer = BatchNorm(2)
        y, cache = layer.forward(np.full(shape, 0.1, np.float32))
        grad_x = layer.backward(np.ones(shape, np.float32), cache)[0]
        assert abs(y).max() < 1e-4 and np.isfinite(grad_x).all()


LAYOUTS = {
    "batch last": lambda a: np.ascontiguousarray(a.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2),
    "channels last": lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "Fortran": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=3)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
}


@pytest.mark.kernel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", [*LAYOUTS, None])
def test_batch_norm_is_the_same_in_any_layout(layout, grad_layout):
    x, grad = RNG.normal(size=(2, 6, 3, 4, 5))
    layer = BatchNorm(3, dtype=np.float64)
    y, cache = layer.forward(x)
    expected = [y, layer.backward(grad, cache)[0], *layer.backward(grad, cache)[1].values()]
    turned = LAYOUTS[grad_layout](grad) if grad_layout else grad
    y, cache = layer.forward(LAYOUTS[layout](x))
    got = [y, layer.backward(turned, cache)[0], *layer.backward(turned, cache)[1].values()]
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_evaluation_leaves_the_statistics_and_takes_one_example():
    layer = BatchNorm(3)
    layer(RNG.normal(size=(9, 3)).astype(np.float32))
    state = {k: v.copy() for k, v in layer.state_dict().items()}
    assert state["num_batches_tracked"] == 1 and state["num_batches_tracked"].dtype == np.int64
    layer.eval()
    assert layer(np.ones((1, 3), np.float32)).shape == (1, 3)
    assert all((v == state[k]).all() for k, v in layer.state_dict().items())


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_one_number_a_channel_is_refused_in_training(shape):
    torch = pytest.importorskip("torch")
    layer, x = BatchNorm(3), np.ones(shape, np.float32)
    with pytest.raises(ValueError, match="more than one"):
        layer(x)
    assert layer.buffers["num_batches_tracked"] == 0
    with pytest.raises(ValueError, match="more than 1 value"):
        torch.nn.functional.batch_norm(torch.tensor(x), None, None, training=True)
    with pytest.raises(ValueError, match="more than one"):
        BatchNorm(3, track_running_stats=False).eval()(x)
    assert layer(np.ones((1, 3, 2), np.float32)).shape == (1, 3, 2)


def test_the_gradient_in_evaluation_is_that_of_a_line():
    layer = BatchNorm(2, dtype=np.float64)
    layer.buffers["running_mean"][:], layer.buffers["running_var"][:] = [1, 2], [3, 4]
    layer.params["weight"][:] = [2, -1]
    layer.eval()
    x, grad = RNG.normal(size=(2, 1, 2))
    cache = layer.forward(x)[1]
    measured = numerical_grad(lambda v: (grad * layer(v)).sum(), x)
    np.testing.assert_allclose(layer.backward(grad, cache)[0], measured, rtol=0, atol=1e-8)


# --- layer normalisation


@st.composite
def rows(draw):
    "A layer, and an array for it."
    shape = tuple(draw(st.integers(1, 6)) for _ in range(draw(st.integers(1, 3))))
    lead = tuple(draw(st.integers(1, 70 if i == 0 else 3)) for i in range(draw(st.integers(0, 2))))
    layer = LayerNorm(
        shape,
        draw(st.sampled_from([1e-5, 0.1])),
        draw(st.booleans()),
        draw(st.booleans()),
        dtype=np.float64,
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    for a in layer.params.values():
        a[...] = rng.normal(size=a.shape)
    return layer, rng.normal(1, 2, (*lead, *shape))


@settings(deadline=None, max_examples=60)
@given(case=rows())
def test_layer_norm_is_that_of_pytorch(case):
    torch = pytest.importorskip("torch")
    layer, x = case
    theirs = torch.nn.LayerNorm(
        layer.normalized_shape,
        layer.eps,
        bool(layer.params),
        "bias" in layer.params,
        dtype=torch.float64,
    )
    theirs.load_state_dict({k: torch.tensor(v) for k, v in layer.state_dict().items()})
    compare(layer, theirs, x)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (65, 7), (130, 33), (2, 3, 8)])
def test_layer_norm_is_its_definition(shape, dtype):
    x, grad, weight = (RNG.normal(1, 2, s).astype(dtype) for s in (shape, shape, shape[-1:]))
    layer = LayerNorm(shape[-1], dtype=dtype)
    layer.params["weight"][:] = weight
    y, cache = layer.forward(x)
    grad_x, grads = layer.backward(grad, cache)
    wide, g = x.astype(np.float64).reshape(-1, shape[-1]), grad.astype(np.float64)
    g = g.reshape(wide.shape)
    normed = plain(wide.T).T
    atol = 200 * np.finfo(dtype).eps
    np.testing.assert_allclose(y, (normed * weight).reshape(shape), rtol=0, atol=20 * atol)
    np.testing.assert_allclose(grads["bias"], g.sum(0), rtol=0, atol=20 * atol)
    np.testing.assert_allclose(grads["weight"], (g * normed).sum(0), rtol=0, atol=100 * atol)
    right = plain_grad((g * weight).T, wide.T).T.reshape(shape)
    scale = 1 + abs(right).max() * (1 + 1 / (wide.std(1).min() + 1e-2))
    np.testing.assert_allclose(grad_x, right, rtol=0, atol=20 * atol * scale)
    assert y.dtype == grad_x.dtype == grads["weight"].dtype == dtype


def test_layer_norm_in_other_layouts_and_of_no_rows():
    layer, x, grad = LayerNorm((3, 4), dtype=np.float64), *RNG.normal(size=(2, 5, 3, 4))
    y, cache = layer.forward(x)
    again, other = layer.forward(np.asfortranarray(x))
    np.testing.assert_array_equal(again, y)
    for a, b in zip(layer.backward(grad, cache), layer.backward(np.asfortranarray(grad), other)):
        for one, two in zip(*(list(p.values()) if isinstance(p, dict) else [p] for p in (a, b))):
            np.testing.assert_array_equal(one, two)
    y, cache = layer.forward(np.zeros((0, 3, 4)))
    grad_x, grads = layer.backward(y, cache)
    assert y.shape == grad_x.shape == (0, 3, 4) and (grads["weight"] == 0).all()


# --- both: settings, bad input, state, threads


@pytest.mark.parametrize(
    "make,named",
    [
        (lambda: BatchNorm(0), "num_features"),
        (lambda: BatchNorm(2.0), "num_features"),
        (lambda: BatchNorm(True), "num_features"),
        (lambda: BatchNorm(3, eps=-1), "eps"),
        (lambda: BatchNorm(3, eps="a"), "eps"),
        (lambda: BatchNorm(3, eps=np.nan), "eps"),
        (lambda: BatchNorm(3, momentum=-0.1), "momentum"),
        (lambda: BatchNorm(3, momentum=1.1), "momentum"),
        (lambda: BatchNorm(3, momentum="x"), "momentum"),
        (lambda: BatchNorm(3, dtype=np.int64), "dtype"),
        (lambda: LayerNorm(0), "normalized_shape"),
        (lambda: LayerNorm((3, -1)), "normalized_shape"),
        (lambda: LayerNorm(()), "normalized_shape"),
        (lambda: LayerNorm("ab"), "normalized_shape"),
        (lambda: LayerNorm(None), "normalized_shape"),
        (lambda: LayerNorm(3, eps=-1), "eps"),
        (lambda: LayerNorm(3, dtype=np.float16), "dtype"),
    ],
)
def test_settings_that_do_not_fit(make, named):
    with pytest.raises((ValueError, TypeError), match=named):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        BatchNorm(3),
        BatchNorm(3, affine=False),
        LayerNorm(3),
        BatchNorm(3, affine=False, track_running_stats=False),
    ],
)
@pytest.mark.parametrize(
    "x",
    [
        np.ones(3, np.float32),
        np.ones((4, 2), np.float32),
        np.float32(1),
        np.ones((0, 2), np.float32),
        np.ones((4, 3), np.complex64),
        np.array([["a"] * 3] * 4),
        np.ones((4, 2, 4), np.float32),
        [[1.0, 2.0], [3.0]],
        None,
    ],
    ids=lambda x: str(np.shape(x)) if hasattr(x, "shape") else str(x),
)
def test_inputs_that_do_not_fit(layer, x):
    if isinstance(layer, LayerNorm) and getattr(x, "shape", None) == (3,):
        assert layer(x).shape == (3,)
        return
    with pytest.raises((ValueError, TypeError), match="x"):
        layer.forward(x)


@pytest.mark.parametrize("layer", [BatchNorm(3), LayerNorm(3)])
def test_dtypes_and_gradients_that_do_not_fit(layer):
    with pytest.raises(TypeError, match="float32"):
        layer.forward(np.ones((4, 3)))
    _, cache = layer.forward(RNG.normal(size=(4, 3)).astype(np.float32))
    for grad in (np.ones((4, 3)), np.ones((3, 4), np.float32), np.ones(4, np.float32)):
        with pytest.raises(ValueError, match="grad"):
            layer.backward(grad, cache)


@pytest.mark.parametrize("layer", [BatchNorm(3), LayerNorm(3)])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(
    "new", [np.ones(2, np.float32), np.ones(4, np.float32), np.ones(3), np.ones((3, 3), np.float32)]
)
def test_replaced_parameters_are_refused_before_a_kernel_reads_them(layer, name, new):
    layer, x = copy.deepcopy(layer), np.ones((4, 3), np.float32)
    _, cache = layer.forward(x)
    layer.params[name] = new
    with pytest.raises((ValueError, TypeError)):
        layer.forward(x)
    with pytest.raises((ValueError, TypeError)):
        layer.backward(x, cache)


@pytest.mark.parametrize(
    "layer", [BatchNorm(3), LayerNorm(3), BatchNorm(3, affine=False), LayerNorm((2, 3), bias=False)]
)
def test_layers_are_copied_and_pickled_whole(layer):
    x = RNG.normal(size=(4, 3) if isinstance(layer, BatchNorm) else (4, 2, 3)).astype(np.float32)
    x = x if layer.__class__ is BatchNorm or len(layer.normalized_shape) > 1 else x[:, 0]
    layer.forward(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.state_dict().keys() == layer.state_dict().keys()
        assert (twin.eval()(x) == layer.eval()(x)).all()
        assert repr(twin) == repr(layer)
        for name, a in twin.state_dict().items():
            assert (a == layer.state_dict()[name]).all() and a is not layer.state_dict()[name]
        layer.train()


def torch_twin():
    torch = pytest.importorskip("torch")
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 5),
        torch.nn.LayerNorm(5),
    )


def our_twin():
    from dlnotes.cnn import Flatten

    return Sequential(
        Conv2d(2, 4, 3, rng=0), BatchNorm(4), ReLU(), Flatten(), Linear(64, 5, rng=0), LayerNorm(5)
    )


def test_weights_go_to_pytorch_and_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    ours, theirs = our_twin(), torch_twin()
    x = RNG.normal(2, 3, (8, 2, 6, 6)).astype(np.float32)
    ours.forward(x)  # statistics that are not those of the beginning
    save(ours, tmp_path / "a.safetensors")
    theirs.load_state_dict(load_file(tmp_path / "a.safetensors"))
    for training in (False, True):
        ours.train(training), theirs.train(training)
        np.testing.assert_allclose(ours(x), theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)
    save_file(theirs.state_dict(), tmp_path / "b.safetensors")
    fresh = our_twin()
    load(fresh, tmp_path / "b.safetensors")
    np.testing.assert_allclose(
        fresh.eval()(x), theirs.eval()(torch.tensor(x)).detach().numpy(), atol=1e-5
    )
    assert fresh.state_dict()["1.num_batches_tracked"] == 2


def test_states_that_do_not_fit_are_refused():
    layer = BatchNorm(3)
    state = {k: v.copy() for k, v in layer.state_dict().items()}
    for name in state:
        with pytest.raises(ValueError, match="state"):
            layer.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="running_var"):
        layer.load_state_dict({**state, "running_var": np.ones(4)})


def test_a_network_trains_stops_and_is_looked_at():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 2, 6, 6)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(int)
    model, loss = our_twin(), CrossEntropyLoss()
    seen = []
    history = fit(
        model,
        loss,
        SGD(model.params, 0.05),
        x,
        y,
        epochs=4,
        validation=(x[:32], y[:32]),
        patience=2,
        rng=0,
        progress=False,
        max_norm=1.0,
        callback=lambda h: seen.append(int(model[1].buffers["num_batches_tracked"])),
    )
    assert seen == [3, 6, 9, 12][: len(history.epochs)] and not model.training
    assert history.val_loss[-1] < history.val_loss[0]
    assert not history.stopped_early or (
        model[1].buffers["num_batches_tracked"] == 3 * history.best_epoch
    )
    assert evaluate(model, loss, x, y) == evaluate(model, loss, x, y)
    state = {k: v.copy() for k, v in model.state_dict().items()}
    assert "BatchNorm(4" in repr(summary(model, (2, 6, 6)))
    assert all((v == state[k]).all() for k, v in model.state_dict().items())


def test_gradients_through_both_are_those_measured():
    model = Sequential(Conv2d(1, 2, 3, rng=0), BatchNorm(2), ReLU(), LayerNorm((2, 2, 2)))

    class Sum:
        reduction = "sum"

        def forward(self, answer, target):
            return float((answer * target).sum()), np.asarray(target, answer.dtype)

        def __call__(self, answer, target):
            return self.forward(answer, target)[0]

        def backward(self, cache):
            return cache

    x, target = RNG.normal(size=(3, 1, 4, 4)), RNG.normal(size=(3, 2, 2, 2))
    assert check_gradients(model, Sum(), x, target) < 1e-5


@pytest.fixture
def threads():
    before = num_threads()
    yield set_num_threads
    set_num_threads(before)


@pytest.mark.parametrize(
    "make,shape",
    [
        (lambda: BatchNorm(40), (700, 40, 40)),
        (lambda: BatchNorm(300), (5000, 300)),
        (lambda: LayerNorm(300), (4001, 300)),
    ],
)
def test_any_number_of_threads_gives_the_same(make, shape, threads):
    x, grad = (RNG.normal(size=shape).astype(np.float32) for _ in range(2))
    results = []
    for n in (1, 2, 3):
        threads(n)
        layer = make()
        y, cache = layer.forward(x)
        grad_x, grads = layer.backward(grad, cache)
        results.append([y, grad_x, *grads.values()])
    for result in results[1:]:
        for one, two in zip(results[0], result):
            np.testing.assert_array_equal(one, two)


def test_several_threads_may_share_a_layer():
    layers = [BatchNorm(6).eval(), LayerNorm(6)]
    x = RNG.normal(size=(8, 50, 6)).astype(np.float32)
    grad = RNG.normal(size=(50, 6)).astype(np.float32)
    for layer in layers:

        def both(i, layer=layer):
            y, cache = layer.forward(x[i])
            return [y, layer.backward(grad, cache)[0]]

        expected = [both(i) for i in range(8)]
        with ThreadPoolExecutor(4) as pool:
            for k, got in enumerate(pool.map(both, [*range(8)] * 10)):
                assert all((a == b).all() for a, b in zip(got, expected[k % 8]))


@pytest.mark.parametrize(
    "name, call",
    [
        ("affine", lambda: BatchNorm(3, affine="no")),
        ("track_running_stats", lambda: BatchNorm(3, track_running_stats=1)),
        ("elementwise_affine", lambda: LayerNorm(3, elementwise_affine=None)),
        ("bias", lambda: LayerNorm(3, bias=0)),
        ("mode", lambda: kaiming_normal((3, 3), mode=["x"])),
        ("nonlinearity", lambda: kaiming_normal((3, 3), nonlinearity={})),
        ("max_norm", lambda: clip_grad_norm({}, np.array([1.0, 2.0]))),
        ("max_norm", lambda: clip_grad_norm({}, "inf")),
    ],
)
def test_settings_of_another_kind_are_refused_by_name(name, call):
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        call()


def test_running_statistics_of_another_shape_are_refused():
    layer, x = BatchNorm(3), np.random.default_rng(0).normal(size=(5, 3)).astype("f4")
    for name in ("running_mean", "running_var"):
        kept, layer.buffers[name] = layer.buffers[name], np.zeros(1, "f4")
        with pytest.raises(ValueError, match=f"^{name}: expected float32 of shape"):
            layer(x)
        layer.buffers[name] = kept
