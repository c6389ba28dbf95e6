"""Layers, activations and losses: against PyTorch, in both dtypes, with extreme and bad input."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dlnotes as dl
from dlnotes import (
    GELU,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    Layer,
    Linear,
    LogSoftmax,
    Loss,
    MSELoss,
    ReLU,
    Sequential,
    Sigmoid,
    Softmax,
    Tanh,
    check_gradients,
    summary,
)
from dlnotes.mlp import cross_entropy_loop

DTYPES = [np.float32, np.float64]
# float32 carries 7 digits; sums of up to 40 products of size 10 lose one or two of them
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-10}
ELEMENTWISE = {
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "gelu": GELU,
    "gelu_tanh": lambda: GELU("tanh"),
}
ROWWISE = {"softmax": Softmax, "log_softmax": LogSoftmax}
FROM_INPUT = {"gelu", "gelu_tanh"}
LOSSES = {
    "mse_loss": MSELoss,
    "binary_cross_entropy_with_logits": BCEWithLogitsLoss,
    "cross_entropy": CrossEntropyLoss,
}
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)
SEEDS = st.integers(0, 2**20)
FEW = settings(deadline=None, max_examples=40)


def function(name):
    "The pair of functions of that name."
    if name == "gelu_tanh":
        return (lambda x: dl.gelu(x, "tanh"), lambda grad, x: dl.gelu_backward(grad, x, "tanh"))
    return getattr(dl, name), getattr(dl, f"{name}_backward")


def in_torch(torch, name):
    functional = torch.nn.functional
    special = {
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
    }
    return special.get(name) or getattr(functional, name)


def close(ours, theirs, dtype, scale=1.0):
    theirs = np.asarray(theirs)
    assert np.shape(ours) == theirs.shape
    if isinstance(ours, np.ndarray):
        assert ours.dtype == dtype
    size = scale * max(1.0, abs(theirs).max(initial=0))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[dtype] * size)


# --- PyTorch


@FEW
@given(shape=SHAPES, seed=SEEDS, scale=st.sampled_from([0.1, 3, 30]))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activations_as_in_pytorch(name, dtype, shape, seed, scale):
    torch = pytest.importorskip("torch")
    x, grad = np.random.default_rng(seed).normal(scale=scale, size=(2, *shape)).astype(dtype)
    t = torch.tensor(x, requires_grad=True)
    theirs = in_torch(torch, name)(t)
    theirs.backward(torch.tensor(grad))
    forward, backward = function(name)
    layer = ELEMENTWISE[name]()
    y, cache = layer.forward(x)
    for ours in (y, forward(x), layer(x)):
        close(ours, theirs.detach(), dtype)
    expected = t.grad.numpy()
    close(layer.backward(grad, cache)[0], expected, dtype)
    close(backward(grad, x if name in FROM_INPUT else y), expected, dtype)
    assert layer.backward(grad, cache)[1] == {}


@FEW
@given(shape=SHAPES, seed=SEEDS, scale=st.sampled_from([0.1, 3, 30]), data=st.data())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWWISE)
def test_softmax_as_in_pytorch(name, dtype, shape, seed, scale, data):
    torch = pytest.importorskip("torch")
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, grad = np.random.default_rng(seed).normal(scale=scale, size=(2, *shape)).astype(dtype)
    t = torch.tensor(x, requires_grad=True)
    theirs = in_torch(torch, name)(t, dim)
    theirs.backward(torch.tensor(grad))
    forward, backward = function(name)
    y, cache = ROWWISE[name](dim).forward(x)
    close(y, theirs.detach(), dtype)
    close(forward(x, dim), theirs.detach(), dtype)
    # the gradient is a difference of numbers as large as `grad`, `scale` at least
    close(ROWWISE[name](dim).backward(grad, cache)[0], t.grad, dtype, max(1, scale))
    close(backward(grad, y, dim), t.grad, dtype, max(1, scale))


@FEW
@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=5),
    n=st.integers(1, 9),
    k=st.integers(1, 9),
    seed=SEEDS,
    bias=st.booleans(),
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_layer_as_in_pytorch(dtype, shape, n, k, seed, bias):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    layer = Linear(n, k, bias, rng=rng, dtype=dtype)
    theirs = torch.nn.Linear(n, k, bias, dtype=torch.tensor(np.zeros(1, dtype)).dtype)
    theirs.load_state_dict({name: torch.tensor(a) for name, a in layer.state_dict().items()})
    x = rng.normal(size=(*shape, n)).astype(dtype)
    grad = rng.normal(size=(*shape, k)).astype(dtype)
    t = torch.tensor(x, requires_grad=True)
    answer = theirs(t)
    answer.backward(torch.tensor(grad))
    y, cache = layer.forward(x)
    close(y, answer.detach(), dtype)
    grad_x, grads = layer.backward(grad, cache)
    close(grad_x, t.grad, dtype)
    assert list(grads) == list(layer.params)
    for name, p in theirs.named_parameters():
        close(grads[name], p.grad, dtype, 10)
    close(dl.linear(x, layer.params["weight"], layer.params.get("bias")), answer.detach(), dtype)
    for ours, expected in zip(
        dl.linear_backward(grad, x, layer.params["weight"]), (grad_x, *grads.values())
    ):
        close(ours, expected, dtype, 10)
    assert layer.backward(grad, cache, input_grad=False)[0] is None


def targets(name, shape, rng, dtype):
    if name == "cross_entropy":
        return rng.integers(0, shape[1], (shape[0], *shape[2:]))
    return rng.uniform(size=shape).astype(dtype)


@FEW
@given(
    shape=hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    seed=SEEDS,
    scale=st.sampled_from([0.1, 3, 100]),
    reduction=st.sampled_from(["mean", "sum"]),
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_as_in_pytorch(name, dtype, shape, seed, scale, reduction):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=scale, size=shape).astype(dtype)
    y = targets(name, shape, rng, dtype)
    t = torch.tensor(x, requires_grad=True)
    theirs = in_torch(torch, name)(t, torch.tensor(y), reduction=reduction)
    theirs.backward()
    loss = LOSSES[name](reduction)
    value, cache = loss.forward(x, y)
    forward, backward = function(name)
    assert type(value) is float and value == loss(x, y) == forward(x, y, reduction)
    close(value, theirs.item(), dtype)
    close(loss.backward(cache), t.grad, dtype)
    close(backward(x, y, reduction), t.grad, dtype)


@settings(deadline=None, max_examples=40)
@given(
    shape=hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    seed=SEEDS,
    smoothing=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    reduction=st.sampled_from(["mean", "sum"]),
    ignored=st.sampled_from([-100, -1, 0, 2]),
    last=st.booleans(),
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_smoothed_and_ignored_targets_as_in_pytorch(
    dtype, shape, seed, smoothing, reduction, ignored, last
):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    x = (3 * rng.normal(size=shape)).astype(dtype)
    y = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    y[rng.random(y.shape) < 0.3] = ignored
    if ignored == shape[1] - 1 == 0 or (y == ignored).all() or y.max() >= shape[1]:
        return
    if last:  # classes innermost in memory
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    t = torch.tensor(x, requires_grad=True)
    value = torch.nn.functional.cross_entropy(
        t, torch.tensor(y), reduction=reduction, ignore_index=ignored, label_smoothing=smoothing
    )
    value.backward()
    loss = CrossEntropyLoss(reduction, ignore_index=ignored, label_smoothing=smoothing)
    ours, cache = loss.forward(x, y)
    close(ours, value.item(), dtype)
    close(loss.backward(cache), t.grad, dtype)


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, m=st.integers(1, 9))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_network_as_in_pytorch(seed, m, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    model = Sequential(
        Linear(5, 7, rng=rng, dtype=dtype),
        GELU(),
        Sequential(Linear(7, 6, rng=rng, dtype=dtype), Tanh()),
        Linear(6, 4, rng=rng, dtype=dtype, bias=False),
    )
    number = torch.tensor(np.zeros(1, dtype)).dtype
    theirs = torch.nn.Sequential(
        torch.nn.Linear(5, 7),
        torch.nn.GELU(),
        torch.nn.Sequential(torch.nn.Linear(7, 6), torch.nn.Tanh()),
        torch.nn.Linear(6, 4, bias=False),
    ).to(number)
    theirs.load_state_dict({name: torch.tensor(a) for name, a in model.state_dict().items()})
    x, y = rng.normal(size=(m, 5)).astype(dtype), rng.integers(0, 4, m)
    value = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
    value.backward()
    loss = CrossEntropyLoss()
    answer, cache = model.forward(x)
    ours, loss_cache = loss.forward(answer, y)
    close(ours, value.item(), dtype)
    _, grads = model.backward(loss.backward(loss_cache), cache)
    assert list(grads) == list(model.params) == [name for name, _ in theirs.named_parameters()]
    for name, p in theirs.named_parameters():
        close(grads[name], p.grad, dtype)
    again = model.backward(loss.backward(loss_cache), cache, input_grad=False)[1]
    assert all((again[name] == grads[name]).all() for name in grads)


# --- kernels: the same compiled, uncompiled and with bounds checks


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_kernels(name, dtype):
    forward, backward = function(name)
    x = np.concatenate([np.linspace(-12, 12, 60), [0, -0.0, 1e4, -1e4, 1e-30]]).astype(dtype)
    y = forward(x)
    wide = x.astype(np.float64)
    expected = {
        "sigmoid": lambda: 1 / (1 + np.exp(-np.clip(wide, -700, None))),
        "tanh": lambda: np.tanh(wide),
        "relu": lambda: np.maximum(wide, 0),
    }
    if name in expected:
        eps = np.finfo(dtype).eps
        np.testing.assert_allclose(y, expected[name](), rtol=8 * eps, atol=eps)
    slope = backward(np.ones_like(x), x if name in FROM_INPUT else y)
    assert y.dtype == slope.dtype == dtype and np.isfinite([y, slope]).all()
    assert (slope[x == 1e4] == (name not in ("sigmoid", "tanh"))).all()
    assert (abs(slope[x == -1e4]) == 0).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 64, 65, 130])
def test_softmax_kernels(n, dtype):
    x = np.random.default_rng(n).normal(scale=5, size=(3, n)).astype(dtype)
    p, log_p = dl.softmax(x), dl.log_softmax(x)
    wide = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    close(p, wide / wide.sum(axis=1, keepdims=True), dtype, 0.1)
    close(np.exp(log_p), p, dtype)
    grad = np.random.default_rng(0).normal(size=x.shape).astype(dtype)
    close(dl.softmax_backward(grad, p), p * (grad - (grad * p).sum(axis=1, keepdims=True)), dtype)
    close(dl.log_softmax_backward(grad, log_p), grad - p * grad.sum(axis=1, keepdims=True), dtype)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_chapters_cross_entropy_gives_the_loss_of_each_row(dtype):
    z, y = np.random.default_rng(0).normal(size=(5, 4)).astype(dtype), np.array([1, 0, 3, 3, 2])
    losses, grad = np.empty(5, dtype), np.empty_like(z)
    cross_entropy_loop(z, y, losses, grad)
    close(losses, -dl.log_softmax(z)[np.arange(5), y], dtype)
    close(grad, dl.softmax(z) - np.eye(4, dtype=dtype)[y], dtype)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_kernels(dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(scale=4, size=(6, 5)).astype(dtype), rng.integers(0, 5, 6)
    one_hot = np.eye(5, dtype=dtype)[y]
    close(dl.cross_entropy(x, y), -(dl.log_softmax(x) * one_hot).sum() / 6, dtype)
    close(dl.cross_entropy_backward(x, y), (dl.softmax(x) - one_hot) / 6, dtype)
    close(dl.mse_loss(x, one_hot), ((x - one_hot) ** 2).mean(), dtype)
    close(dl.mse_loss_backward(x, one_hot), (x - one_hot) / 15, dtype)
    plain = np.log1p(np.exp(-abs(x))) + np.maximum(x, 0) - x * one_hot
    close(dl.binary_cross_entropy_with_logits(x, one_hot), plain.mean(), dtype)
    close(
        dl.binary_cross_entropy_with_logits_backward(x, one_hot),
        (dl.sigmoid(x) - one_hot) / 30,
        dtype,
    )


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(size, dtype):
    z = np.array([[size, -size, 0], [-size, size, 0]], dtype)
    assert dl.softmax(z).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert dl.log_softmax(z)[0].tolist() == [0, -2 * z[0, 0], -z[0, 0]]
    assert dl.cross_entropy(z, [0, 1]) == 0 and dl.cross_entropy(z, [2, 2]) == z[0, 0]
    assert dl.cross_entropy_backward(z, [1, 1])[0].tolist() == [0.5, -0.5, 0]
    assert dl.binary_cross_entropy_with_logits(z[0, :2], [1, 0]) == 0
    assert dl.binary_cross_entropy_with_logits(z[0, :2], [0, 1]) == z[0, 0]
    assert dl.binary_cross_entropy_with_logits_backward(z[0, :2], [0, 1]).tolist() == [0.5, -0.5]


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_losses_keep_their_digits(dtype):
    expected, eps = np.log1p(np.exp(-15.0)), float(np.finfo(dtype).eps)
    binary = dl.binary_cross_entropy_with_logits(np.array([15], dtype), [1])
    assert binary == pytest.approx(expected, rel=8 * eps)
    categorical = dl.cross_entropy(np.array([[15, 0]], dtype), [0])
    assert abs(categorical - expected) <= 4 * eps  # the sum of the exponentials is near 1


def test_large_arrays_go_over_threads_and_are_the_same():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1400, 800)).astype(np.float32)
    y = rng.integers(0, 800, 1400)
    parts = np.array_split(np.arange(1400), 7)
    for f in (dl.sigmoid, dl.tanh, dl.relu, dl.gelu, dl.softmax, dl.log_softmax):
        assert (f(x) == np.concatenate([f(x[rows]) for rows in parts])).all()
    whole = dl.cross_entropy_backward(x, y, "sum")
    assert (
        whole
        == np.concatenate([dl.cross_entropy_backward(x[rows], y[rows], "sum") for rows in parts])
    ).all()
    each = sum(dl.cross_entropy(x[rows], y[rows], "sum") for rows in parts)
    assert dl.cross_entropy(x, y, "sum") == pytest.approx(each, rel=1e-12)


def test_one_model_in_several_threads_at_once():
    model = Sequential(Linear(8, 300, rng=0), ReLU(), Linear(300, 5, rng=1))
    loss = CrossEntropyLoss()

    def work(seed):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(400, 8)).astype(np.float32), rng.integers(0, 5, 400)
        answer, cache = model.forward(x)
        value, loss_cache = loss.forward(answer, y)
        return value, model.backward(loss.backward(loss_cache), cache)[1]["0.weight"]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(12)))
    for seed, (value, grad) in enumerate(together):
        alone = work(seed)
        assert value == pytest.approx(alone[0], rel=1e-6)
        np.testing.assert_allclose(grad, alone[1], rtol=0, atol=1e-6)


@pytest.mark.kernel
def test_layouts_of_any_kind():
    x = np.random.default_rng(0).normal(size=(4, 6, 3))
    read_only = x.copy()
    read_only.flags.writeable = False
    spaced = np.repeat(x, 2, axis=2)[..., ::2]
    variants = (
        np.asfortranarray(x),
        read_only,
        spaced,
        x[::-1].copy()[::-1],
        x.tolist(),
        x.astype(">f8"),
    )
    layers = (Sigmoid(), GELU(), Softmax(1), LogSoftmax(), Linear(3, 2, rng=0, dtype=float))
    y = np.random.default_rng(1).integers(0, 6, (4, 3))
    for layer in layers:
        expected = layer(x)
        grad = np.ones_like(expected)
        want = layer.backward(grad, layer.forward(x)[1])[0]
        for variant in variants:
            answer, cache = layer.forward(variant)
            np.testing.assert_array_equal(answer, expected)
            back = layer.backward(np.asfortranarray(grad), cache)[0]
            np.testing.assert_allclose(back, want, rtol=0, atol=1e-15)
    for variant in variants:
        assert CrossEntropyLoss()(variant, y) == pytest.approx(CrossEntropyLoss()(x, y), rel=1e-14)
        assert MSELoss()(x, variant) == 0


def test_nothing_passed_in_is_changed():
    rng = np.random.default_rng(0)
    x, y, grad = rng.normal(size=(4, 3)), rng.integers(0, 3, 4), rng.normal(size=(4, 3))
    kept = x.copy(), y.copy(), grad.copy()
    for layer in (
        Sigmoid(),
        Tanh(),
        ReLU(),
        GELU(),
        Softmax(),
        LogSoftmax(),
        Linear(3, 3, rng=0, dtype=float),
    ):
        answer, cache = layer.forward(x)
        seen = answer.copy()
        layer.backward(grad, cache)
        assert (answer == seen).all()
    for loss in (CrossEntropyLoss(), MSELoss(), BCEWithLogitsLoss()):
        loss.forward(x, y if isinstance(loss, CrossEntropyLoss) else grad)
    assert all((a == b).all() for a, b in zip((x, y, grad), kept))


# --- layers


def test_parameters_names_shapes_and_first_values():
    layer = Linear(16, 5, rng=0)
    assert {k: v.shape for k, v in layer.params.items()} == {"weight": (5, 16), "bias": (5,)}
    assert all(a.dtype == np.float32 for a in layer.params.values())
    many = Linear(100, 1000, rng=0).params["weight"]
    assert abs(many).max() <= 0.1 and abs(many).max() > 0.0999
    assert many.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.01)
    for seed in (3, np.random.default_rng(3)):
        assert (
            Linear(4, 4, rng=seed).params["weight"] == Linear(4, 4, rng=3).params["weight"]
        ).all()
    assert (Linear(4, 4, rng=3).params["weight"] != Linear(4, 4, rng=4).params["weight"]).any()
    assert list(Linear(2, 2, bias=False).params) == ["weight"]


def test_sequential_is_a_list_of_layers_with_names():
    model = Sequential(Linear(3, 4, rng=0), ReLU(), Sequential(Linear(4, 4, rng=0), Tanh()))
    assert list(model.params) == ["0.weight", "0.bias", "2.0.weight", "2.0.bias"]
    assert model.params["0.weight"] is model[0].params["weight"]
    assert model.state_dict()["2.0.bias"] is model[2][0].params["bias"]
    assert len(model) == 3 and [*model][1] is model[1] and model[-1] is model[2]
    assert isinstance(model[:2], Sequential) and model[:2][0] is model[0]
    assert repr(model) == "Sequential(Linear(3, 4), ReLU(), Sequential(Linear(4, 4), Tanh()))"
    x = np.ones((2, 3), np.float32)
    assert (model[2](model[:2](x)) == model(x)).all()
    assert (Sequential()(x) == x).all() and Sequential().backward(x, [])[0] is x
    with pytest.raises(TypeError, match=r"^layers\[1\]: "):
        Sequential(Linear(3, 4), np.tanh)


def test_copies_share_nothing_and_keep_the_names_together():
    model = Sequential(Linear(3, 4, rng=0), GELU("tanh"), Linear(4, 2, rng=0), LogSoftmax(1))
    x = np.ones((2, 3), np.float32)
    answer = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin(x) == answer).all()
        twin.params["0.weight"][...] = 0
        assert (twin[0].params["weight"] == 0).all() and (twin(x) != answer).any()
    assert (model(x) == answer).all()
    for loss in (CrossEntropyLoss("sum"), MSELoss(), BCEWithLogitsLoss()):
        assert pickle.loads(pickle.dumps(loss)).reduction == loss.reduction


def test_states_are_copied_in_or_refused_whole():
    model, other = (
        Sequential(Linear(3, 4, rng=seed), ReLU(), Linear(4, 2, rng=seed)) for seed in (0, 1)
    )
    model.load_state_dict({k: v.astype(np.float64) for k, v in other.state_dict().items()})
    for name, p in model.params.items():
        assert p.dtype == np.float32 and (p == other.params[name]).all()
        assert p is not other.params[name]
    before = copy.deepcopy(model.state_dict())
    good = {k: np.zeros_like(v) for k, v in before.items()}
    bad = [
        ({k: v for k, v in good.items() if k != "2.bias"}, "state: "),
        (good | {"3.bias": 0}, "state: "),
        (good | {"2.bias": np.zeros(3)}, "2.bias: "),
        (good | {"2.bias": ["a", "b"]}, "2.bias: "),
        (good | {"2.bias": [np.nan, 0]}, "2.bias: "),
    ]
    for state, name in bad:
        with pytest.raises((ValueError, TypeError), match=f"^{name}"):
            model.load_state_dict(state)
        assert all((model.state_dict()[k] == v).all() for k, v in before.items())


def test_a_relu_has_slope_zero_at_zero():
    assert dl.relu_backward([1.0, 1.0, 1.0], [-1.0, 0.0, 2.0]).tolist() == [0, 0, 1]


# --- check_gradients and summary


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_gradients_pass_whatever_the_dtype(dtype):
    rng = np.random.default_rng(0)
    model = Sequential(
        Linear(3, 5, rng=rng, dtype=dtype), Tanh(), Linear(5, 3, rng=rng, dtype=dtype)
    )
    before = copy.deepcopy(model.state_dict())
    x = rng.normal(size=(4, 3)).astype(dtype)
    assert check_gradients(model, CrossEntropyLoss(), x, [0, 1, 2, 0]) < 1e-7
    assert check_gradients(model, MSELoss("sum"), x, rng.normal(size=(4, 3))) < 1e-7
    assert all((p == before[k]).all() and p.dtype == dtype for k, p in model.params.items())


class WrongBias(Linear):
    def backward(self, grad, cache, input_grad=True):
        grad_x, grads = super().backward(grad, cache, input_grad)
        return grad_x, grads | {"bias": grads["bias"] * 1.001}


class WrongInput(Tanh):
    def backward(self, grad, cache, input_grad=True):
        return grad * (1 - cache**3), {}


@pytest.mark.parametrize("layer", [WrongBias(5, 5, rng=3), WrongInput()])
def test_wrong_gradients_are_found(layer):
    model = Sequential(Linear(3, 5, rng=0), layer, Linear(5, 2, rng=1))
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert check_gradients(model, CrossEntropyLoss(), x, [0, 1, 1, 0]) > 1e-4


def test_a_wrong_gradient_of_the_input_is_found():
    model, x = Sequential(WrongInput(), Linear(3, 2, rng=1)), np.ones((4, 3))
    assert check_gradients(model, CrossEntropyLoss(), x, [0, 1, 1, 0]) > 1e-4


def test_a_gradient_of_zero_is_not_divided_by_zero():
    model = Sequential(Linear(2, 2, rng=0), Softmax(), Linear(2, 1, rng=0))
    model[2].params["weight"][...] = 0
    model[2].params["bias"][...] = 1
    x = np.random.default_rng(0).normal(size=(3, 2))
    assert check_gradients(model, MSELoss(), x, np.ones((3, 1))) < 1e-6
    assert check_gradients(model, MSELoss(), x, np.zeros((3, 1))) < 1e-6


@pytest.mark.parametrize("wanted", [True, False])
def test_only_the_gradient_that_is_wanted_is_computed(wanted):
    asked = []

    class Watched(Linear):
        def backward(self, grad, cache, input_grad=True):
            asked.append(input_grad)
            return super().backward(grad, cache, input_grad)

    model = Sequential(Watched(3, 4, rng=0), Tanh(), Watched(4, 2, rng=0))
    output, cache = model.forward(np.ones((5, 3), np.float32))
    grad_x, _ = model.backward(output, cache, wanted)
    assert asked == [True, wanted] and (grad_x is not None) == wanted


def test_gradients_that_are_missing_are_named():
    class Forgetful(Linear):
        def backward(self, grad, cache, input_grad=True):
            return super().backward(grad, cache)[0], {}

    class Turned(Linear):
        def backward(self, grad, cache, input_grad=True):
            grad_x, grads = super().backward(grad, cache)
            return grad_x, grads | {"weight": grads["weight"].T}

    for wrong in (Forgetful(3, 2), Turned(3, 2)):
        with pytest.raises(ValueError, match="^model: expected (a gradient|gradients)"):
            check_gradients(wrong, MSELoss(), np.ones((1, 3)), np.ones((1, 2)))


def test_summary_counts_and_prints():
    model = Sequential(Linear(6, 5), Sequential(ReLU(), Linear(5, 2, bias=False)))
    table = summary(model, (4, 6))
    assert table.parameters == 6 * 5 + 5 + 10 == sum(p.size for p in model.params.values())
    assert table.rows == [
        ("0", "Linear(6, 5)", (4, 5), 35),
        ("1.0", "ReLU()", (4, 5), 0),
        ("1.1", "Linear(5, 2, bias=False)", (4, 2), 10),
    ]
    lines = str(table).splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    assert lines[-1].split() == ["all", "45"] and "(m, 4, 5)" in lines[1]
    assert table._repr_markdown_().count("\n") == 5
    assert summary(Tanh(), (3,)).parameters == 0
    assert summary(Linear(3, 2, dtype=float), (3,)).rows == [("", "Linear(3, 2)", (2,), 8)]
    for wrong, shape, error in (
        (np.tanh, (3,), TypeError),
        (Linear(3, 2), (4,), ValueError),
        (Linear(3, 2), (0,), ValueError),
        (Linear(3, 2), ("3",), TypeError),
    ):
        with pytest.raises(error, match="^(model|x|input_shape): "):
            summary(wrong, shape)


# --- bad input

ONE = [f for name in ELEMENTWISE for f in function(name)[:1]]
BAD_ARRAYS = {
    "real numbers": ["a"],
    "real numbers, got dtype complex": [1j],
    "finite": [np.nan],
    "finite numbers": [[np.inf]],
    "rows of unequal length": [[1], [1, 2]],
    "no masked": np.ma.array([1.0, 2], mask=[0, 1]),
}


@pytest.mark.parametrize("message", BAD_ARRAYS)
def test_arrays_that_are_no_numbers_are_named(message):
    bad = BAD_ARRAYS[message]
    calls = [(f, "x") for f in [*ONE, dl.softmax, dl.log_softmax]]
    calls += [(lambda a, f=f: function(f)[1](a, [1.0]), "grad") for f in [*ELEMENTWISE, *ROWWISE]]
    calls += [
        (lambda a, f=f: function(f)[1]([1.0], a), "x" if f in FROM_INPUT else "y")
        for f in [*ELEMENTWISE, *ROWWISE]
    ]
    calls += [(lambda a, f=g: f(a, [1.0]), "output") for f in LOSSES for g in function(f)]
    calls += [
        (lambda a, f=g, x=[[1.0]] if n == "cross_entropy" else [1.0]: f(x, a), "target")
        for n in LOSSES
        for g in function(n)
    ]
    calls += [
        (lambda a: dl.linear(a, [[1.0]]), "x"),
        (lambda a: dl.linear([1.0], a), "weight"),
        (lambda a: dl.linear([1.0], [[1.0]], a), "bias"),
        (lambda a: dl.linear_backward(a, [1.0], [[1.0]]), "grad"),
        (lambda a: check_gradients(Tanh(), MSELoss(), a, [1.0]), "x"),
    ]
    for call, name in calls:
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            call(bad)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: dl.sigmoid_backward([1.0, 2], [1.0]), "grad"),
        (lambda: dl.gelu_backward([[1.0]], [1.0]), "grad"),
        (lambda: dl.gelu([1.0], approximate="erf"), "approximate"),
        (lambda: GELU("exact"), "approximate"),
        (lambda: dl.softmax(1.0), "dim"),
        (lambda: dl.softmax([1.0], 1), "dim"),
        (lambda: dl.softmax([1.0], -2), "dim"),
        (lambda: dl.softmax([1.0], 0.0), "dim"),
        (lambda: dl.softmax([1.0], True), "dim"),
        (lambda: dl.softmax([1.0], None), "dim"),
        (lambda: dl.log_softmax(np.zeros((2, 0))), "x"),
        (lambda: Softmax(2)(np.ones((2, 2))), "dim"),
        (lambda: dl.softmax_backward(np.ones(2), np.ones(3)), "grad"),
        (lambda: dl.linear([1.0, 2], [[1.0]]), "x"),
        (lambda: dl.linear(1.0, [[1.0]]), "x"),
        (lambda: dl.linear([1.0], [1.0]), "weight"),
        (lambda: dl.linear([1.0], [[1.0]], 1), "bias"),
        (lambda: dl.linear(np.ones((2, 0)), np.ones((3, 0))), "weight"),
        (lambda: dl.linear([1e308], [[10.0]]), "output for x"),
        (lambda: dl.linear_backward([[1.0]], [1.0], [[1.0]]), "grad"),
        (lambda: dl.mse_loss([1.0], [[1.0]]), "target"),
        (lambda: dl.mse_loss([], []), "output"),
        (lambda: dl.mse_loss([1.0], [1.0], "none"), "reduction"),
        (lambda: MSELoss("none"), "reduction"),
        (lambda: MSELoss(["mean"]), "reduction"),
        (lambda: dl.binary_cross_entropy_with_logits([1.0], [1.5]), "target"),
        (lambda: dl.binary_cross_entropy_with_logits([1.0], [-0.5]), "target"),
        (lambda: dl.binary_cross_entropy_with_logits([1.0], [[1.0]]), "target"),
        (lambda: dl.cross_entropy([1.0], [0]), "output"),
        (lambda: dl.cross_entropy(np.ones((0, 3)), []), "output"),
        (lambda: dl.cross_entropy(np.ones((3, 0)), [0, 0, 0]), "output"),
        (lambda: dl.cross_entropy(np.ones((2, 3)), [0]), "target"),
        (lambda: dl.cross_entropy(np.ones((2, 3)), np.eye(3)[:2]), "target"),
        (lambda: dl.cross_entropy(np.ones((2, 3)), [0, 3]), "target"),
        (lambda: dl.cross_entropy(np.ones((2, 3)), [0, -1]), "target"),
        (lambda: dl.cross_entropy(np.ones((2, 3)), [0, 0.5]), "target"),
        (lambda: dl.cross_entropy(np.ones((2, 3, 4)), [0, 1]), "target"),
        (lambda: dl.cross_entropy(np.ones((1, 3)), [2**63]), "target"),
        (lambda: CrossEntropyLoss()(np.ones((2, 3)), np.array([2, 3])), "target"),
        (lambda: CrossEntropyLoss()(np.ones((2, 3)), np.array([-1, 0], np.int8)), "target"),
        (lambda: CrossEntropyLoss()(np.ones((1, 3)), np.array([2**64 - 1], np.uint64)), "target"),
        (lambda: Linear(0, 1), "in_features"),
        (lambda: Linear(1, -1), "out_features"),
        (lambda: Linear(1.0, 1), "in_features"),
        (lambda: Linear(1, True), "out_features"),
        (lambda: Linear(1, 1, rng="a"), "rng"),
        (lambda: Linear(1, 1, rng=-1), "rng"),
        (lambda: Linear(1, 1, dtype=int), "dtype"),
        (lambda: Linear(1, 1, dtype=np.float16), "dtype"),
        (lambda: Linear(2, 1)(np.ones((3, 2))), "x"),
        (lambda: Linear(2, 1)(np.ones(3, np.float32)), "x"),
        (lambda: Linear(2, 1, dtype=float)(1.0), "x"),
        (lambda: Linear(2, 1, dtype=float)(["a", "b"]), "x"),
        (lambda: Tanh().backward(np.ones(3), Tanh().forward(np.ones(4))[1]), "grad"),
        (lambda: Tanh().backward(np.ones(4, np.float32), Tanh().forward(np.ones(4))[1]), "grad"),
        (lambda: Linear(2, 1, dtype=float).backward(np.ones((3, 1)), np.ones((4, 2))), "grad"),
        (lambda: Linear(2, 1).backward(np.ones((4, 1)), np.ones((4, 2), np.float32)), "grad"),
        (lambda: Softmax().backward(np.ones(3), Softmax().forward(np.ones(4))[1]), "grad"),
        (
            lambda: Softmax().backward(np.ones(4, np.float32), Softmax().forward(np.ones(4))[1]),
            "grad",
        ),
    ],
)
def test_the_argument_at_fault_is_named(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        call()


def test_dtypes_that_do_not_match_are_both_named():
    with pytest.raises(TypeError, match="float32.*float64"):
        Linear(2, 1)(np.ones((3, 2)))


def test_targets_of_any_integer_kind():
    z = np.random.default_rng(0).normal(size=(3, 4))
    expected = CrossEntropyLoss()(z, np.array([0, 3, 1]))
    for dtype in (np.int8, np.uint8, np.int32, np.uint64, np.float32):
        assert CrossEntropyLoss()(z, np.array([0, 3, 1], dtype)) == expected
    assert CrossEntropyLoss()(z, [0, 3, 1]) == dl.cross_entropy(z, (0, 3, 1)) == expected
    assert dl.cross_entropy(z[:, :2], np.array([True, False, True])) > 0


def test_empty_batches_pass_where_that_has_a_meaning():
    for layer in (Sigmoid(), ReLU(), GELU(), Softmax(), LogSoftmax(), Linear(4, 4, dtype=float)):
        answer, cache = layer.forward(np.ones((0, 4)))
        assert answer.shape == (0, 4) and layer.backward(answer, cache)[0].shape == (0, 4)


def test_the_base_classes_leave_the_work_to_others():
    for call in (
        lambda: Layer()(np.ones(1)),
        lambda: Layer().backward(np.ones(1), None),
        lambda: Loss()(np.ones(1), np.ones(1)),
    ):
        with pytest.raises(NotImplementedError):
            call()


GOOD_OR_REFUSED = hnp.arrays(
    dtype=st.sampled_from([np.float64, np.float32, np.int64, np.bool_, np.complex128, object]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    elements=st.sampled_from([0, 1]),
)


@pytest.mark.kernel
@settings(deadline=None, max_examples=60)
@given(a=GOOD_OR_REFUSED, b=GOOD_OR_REFUSED, c=GOOD_OR_REFUSED)
def test_arrays_of_any_shape_are_right_or_refused_by_name(a, b, c):
    calls = [lambda f=f: f(a) for f in [*ONE, dl.softmax, dl.log_softmax]]
    calls += [lambda f=f: function(f)[1](a, b) for f in [*ELEMENTWISE, *ROWWISE]]
    calls += [lambda g=g: g(a, b) for f in LOSSES for g in function(f)]
    calls += [lambda f=f: f()(a, b) for f in LOSSES.values()]
    calls += [
        lambda: dl.linear(a, b, c),
        lambda: dl.linear_backward(a, b, c),
        lambda: Linear(2, 3, dtype=float)(a),
    ]
    names = "x|y|grad|output|target|dim|weight|bias"
    for call in calls:
        try:
            result = call()
        except (TypeError, ValueError) as e:
            assert str(e).split(":")[0] in names.split("|"), e
        else:
            assert all(
                np.isfinite(r).all() for r in (result if isinstance(result, tuple) else (result,))
            )
