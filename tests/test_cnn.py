"""Convolution and pooling beyond their chapter: PyTorch, settings, bad input, threads, seeds."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.cnn import (
    AvgPool2d,
    Conv2d,
    Flatten,
    MaxPool2d,
    avg_pool2d,
    avg_pool2d_backward,
    conv2d,
    conv2d_backward,
    conv_output_size,
    max_pool2d,
    max_pool2d_backward,
)
from dlnotes.core.checking import check_gradients, numerical_grad
from dlnotes.core.layers import Sequential, summary
from dlnotes.mlp import CrossEntropyLoss, Linear, ReLU

DTYPES = [np.float32, np.float64]
# what PyTorch says of the zeros that it adds on one side
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def plain_conv(x, weight, bias, stride, zeros, dilation, groups):
    "The definition, window by window, in float64; `zeros` before and after each axis."
    x, weight = (np.asarray(a, np.float64) for a in (x, weight))
    x = np.pad(x, ((0, 0), (0, 0), *zeros))
    (o, c, *kernel), per_group = weight.shape, len(weight) // groups
    out = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation)
    ]
    z = np.empty((len(x), o, *out))
    for k, i, j in np.ndindex(o, *out):
        rows, columns = (
            slice(s * p, s * p + d * (f - 1) + 1, d)
            for s, p, d, f in zip(stride, (i, j), dilation, kernel)
        )
        first = k // per_group * c
        z[:, k, i, j] = bias[k] + (x[:, first : first + c, rows, columns] * weight[k]).sum(
            (1, 2, 3)
        )
    return z


def plain_conv_backward(grad, x, weight, stride, zeros, dilation, groups):
    "The definition's gradients: it is linear in each argument, so a window gets its share back."
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), *zeros))
    dx, dw, c, per_group = (
        np.zeros_like(padded),
        np.zeros(weight.shape),
        weight.shape[1],
        len(weight) // groups,
    )
    for k, i, j in np.ndindex(grad.shape[1:]):
        rows, columns = (
            slice(s * p, s * p + d * (f - 1) + 1, d)
            for s, p, d, f in zip(stride, (i, j), dilation, weight.shape[2:])
        )
        window = np.s_[:, k // per_group * c : k // per_group * c + c, rows, columns]
        g = np.asarray(grad[:, k, i, j], np.float64)[:, None, None, None]
        dw[k] += (g * padded[window]).sum(axis=0)
        dx[window] += g * weight[k]
    (top, _), (left, _) = zeros
    return dx[:, :, top : top + x.shape[2], left : left + x.shape[3]], dw, grad.sum((0, 2, 3))


@st.composite
def convolutions(draw, largest=12):
    "Arrays and settings that fit each other."
    groups = draw(st.integers(1, 3))
    n, c, o = (draw(st.integers(1, high)) for high in (5, 4, 5))
    pairs = {
        name: tuple(draw(st.integers(low, high)) for _ in range(2))
        for name, low, high in (
            ("kernel", 1, 4),
            ("stride", 1, 3),
            ("dilation", 1, 3),
            ("padding", 0, 3),
        )
    }
    if draw(st.booleans()) and pairs["stride"] == (1, 1):
        pairs["padding"] = draw(st.sampled_from(["same", "valid"]))
    zeros = (0, 0) if isinstance(pairs["padding"], str) else pairs["padding"]
    least = [
        max(1, d * (k - 1) + 1 - 2 * p)
        for k, d, p in zip(pairs["kernel"], pairs["dilation"], zeros)
    ]
    size = [draw(st.integers(low, low + largest)) for low in least]
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    x = rng.normal(size=(n, c * groups, *size))
    weight = rng.normal(size=(o * groups, c, *pairs.pop("kernel")))
    bias = draw(st.sampled_from([None, rng.normal(size=o * groups)]))
    return x, weight, bias, {**pairs, "groups": groups}


def zeros_of(x, weight, stride, padding, dilation, groups):
    "Zeros before and after each axis, as PyTorch documents them."
    if padding == "valid":
        return ((0, 0), (0, 0))
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in padding)


# --- convolution


@settings(deadline=None, max_examples=150)
@given(case=convolutions())
def test_convolution_is_that_of_pytorch(case):
    torch = pytest.importorskip("torch")
    x, weight, bias, setting = case
    tensors = [
        None if a is None else torch.tensor(a, requires_grad=True) for a in (x, weight, bias)
    ]
    theirs = torch.nn.functional.conv2d(*tensors, **setting)
    ours = conv2d(x, weight, bias, **setting)
    assert ours.shape == theirs.shape and ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-10)
    grad = np.random.default_rng(0).normal(size=ours.shape)
    theirs.backward(torch.tensor(grad))
    for mine, tensor in zip(conv2d_backward(grad, x, weight, **setting), tensors):
        if tensor is not None:
            np.testing.assert_allclose(mine, tensor.grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.kernel
@settings(deadline=None, max_examples=150)
@given(case=convolutions(largest=6), dtype=st.sampled_from(DTYPES))
def test_convolution_is_its_definition(case, dtype):
    x, weight, bias, setting = case
    x, weight = x.astype(dtype), weight.astype(dtype)
    zeros = zeros_of(x, weight, **setting)
    rest = (setting["stride"], zeros, setting["dilation"], setting["groups"])
    b = np.zeros(len(weight)) if bias is None else bias
    expected = plain_conv(x, weight, b, *rest)
    got = conv2d(x, weight, bias, **setting)
    grad = np.random.default_rng(1).normal(size=expected.shape).astype(dtype)
    pairs = [
        (got, expected),
        *zip(
            conv2d_backward(grad, x, weight, **setting), plain_conv_backward(grad, x, weight, *rest)
        ),
    ]
    for mine, right in pairs:
        # sums of at most about a thousand products of a few units: 1e4 roundings at the most
        assert mine.dtype == dtype and mine.shape == right.shape
        np.testing.assert_allclose(mine, right, rtol=0, atol=1e4 * np.finfo(dtype).eps)


NOTES = [
    (64, 3, 32, 16),
    (64, 16, 16, 32),
    (32, 3, 64, 32),
    (32, 32, 32, 64),
    (1, 3, 32, 16),
    (1, 16, 16, 32),
    (7, 3, 31, 9),
    (1, 1, 3, 1),
    (1, 3, 64, 32),
    (33, 5, 9, 17),
]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("n", "c", "size", "o"), NOTES)
def test_float32_is_as_near_as_pytorchs_to_float64(n, c, size, o, padding):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(n + c)
    x, w = rng.normal(size=(n, c, size, size)), rng.normal(size=(o, c, 3, 3))
    b = rng.normal(size=o)
    exact = conv2d(x, w, b, padding=padding)
    grad = rng.normal(size=exact.shape)
    exact = [exact, *conv2d_backward(grad, x, w, padding=padding)]
    x, w, b, grad = (a.astype(np.float32) for a in (x, w, b, grad))
    ours = [conv2d(x, w, b, padding=padding), *conv2d_backward(grad, x, w, padding=padding)]
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    answer = torch.nn.functional.conv2d(*tensors, padding=padding)
    answer.backward(torch.tensor(grad))
    theirs = [answer.detach(), *(t.grad for t in tensors)]
    for mine, other, right in zip(ours, theirs, exact):
        # rounding of the inputs alone moves the sums as much: compare with the error of PyTorch
        error = abs(mine - right).max()
        assert error < 4 * abs(other.numpy() - right).max() + 1e-6 * abs(right).max()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((3, 2, 5, 4), (7, 2, 5, 4)),
        ((5, 3, 4, 4), (2, 3, 1, 1)),
        ((1, 9, 6, 3), (1, 9, 3, 3)),
        ((13, 1, 3, 7), (11, 1, 2, 2)),
    ],
)
def test_shapes_at_the_limits(shape, weight, dtype):
    rng = np.random.default_rng(0)
    x, w = rng.integers(-4, 5, shape).astype(dtype), rng.integers(-4, 5, weight).astype(dtype)
    plain = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    expected = plain_conv(x, w, np.zeros(len(w)), *plain)
    assert (conv2d(x, w) == expected).all()  # whole numbers: exact in any order
    grad = rng.integers(-4, 5, expected.shape).astype(dtype)
    for mine, right in zip(conv2d_backward(grad, x, w), plain_conv_backward(grad, x, w, *plain)):
        assert (mine == right).all()


@pytest.mark.kernel
@pytest.mark.parametrize("inputs", range(1, 18))
@pytest.mark.parametrize("outputs", [1, 2, 8])
def test_one_by_one_weights_of_any_number_of_channels(inputs, outputs):
    "Turned for the input's gradient, such weights lie column by column: tiles read rows."
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (3, inputs, 4, 4)) / 1
    w = rng.integers(-4, 5, (outputs, inputs, 1, 1)) / 1
    grad = rng.integers(-4, 5, (3, outputs, 4, 4)) / 1
    dx, dw, _ = conv2d_backward(grad, x, w)
    assert np.array_equal(conv2d(x, w), np.einsum("mcij,oc->moij", x, w[:, :, 0, 0]))
    assert np.array_equal(dx, np.einsum("moij,oc->mcij", grad, w[:, :, 0, 0]))
    assert np.array_equal(dw[:, :, 0, 0], np.einsum("moij,mcij->oc", grad, x))


def test_each_image_is_treated_alike_in_any_batch():
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (70, 3, 17, 15)).astype(np.float32)
    w = rng.integers(-9, 10, (12, 3, 3, 3)).astype(np.float32)
    whole = conv2d(x, w, padding=1)
    for n in (1, 2, 7, 31, 64):
        assert (conv2d(x[:n], w, padding=1) == whole[:n]).all()
    assert (max_pool2d(x, 3)[5:6] == max_pool2d(x[5:6], 3)).all()


def test_arguments_are_not_changed_and_layouts_do_not_matter():
    rng = np.random.default_rng(0)
    x, w, b = rng.normal(size=(3, 4, 6, 5)), rng.normal(size=(2, 4, 3, 3)), rng.normal(size=2)
    kept = [a.copy() for a in (x, w, b)]
    z = conv2d(x, w, b, padding=1)
    g = rng.normal(size=z.shape)
    grads = conv2d_backward(g, x, w, padding=1)
    turned = [np.asfortranarray(a) for a in (x, w, g)]
    for a in turned:
        a.flags.writeable = False
    assert (conv2d(*turned[:2], b, padding=1) == z).all()
    for one, other in zip(grads, conv2d_backward(turned[2], *turned[:2], padding=1)):
        assert (one == other).all()
    assert all((a == before).all() for a, before in zip((x, w, b), kept))
    assert conv2d(x.tolist(), w.tolist()).dtype == np.float64
    assert conv2d(np.ones((1, 1, 3, 3), int), np.ones((1, 1, 3, 3), int)).item() == 9


# --- pooling


@st.composite
def poolings(draw):
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(2))
    stride = draw(st.sampled_from([None, tuple(draw(st.integers(1, 4)) for _ in range(2))]))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [draw(st.integers(max(1, k - 2 * p), 13)) for k, p in zip(kernel, padding)]
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), *size)
    x = draw(st.sampled_from([rng.normal(size=shape), rng.integers(0, 3, shape) * 1.0]))
    return x, (kernel, stride, padding)


PAIRS = {
    "max_pool2d": (max_pool2d, max_pool2d_backward, MaxPool2d),
    "avg_pool2d": (avg_pool2d, avg_pool2d_backward, AvgPool2d),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
@settings(deadline=None, max_examples=100)
@given(case=poolings())
def test_pooling_is_that_of_pytorch_ties_included(name, dtype, case):
    torch = pytest.importorskip("torch")
    x, setting = case
    x, (pool, backward, layer) = x.astype(dtype), PAIRS[name]
    tensor = torch.tensor(x, requires_grad=True)
    theirs = getattr(torch.nn.functional, name)(tensor, *setting)
    ours = pool(x, *setting)
    tolerance = dict(rtol=0, atol=1e-10 if dtype == np.float64 else 1e-5)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, theirs.detach().numpy(), **tolerance)
    grad = np.random.default_rng(0).normal(size=ours.shape).astype(dtype)
    theirs.backward(torch.tensor(grad))
    np.testing.assert_allclose(backward(grad, x, *setting), tensor.grad.numpy(), **tolerance)
    z, cache = layer(*setting).forward(x)
    assert (z == ours).all()
    assert (layer(*setting).backward(grad, cache)[0] == backward(grad, x, *setting)).all()


@pytest.mark.kernel
@settings(deadline=None, max_examples=150)
@given(case=poolings(), dtype=st.sampled_from(DTYPES))
def test_pooling_is_its_definition(case, dtype):
    x, (kernel, stride, padding) = case
    x, stride = x.astype(dtype), stride or kernel
    size = x.shape[2:]
    z, mean = (pool(x, kernel, stride, padding) for pool in (max_pool2d, avg_pool2d))
    grad = np.random.default_rng(0).integers(-9, 10, z.shape).astype(dtype)
    by_max, by_mean = np.zeros_like(x), np.zeros(x.shape)
    for i, j in np.ndindex(z.shape[2:]):
        rows, columns = (
            slice(max(p * s - before, 0), min(p * s - before + k, n))
            for p, s, before, k, n in zip((i, j), stride, padding, kernel, size)
        )
        window = x[:, :, rows, columns]
        assert (z[:, :, i, j] == window.max(axis=(2, 3))).all()
        area = kernel[0] * kernel[1]
        np.testing.assert_allclose(
            mean[:, :, i, j], window.sum(axis=(2, 3)) / area, rtol=0, atol=1e-5
        )
        by_mean[:, :, rows, columns] += grad[:, :, i, j, None, None] / area
        for m, c in np.ndindex(x.shape[:2]):
            r, t = np.unravel_index(window[m, c].argmax(), window.shape[2:])  # the first
            by_max[m, c, rows.start + r, columns.start + t] += grad[m, c, i, j]
    assert (max_pool2d_backward(grad, x, kernel, stride, padding) == by_max).all()
    np.testing.assert_allclose(
        avg_pool2d_backward(grad, x, kernel, stride, padding), by_mean, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "setting"), [((4, 4), (2,)), ((5, 7), (2,)), ((7, 6), (3, 2, 1)), ((40, 40), (2,))]
)
def test_a_nan_comes_through_and_infinities_are_numbers(size, setting, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.choice([np.nan, np.inf, -np.inf, 1, 2], (1, 1, *size)).astype(dtype)
        z, cache = MaxPool2d(*setting).forward(x)
        tensor = torch.tensor(x, requires_grad=True)
        theirs = torch.nn.functional.max_pool2d(tensor, *setting)
        np.testing.assert_array_equal(z, theirs.detach().numpy())
        grad = MaxPool2d(*setting).backward(np.ones_like(z), cache)[0]
        assert grad.sum() == z.size  # whichever pixel was chosen, none is lost


def test_large_batches_are_shared_and_the_same():
    rng = np.random.default_rng(0)
    for size in (32, 31):
        x = rng.normal(size=(40, 16, size, size)).astype(np.float32)
        for pool, backward, _ in PAIRS.values():
            for setting in ((2,), (3, 2, 1)):
                z = pool(x, *setting)
                grad = backward(z, x, *setting)
                assert (pool(x[7:8], *setting) == z[7:8]).all()
                assert (backward(z[7:8], x[7:8], *setting) == grad[7:8]).all()


# --- layers


@settings(deadline=None, max_examples=40)
@given(case=convolutions(), dtype=st.sampled_from(DTYPES))
def test_the_layer_is_the_function_and_pytorchs_layer(case, dtype):
    torch = pytest.importorskip("torch")
    x, weight, bias, setting = case
    groups = setting["groups"]
    arguments = (weight.shape[1] * groups, len(weight), weight.shape[2:])
    layer = Conv2d(*arguments, **setting, bias=bias is not None, rng=0, dtype=dtype)
    state = {"weight": weight} | ({} if bias is None else {"bias": bias})
    layer.load_state_dict(state)
    theirs = torch.nn.Conv2d(*arguments, **setting, bias=bias is not None).double()
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in layer.state_dict().items()
    }
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    x = x.astype(dtype)
    z, cache = layer.forward(x)
    tolerance = dict(rtol=0, atol=1e-10 if dtype == np.float64 else 1e-3)
    np.testing.assert_allclose(z, theirs(torch.tensor(x).double()).detach().numpy(), **tolerance)
    grad_x, grads = layer.backward(z, cache)
    none, alone = layer.backward(z, cache, input_grad=False)
    assert grads.keys() == layer.params.keys() and none is None and z.dtype == grad_x.dtype == dtype
    assert all((alone[name] == grads[name]).all() for name in grads)
    for mine, right in zip(
        [grad_x, *grads.values()], conv2d_backward(z, x, *(layer.params["weight"],), **setting)
    ):
        assert mine.dtype == dtype and (mine == right).all()


def test_first_weights_are_pytorchs_in_width_and_follow_the_seed():
    one, other = (Conv2d(4, 500, 3, groups=2, rng=7) for _ in range(2))
    width = 1 / np.sqrt(2 * 9)
    for name, p in one.params.items():
        assert (p == other.params[name]).all() and p.dtype == np.float32
        assert 0.95 * width < abs(p).max() <= width and abs(p.mean()) < 0.1 * width
    assert not (Conv2d(4, 500, 3, groups=2, rng=8).params["weight"] == one.params["weight"]).all()


@pytest.mark.kernel
def test_gradients_of_a_whole_network():
    rng = np.random.default_rng(0)
    model = Sequential(
        Conv2d(2, 4, 3, stride=2, padding=1, rng=rng),
        ReLU(),
        MaxPool2d(3, 2, 1),
        Conv2d(4, 6, 2, groups=2, padding="same", rng=rng),
        ReLU(),
        AvgPool2d(2),
        Flatten(),
        Linear(6, 3, rng=rng),
    )
    x, y = rng.normal(size=(2, 2, 10, 8)), [0, 2]
    assert check_gradients(model, CrossEntropyLoss(), x, y) < 1e-6


def test_layers_tell_what_they_are_and_can_be_copied():
    told = {
        "Conv2d(3, 16, 3)": Conv2d(3, 16, 3),
        "Conv2d(4, 2, (3, 1), stride=(2, 2), padding='same', groups=2, bias=False)": None,
        "MaxPool2d(2)": MaxPool2d(2),
        "AvgPool2d(3, stride=(2, 2), padding=(1, 1))": AvgPool2d(3, 2, 1),
        "Flatten()": Flatten(),
    }
    with pytest.raises(ValueError, match="padding: expected numbers for stride"):
        Conv2d(4, 2, (3, 1), 2, "same", groups=2, bias=False)
    assert all(repr(layer) == text for text, layer in told.items() if layer)
    x = np.ones((2, 3, 8, 8), np.float32)
    for twin in (
        copy.deepcopy(told["Conv2d(3, 16, 3)"]),
        pickle.loads(pickle.dumps(told["Conv2d(3, 16, 3)"])),
    ):
        assert (twin(x) == told["Conv2d(3, 16, 3)"](x)).all()
    assert summary(told["MaxPool2d(2)"], (3, 8, 8)).rows[0][2] == (3, 4, 4)


def test_layers_are_safe_from_several_threads():
    rng = np.random.default_rng(0)
    model = Sequential(
        Conv2d(3, 8, 3, padding=1, rng=0),
        ReLU(),
        MaxPool2d(2),
        Conv2d(8, 8, 3, rng=1),
        AvgPool2d(2),
        Flatten(),
    )
    batches = [rng.normal(size=(n, 3, 18, 18)).astype(np.float32) for n in (1, 5, 32, 64)] * 3

    def both_ways(x):
        z, cache = model.forward(x)
        grad_x, grads = model.backward(np.ones_like(z), cache)
        return [z, grad_x, *grads.values()]

    alone = [both_ways(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(both_ways, batches))
    for one, other in zip(alone, together):
        assert all((a == b).all() for a, b in zip(one, other))


def test_flatten_there_and_back():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    row, cache = Flatten().forward(x)
    assert (row == np.arange(24).reshape(2, 12)).all()
    assert (Flatten().backward(row, cache)[0] == x).all()
    with pytest.raises(ValueError, match="x: expected shape"):
        Flatten()(np.ones(3))


# --- bad input

X, W = np.ones((2, 4, 6, 5)), np.ones((6, 4, 3, 2))
WRONG_CONVOLUTIONS = [
    (dict(x=np.ones((4, 6, 5))), ValueError, "x: "),
    (dict(x=np.ones((0, 4, 6, 5))), ValueError, "x: "),
    (dict(x=np.ones((2, 4, 0, 5))), ValueError, "x: "),
    (dict(x=X[:, :3]), ValueError, "x: "),
    (dict(x=X * np.nan), ValueError, "x: "),
    (dict(x="text"), TypeError, "x: "),
    (dict(x=X.astype(complex)), TypeError, "x: "),
    (dict(x=None), TypeError, "x: "),
    (dict(x=X[:, :, :2]), ValueError, "x: expected at least 3 pixels"),
    (dict(x=X, dilation=(1, 5)), ValueError, "x: expected at least 6 pixels"),
    (dict(weight=W[0]), ValueError, "weight: "),
    (dict(weight=W[:0]), ValueError, "weight: "),
    (dict(weight=W * np.inf), ValueError, "weight: "),
    (dict(weight=[["a"]]), TypeError, "weight: "),
    (dict(bias=np.ones(5)), ValueError, "bias: "),
    (dict(bias=np.full(6, np.nan)), ValueError, "bias: "),
    (dict(bias=1.0), ValueError, "bias: "),
    (dict(stride=0), ValueError, "stride: "),
    (dict(stride=-1), ValueError, "stride: "),
    (dict(stride=1.0), TypeError, "stride: "),
    (dict(stride=(1, 2, 3)), TypeError, "stride: "),
    (dict(stride=True), TypeError, "stride: "),
    (dict(stride=(1, None)), TypeError, "stride: "),
    (dict(stride=2**70), ValueError, "stride: "),
    (dict(padding=-1), ValueError, "padding: "),
    (dict(padding="full"), ValueError, "padding: "),
    (dict(padding=0.5), TypeError, "padding: "),
    (dict(padding="same", stride=2), ValueError, "padding: "),
    (dict(padding="same", stride=(1, 2)), ValueError, "padding: "),
    (dict(dilation=0), ValueError, "dilation: "),
    (dict(dilation="2"), TypeError, "dilation: "),
    (dict(groups=0), ValueError, "groups: "),
    (dict(groups=4), ValueError, "groups: "),
    (dict(groups=2), ValueError, "x: "),
    (dict(groups=1.0), TypeError, "groups: "),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG_CONVOLUTIONS)
def test_a_convolution_that_cannot_be_is_refused_by_name(change, error, message):
    good = dict(x=X, weight=W)
    with pytest.raises(error, match=f"^{message}"):
        conv2d(**(good | change))
    if "bias" not in change:
        with pytest.raises(error, match=f"^{message}"):
            conv2d_backward(grad=np.ones((2, 6, 4, 4)), **(good | change))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=X[0]), ValueError, "x: "),
        (dict(x=X[:0]), ValueError, "x: "),
        (dict(x=X * np.nan), ValueError, "x: "),
        (dict(x=["a"]), TypeError, "x: "),
        (dict(kernel_size=0), ValueError, "kernel_size: "),
        (dict(kernel_size=7), ValueError, "x: expected at least 7 pixels"),
        (dict(kernel_size=2.0), TypeError, "kernel_size: "),
        (dict(stride=0), ValueError, "stride: "),
        (dict(kernel_size=None), TypeError, "kernel_size: "),
        (dict(stride="1"), TypeError, "stride: "),
        (dict(padding=2), ValueError, "padding: expected at most half"),
        (dict(padding=-1), ValueError, "padding: "),
        (dict(padding="same"), TypeError, "padding: "),
    ],
)
def test_a_pooling_that_cannot_be_is_refused_by_name(name, change, error, message):
    pool, backward, layer = PAIRS[name]
    good = dict(x=X, kernel_size=2) | change
    with pytest.raises(error, match=f"^{message}"):
        pool(**good)
    with pytest.raises(error, match=f"^{message}"):
        backward(grad=np.ones((2, 4, 3, 2)), **good)
    if "x" not in change and "pixels" not in message:
        good.pop("x")
        with pytest.raises(error, match=f"^{message}"):
            layer(**good)


def test_gradients_of_another_shape_or_dtype_are_refused():
    for wrong in (np.ones((2, 6, 4, 5)), np.ones((6, 4, 4)), np.full((2, 6, 4, 4), np.nan)):
        with pytest.raises(ValueError, match="^grad: "):
            conv2d_backward(wrong, X, W)
    for layer in (Conv2d(4, 6, 3), MaxPool2d(2), AvgPool2d(3, 1)):
        x = X.astype(np.float32)
        _, cache = layer.forward(x)
        with pytest.raises(ValueError, match="^grad: "):
            layer.backward(np.ones((2, 9, 9, 9), np.float32), cache)
    _, cache = Conv2d(4, 6, 3).forward(X.astype(np.float32))
    with pytest.raises(TypeError, match="^grad: expected dtype float32"):
        Conv2d(4, 6, 3).backward(np.ones((2, 6, 4, 3)), cache)
    with pytest.raises(TypeError, match="^x: expected dtype float32"):
        Conv2d(4, 6, 3)(X)


@pytest.mark.parametrize(
    "change",
    [
        dict(in_channels=0),
        dict(out_channels=-1),
        dict(kernel_size=0),
        dict(kernel_size=(1, 2, 3)),
        dict(stride=0),
        dict(padding=-1),
        dict(padding="full"),
        dict(padding="same", stride=2),
        dict(dilation=0),
        dict(groups=3),
        dict(groups=0),
        dict(in_channels=2.0),
        dict(dtype=int),
        dict(rng="seed"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(change):
    with pytest.raises((TypeError, ValueError), match="expected"):
        Conv2d(**(dict(in_channels=4, out_channels=6, kernel_size=3) | change))


@settings(deadline=None, max_examples=200)
@given(
    change=st.dictionaries(
        st.sampled_from(["stride", "padding", "dilation", "groups", "kernel"]),
        st.one_of(
            st.integers(-3, 9),
            st.none(),
            st.floats(),
            st.text(max_size=4),
            st.booleans(),
            st.tuples(st.integers(-2, 5), st.integers(-2, 5)),
            st.lists(st.integers(0, 4)),
        ),
    )
)
def test_settings_of_any_kind_are_used_or_refused(change):
    kernel = change.pop("kernel", 2)
    for f in (
        lambda: conv2d(X, W, **change),
        lambda: max_pool2d(X, kernel, change.get("stride"), change.get("padding", 0)),
        lambda: avg_pool2d(X, kernel, change.get("stride"), change.get("padding", 0)),
        lambda: Conv2d(4, 6, kernel, **change)(X.astype(np.float32)),
    ):
        try:
            answer = f()
        except (TypeError, ValueError) as e:
            assert "expected" in str(e)
        else:
            assert answer.ndim == 4 and answer.size and np.isfinite(answer).all()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((0, 1), ValueError),
        ((3, 4), ValueError),
        ((3, 1, 0), ValueError),
        ((3, 1, 1, -1), ValueError),
        ((3, 3, 1, 0, 2), ValueError),
        ((3.0, 1), TypeError),
        ((3, 1, 2, "same"), ValueError),
        ((3, 1, 1, (1, 1)), TypeError),
        ((3, 2, 1, "full"), ValueError),
    ],
)
def test_output_sizes_that_cannot_be_are_refused(args, error):
    with pytest.raises(error, match="expected"):
        conv_output_size(*args)


# --- numbers


def test_a_large_kernel_and_a_large_stride():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 2, 20, 33)), rng.normal(size=(3, 2, 11, 20))
    zeros = ((5, 5), (3, 3))
    z = conv2d(x, w, stride=(7, 9), padding=(5, 3))
    np.testing.assert_allclose(
        z, plain_conv(x, w, np.zeros(3), (7, 9), zeros, (1, 1), 1), rtol=0, atol=1e-10
    )
    g = rng.normal(size=z.shape)
    measured = numerical_grad(lambda x: (g * conv2d(x, w, stride=(7, 9), padding=(5, 3))).sum(), x)
    np.testing.assert_allclose(
        conv2d_backward(g, x, w, (7, 9), (5, 3))[0], measured, rtol=0, atol=1e-7
    )


def test_the_kept_result_is_that_of_the_script_as_it_stands():
    from experiments import digits_cnn

    kept = json.loads(digits_cnn.RESULT.read_text())
    assert kept["settings"] == digits_cnn.SETTINGS
    assert [run["seed"] for run in kept["runs"]] == list(range(5))
    assert kept["fresh_mean_accuracy"] == np.mean([r["accuracy"] for r in kept["fresh_runs"]])
    assert kept["mean_accuracy"] == np.mean([run["accuracy"] for run in kept["runs"]]) >= 0.99
    for run in kept["runs"] + kept["fresh_runs"]:
        assert run["accuracy"] == 1 - len(run["wrong"]) / run["test"]


def test_the_script_trains():
    from experiments import digits_cnn

    quick = digits_cnn.SETTINGS | {"channels": [8, 16], "epochs": 8}
    once, again = (digits_cnn.result(0, quick) for _ in range(2))
    assert once["accuracy"] > 0.9
    assert once["wrong"] == again["wrong"]  # the same seed, the same weights


def test_parameters_that_were_replaced_are_refused_before_a_kernel_reads_past_them():
    layer = Conv2d(3, 64, 3, rng=0)
    x = np.ones((2, 3, 9, 9), np.float32)
    y, cache = layer.forward(x)
    layer.params["weight"] = np.zeros((128, 3, 3, 3), np.float32)
    with pytest.raises(ValueError, match="weight: expected"):
        layer.backward(y, cache)
    layer = Conv2d(3, 64, 3, rng=0)
    layer.params["bias"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="bias: expected"):
        layer(x)


def test_gradients_go_by_name_and_not_by_the_order_of_params():
    layer = Conv2d(3, 8, 3, rng=0)
    layer.params = dict(reversed(layer.params.items()))
    y, cache = layer.forward(np.ones((2, 3, 9, 9), np.float32))
    _, grads = layer.backward(y, cache)
    assert {k: g.shape for k, g in grads.items()} == {k: p.shape for k, p in layer.params.items()}


def test_max_pooling_knows_how_its_images_lay():
    "All four lengths of the answer are 4: its shape does not tell."
    x = np.random.default_rng(0).random((4, 8, 8, 4)).transpose(3, 0, 1, 2)
    for images in (x, np.ascontiguousarray(x)):
        y, cache = MaxPool2d(2).forward(images[:, :4])
        assert MaxPool2d(2).backward(np.ones_like(y), cache)[0].sum() == y.size


@pytest.mark.parametrize("pool", [AvgPool2d(3), AvgPool2d(2), MaxPool2d(3), MaxPool2d(2)])
def test_pools_take_images_however_they_lie(pool):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 3, 12, 12)).astype(np.float32)
    wanted, cache = pool.forward(images)
    grad = rng.standard_normal(wanted.shape).astype(np.float32)
    back = pool.backward(grad, cache)[0]
    wide = np.repeat(images, 2, axis=3)[..., ::2]
    for same in (
        images.transpose(1, 2, 3, 0).copy().transpose(3, 0, 1, 2),
        wide,
        images[..., ::-1].copy()[..., ::-1],
    ):
        y, cache = pool.forward(same)
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(pool.backward(grad, cache)[0], back)


def test_small_images_give_what_large_ones_give_through_a_whole_network():
    "The batch lies last from layer to layer; alone, each image goes the other way."
    rng = np.random.default_rng(1)
    net = Sequential(
        Conv2d(2, 5, 3, padding=1, rng=rng, dtype=float),
        ReLU(),
        MaxPool2d(2),
        Conv2d(5, 3, (2, 3), dilation=(2, 1), rng=rng, dtype=float),
        AvgPool2d(2),
    )
    x = rng.standard_normal((11, 2, 12, 10))
    y, cache = net.forward(x)
    grad = rng.standard_normal(y.shape)
    dx, grads = net.backward(grad, cache)
    sums = {k: 0 for k in grads}
    for k in range(len(x)):
        one, cache = net.forward(x[k : k + 1])
        np.testing.assert_allclose(one, y[k : k + 1], rtol=0, atol=1e-13)
        back, own = net.backward(grad[k : k + 1], cache)
        np.testing.assert_allclose(back, dx[k : k + 1], rtol=0, atol=1e-12)
        sums = {k: s + own[k] for k, s in sums.items()}
    for name, g in grads.items():
        np.testing.assert_allclose(sums[name], g, rtol=0, atol=1e-11)


@pytest.mark.parametrize("layer", [MaxPool2d(2), AvgPool2d(2), Flatten()], ids=repr)
def test_gradients_of_another_kind_are_refused(layer):
    x = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    y, cache = layer.forward(x)
    grad = np.ones_like(y)
    assert layer.backward(grad, cache)[0].shape == x.shape
    with pytest.raises(ValueError, match="^grad: expected float32 of shape"):
        layer.backward(grad[:1], cache)
    with pytest.raises(ValueError, match="^grad: expected float32 of shape"):
        layer.backward(grad.astype(float), cache)
    with pytest.raises(TypeError, match="^grad: expected an array"):
        layer.backward(grad.tolist(), cache)


def test_no_images_are_flattened_to_no_rows():
    x = np.empty((0, 3, 4, 5), np.float32)
    y, cache = Flatten().forward(x)
    assert y.shape == (0, 60) and Flatten().backward(y, cache)[0].shape == x.shape
