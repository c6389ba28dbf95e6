"""Training beyond its chapter: parity with PyTorch, bad input, seeds, files, memory, threads."""

import copy
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes import (
    SGD,
    AdamW,
    BCEWithLogitsLoss,
    Composite,
    CrossEntropyLoss,
    History,
    Layer,
    Linear,
    MSELoss,
    Optimizer,
    ReLU,
    Sequential,
    Tanh,
    cosine_lr,
    evaluate,
    fit,
    load,
    save,
    step_lr,
    training,
)
from dlnotes.training import _adamw, _momentum, _sgd

DTYPES = [np.float32, np.float64]
SHAPES = [(3, 4), (4,), (2, 3, 2, 2), (), (0, 3)]


def arrays(seed, dtype=np.float64, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {f"{i}.weight": rng.normal(size=s).astype(dtype) for i, s in enumerate(shapes)}


def network(seed=0, dtype=np.float64, sizes=(5, 8, 3)):
    rng, layers = np.random.default_rng(seed), []
    for n, out in zip(sizes, sizes[1:]):
        layers += [Linear(n, out, rng=rng, dtype=dtype), ReLU()]
    return Sequential(*layers[:-1])


def task(m=60, seed=0, dtype=np.float64):
    "Points in five dimensions, of three classes that can be told apart."
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(m, 5)).astype(dtype)
    return x, x[:, :3].argmax(axis=1)


def run(model, optimizer=None, loss=None, data=None, **settings):
    x, y = task() if data is None else data
    return fit(
        model,
        loss or CrossEntropyLoss(),
        optimizer or SGD(model.params, 0.1),
        x,
        y,
        **{"rng": 0, "progress": False, **settings},
    )


# --- optimisers against PyTorch and against their definitions

rates = st.floats(1e-6, 2.0)
small = st.floats(0, 0.5)


def walk_both(ours, make_theirs, params, seed, steps, rates):
    "Many steps of both, with random gradients and changing rates; the largest difference."
    import torch

    theirs = {k: torch.nn.Parameter(torch.tensor(w)) for k, w in params.items()}
    optimizer = make_theirs(list(theirs.values()))
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        ours.lr = optimizer.param_groups[0]["lr"] = float(rng.choice(rates))
        sizes = 10.0 ** rng.integers(-4, 3, len(params))
        grads = {
            k: np.asarray(size * rng.normal(size=w.shape))
            for size, (k, w) in zip(sizes, params.items())
        }
        for k, p in theirs.items():
            p.grad = torch.tensor(grads[k])
        ours.step(grads)
        optimizer.step()
    for k, p in theirs.items():
        np.testing.assert_allclose(params[k], p.detach().numpy(), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(
    lrs=st.lists(rates, min_size=1, max_size=3),
    momentum=st.sampled_from([0, 0.3, 0.9, 0.999]),
    decay=small,
    ahead=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_sgd_is_pytorchs(lrs, momentum, decay, ahead, seed):
    torch = pytest.importorskip("torch")
    params, nesterov = arrays(seed), ahead and momentum > 0
    same = dict(momentum=momentum, weight_decay=decay, nesterov=nesterov)
    walk_both(
        SGD(params, lrs[0], **same),
        partial(torch.optim.SGD, lr=lrs[0], **same),
        params,
        seed,
        40,
        lrs,
    )


@settings(deadline=None, max_examples=60)
@given(
    lrs=st.lists(rates, min_size=1, max_size=3),
    decay=small,
    seed=st.integers(0, 2**20),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
    eps=st.floats(1e-10, 0.1),
)
def test_adamw_is_pytorchs(lrs, betas, eps, decay, seed):
    torch = pytest.importorskip("torch")
    params = arrays(seed)
    same = dict(betas=betas, eps=eps, weight_decay=decay)
    walk_both(
        AdamW(params, lrs[0], **same),
        partial(torch.optim.AdamW, lr=lrs[0], **same),
        params,
        seed,
        40,
        lrs,
    )


def test_defaults_are_pytorchs():
    torch = pytest.importorskip("torch")
    p = [torch.nn.Parameter(torch.zeros(1))]
    sgd, adamw = torch.optim.SGD(p).defaults, torch.optim.AdamW(p).defaults
    ours = SGD({"w": np.zeros(1)})
    assert (ours.lr, ours.momentum, ours.weight_decay, ours.nesterov) == tuple(
        sgd[k] for k in ("lr", "momentum", "weight_decay", "nesterov")
    )
    ours = AdamW({"w": np.zeros(1)})
    assert (ours.lr, ours.betas, ours.eps, ours.weight_decay) == tuple(
        adamw[k] for k in ("lr", "betas", "eps", "weight_decay")
    )


@pytest.mark.kernel
@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 37), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**20))
def test_kernels_are_their_definitions(n, dtype, seed):
    rng = np.random.default_rng(seed)
    w, g, m = rng.normal(size=(3, n)).astype(dtype)
    v = rng.random(n).astype(dtype)
    h = np.array([0.9, 0.1, 0.8, 0.2, 0.99, 0.3, 1.5, 1e-3], dtype)
    close = partial(np.testing.assert_allclose, rtol=0, atol=40 * np.finfo(dtype).eps)
    got = w.copy()
    _sgd(got, g, h)
    close(got, w - h[0] * (g + h[1] * w))
    for ahead in (0, 1):
        h[3], got, memory = ahead, w.copy(), m.copy()
        _momentum(got, g, memory, h)
        d = g + h[1] * w
        close(memory, h[2] * m + d)
        close(got, w - h[0] * (d + h[2] * memory if ahead else memory))
    h[3], got, memory, squares = 0.2, w.copy(), m.copy(), v.copy()
    _adamw(got, g, memory, squares, h)
    close(memory, h[0] * m + h[1] * g)
    close(squares, h[2] * v + h[3] * g * g)
    close(got, h[4] * w - h[5] * memory / (h[6] * np.sqrt(squares) + h[7]))
    assert got.dtype == memory.dtype == squares.dtype == dtype


@pytest.mark.kernel
@pytest.mark.parametrize("n", [1, 2, 15, 1001])
def test_a_shared_step_is_the_same_step(n, monkeypatch):
    grads = {"w": np.random.default_rng(1).normal(size=n)}
    for make in (SGD, partial(SGD, momentum=0.9), AdamW):
        results = []
        for large in (n + 1, 0):
            monkeypatch.setattr(training, "_LARGE", large)
            params = {"w": np.ones(n)}
            optimizer = make(params, 0.1)
            for _ in range(3):
                optimizer.step(grads)
            results.append(params["w"])
        np.testing.assert_array_equal(*results)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_are_changed_in_place_and_gradients_are_not(dtype):
    for make in (SGD, partial(SGD, momentum=0.9, nesterov=True), AdamW):
        params, grads = arrays(0, dtype), arrays(1, dtype)
        before, kept = copy.deepcopy(params), copy.deepcopy(grads)
        optimizer = make(params, lr=0.1)
        optimizer.step(grads)
        assert optimizer.steps == 1
        for k, w in params.items():
            assert optimizer.params[k] is w and w.dtype == dtype
            assert w.size == 0 or (w != before[k]).all()
            np.testing.assert_array_equal(grads[k], kept[k])


@pytest.mark.kernel
def test_gradients_of_any_layout():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 6, 4))
    read_only = g.copy()
    read_only.flags.writeable = False
    results = []
    for layout in (
        g,
        np.asfortranarray(g),
        np.repeat(g, 2, axis=1)[:, ::2],
        g[::-1].copy()[::-1],
        np.broadcast_to(g, g.shape),
        read_only,
    ):
        params = {"w": w.copy()}
        AdamW(params, 0.1).step({"w": layout})
        results.append(params["w"])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.kernel
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copied_optimiser_goes_on_with_its_own_arrays(copied):
    grads = arrays(1)
    for make in (SGD, partial(SGD, momentum=0.9), AdamW):
        first = make(arrays(0), lr=0.1)
        first.step(grads)
        second = copied(first)
        first.step(grads)
        halfway = copy.deepcopy(first.params)
        second.step(grads)
        for k, w in first.params.items():
            np.testing.assert_array_equal(second.params[k], w)
            np.testing.assert_array_equal(halfway[k], w)


# --- optimisers refuse what does not fit


@pytest.mark.kernel
@pytest.mark.parametrize("make", [SGD, AdamW])
@pytest.mark.parametrize(
    "params, error, words",
    [
        ([np.ones(2)], TypeError, "^params: expected a dict, got list"),
        (None, TypeError, "^params: expected a dict, got NoneType"),
        ({}, ValueError, "^params: expected arrays of one dtype"),
        ({"a": [1.0]}, TypeError, r"^params\['a'\]: expected a float32 or float64 array, got list"),
        ({"a": np.ones(2, int)}, TypeError, r"^params\['a'\]: .* got int64"),
        ({"a": np.ones(2, np.float16)}, TypeError, r"^params\['a'\]: .* got float16"),
        ({"a": np.ones(2, complex)}, TypeError, r"^params\['a'\]: .* got complex128"),
        ({"a": np.ones(2, ">f8")}, TypeError, r"^params\['a'\]: .* got >f8"),
        ({"a": np.ones((4, 4))[:, ::2]}, ValueError, r"^params\['a'\]: expected a contiguous"),
        ({"a": np.asfortranarray(np.ones((3, 4)))}, ValueError, r"^params\['a'\]: .* contiguous"),
        ({"a": np.broadcast_to(np.ones(1), 3)}, ValueError, r"^params\['a'\]: .* contiguous"),
        ({"a": np.ones(2), "b": np.ones(2, np.float32)}, ValueError, "^params: .* one dtype"),
    ],
)
def test_wrong_parameters(make, params, error, words):
    with pytest.raises(error, match=words):
        make(params)


@pytest.mark.kernel
@pytest.mark.parametrize(
    "make, settings, error, words",
    [
        (
            SGD,
            dict(lr=-0.1),
            ValueError,
            "^lr: expected a number from 0 to below 1e\\+30, got -0.1",
        ),
        (AdamW, dict(lr=-1), ValueError, "^lr: "),
        (SGD, dict(lr=math.nan), ValueError, "^lr: "),
        (AdamW, dict(lr=math.inf), ValueError, "^lr: "),
        (SGD, dict(lr="0.1"), TypeError, "^lr: expected a number, got '0.1'"),
        (SGD, dict(lr=None), TypeError, "^lr: "),
        (SGD, dict(lr=True), TypeError, "^lr: "),
        (SGD, dict(lr=1j), TypeError, "^lr: "),
        (
            SGD,
            dict(momentum=1),
            ValueError,
            "^momentum: expected a number from 0 to below 1, got 1",
        ),
        (SGD, dict(momentum=-0.1), ValueError, "^momentum: "),
        (SGD, dict(momentum=[0.9]), TypeError, "^momentum: "),
        (SGD, dict(weight_decay=-1), ValueError, "^weight_decay: "),
        (SGD, dict(nesterov=True), ValueError, "^nesterov: expected a momentum above 0"),
        (
            SGD,
            dict(momentum=0.9, nesterov=1),
            TypeError,
            "^nesterov: expected True or False, got 1",
        ),
        (AdamW, dict(betas=0.9), TypeError, "^betas: expected two numbers"),
        (AdamW, dict(betas=(0.9,)), TypeError, "^betas: "),
        (AdamW, dict(betas=(1.0, 0.9)), ValueError, r"^betas\[0\]: "),
        (AdamW, dict(betas=(0.9, 1)), ValueError, r"^betas\[1\]: "),
        (AdamW, dict(betas=(-0.1, 0.9)), ValueError, r"^betas\[0\]: "),
        (AdamW, dict(betas=(0.9, "b")), TypeError, r"^betas\[1\]: "),
        (AdamW, dict(eps=-1e-8), ValueError, "^eps: "),
        (AdamW, dict(eps=math.nan), ValueError, "^eps: "),
        (AdamW, dict(weight_decay=-0.01), ValueError, "^weight_decay: "),
        (AdamW, dict(weight_decay=math.inf), ValueError, "^weight_decay: "),
    ],
)
def test_wrong_settings(make, settings, error, words):
    with pytest.raises(error, match=words):
        make({"w": np.ones(2)}, **settings)


@pytest.mark.kernel
@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda g: g.pop("b"), ValueError, r"^grads: .* names \['a', 'b'\], differs in \['b'\]"),
        (lambda g: g.update(c=np.ones(2)), ValueError, r"^grads: .* differs in \['c'\]"),
        (lambda g: (g.pop("a"), g.update(c=np.ones(3))), ValueError, r"differs in \['a', 'c'\]"),
        (lambda g: g.update({1: np.ones(2)}), ValueError, r"differs in \['1'\]"),
        (lambda g: g.update(b=np.ones(3)), ValueError, r"^grads\['b'\]: .* \(2, 2\), got \(3,\)"),
        (lambda g: g.update(b=np.ones(4)), ValueError, r"^grads\['b'\]: expected shape"),
        (
            lambda g: g.update(b=[[1.0, 1], [1, 1]]),
            TypeError,
            r"^grads\['b'\]: .* float64, got list",
        ),
        (lambda g: g.update(b=None), TypeError, r"^grads\['b'\]: .* got NoneType"),
        (
            lambda g: g.update(b=np.ones((2, 2), "f4")),
            TypeError,
            r"^grads\['b'\]: .* ndarray float32",
        ),
        (lambda g: g.update(b=np.ones((2, 2), int)), TypeError, r"^grads\['b'\]: .* ndarray int64"),
        (lambda g: g.update(b=np.ones((2, 2), ">f8")), TypeError, r"^grads\['b'\]: .* ndarray >f8"),
        (lambda g: g.update(b=np.asmatrix(np.ones((2, 2)))), TypeError, r"^grads\['b'\]: "),
    ],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_wrong_gradients_change_nothing(change, error, words):
    for make in (SGD, partial(SGD, momentum=0.9), AdamW):
        params = {"a": np.ones(3), "b": np.ones((2, 2))}
        optimizer, grads = make(params), copy.deepcopy(params)
        change(grads)
        with pytest.raises(error, match=words):
            optimizer.step(grads)
        assert optimizer.steps == 0
        assert all((w == 1).all() for w in params.values())
        assert all((m == 0).all() for memories in optimizer.state.values() for m in memories)


@pytest.mark.kernel
def test_the_rate_is_checked_whenever_it_is_set():
    optimizer = SGD({"w": np.ones(1)}, 0.5)
    for wrong, error in ((-1, ValueError), (math.nan, ValueError), ("a", TypeError)):
        with pytest.raises(error, match="^lr: "):
            optimizer.lr = wrong
    assert optimizer.lr == 0.5
    optimizer.lr = np.float32(0.25)
    optimizer.step({"w": np.ones(1)})
    assert optimizer.params["w"] == 0.75


@pytest.mark.kernel
def test_a_rate_of_zero_changes_nothing():
    for make in (SGD, partial(SGD, momentum=0.9), AdamW):
        params = arrays(0)
        before = copy.deepcopy(params)
        make(params, lr=0, weight_decay=0.1).step(arrays(1))
        assert all((w == before[k]).all() for k, w in params.items())


# --- schedules


@settings(deadline=None, max_examples=40)
@given(lr=rates, size=st.integers(1, 9), gamma=st.floats(0, 1.5))
def test_step_lr_is_pytorchs(lr, size, gamma):
    theirs = schedule_of(lambda o, s: s.StepLR(o, size, gamma), lr, 40)
    np.testing.assert_allclose([step_lr(t, lr, size, gamma) for t in range(40)], theirs, rtol=1e-10)


@settings(deadline=None, max_examples=40)
@given(
    lr=rates,
    T=st.integers(1, 30),
    low=st.floats(0, 1),
    warmup=st.integers(0, 9),
    first=st.floats(0.01, 1),
)
def test_cosine_lr_is_pytorchs(lr, T, low, warmup, first):
    def make(o, s):
        down = s.CosineAnnealingLR(o, T, low)
        if not warmup:
            return down
        up = s.LinearLR(o, first, 1.0, warmup)
        return s.SequentialLR(o, [up, down], [warmup])

    theirs = schedule_of(make, lr, warmup + T + 1)
    ours = [cosine_lr(t, lr, T, low, warmup, first) for t in range(warmup + T + 1)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)  # theirs is a recursion
    assert cosine_lr(warmup + 5 * T, lr, T, low, warmup, first) == low


def schedule_of(make, lr, steps):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch complains of its own SequentialLR
        schedule, found = make(optimizer, torch.optim.lr_scheduler), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return found


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: step_lr(-1, 0.1, 5), ValueError, "^step: expected 0 or more, got -1"),
        (lambda: step_lr(1.5, 0.1, 5), TypeError, "^step: expected a whole number, got 1.5"),
        (lambda: step_lr(True, 0.1, 5), TypeError, "^step: "),
        (lambda: step_lr(0, -0.1, 5), ValueError, "^lr: "),
        (lambda: step_lr(0, 0.1, 0), ValueError, "^step_size: expected 1 or more, got 0"),
        (lambda: step_lr(0, 0.1, 5, -1), ValueError, "^gamma: "),
        (lambda: step_lr(0, 0.1, 5, "a"), TypeError, "^gamma: "),
        (lambda: cosine_lr(-1, 0.1, 5), ValueError, "^step: "),
        (lambda: cosine_lr(0, "0.1", 5), TypeError, "^lr: "),
        (lambda: cosine_lr(0, 0.1, 0), ValueError, "^T_max: "),
        (lambda: cosine_lr(0, 0.1, 2.0), TypeError, "^T_max: "),
        (lambda: cosine_lr(0, 0.1, 5, eta_min=-1), ValueError, "^eta_min: "),
        (lambda: cosine_lr(0, 0.1, 5, warmup=-1), ValueError, "^warmup: "),
        (lambda: cosine_lr(0, 0.1, 5, start_factor=2), ValueError, "^start_factor: "),
        (lambda: cosine_lr(0, 0.1, 5, start_factor=math.nan), ValueError, "^start_factor: "),
    ],
)
def test_schedules_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- fit


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_fit_learns_and_keeps_the_dtype(dtype):
    model = network(dtype=dtype)
    x, y = task(300, dtype=dtype)
    history = fit(
        model,
        CrossEntropyLoss(),
        AdamW(model.params, 0.02),
        x,
        y,
        epochs=30,
        rng=0,
        validation=task(100, 1),
        progress=False,
    )
    assert history.val_accuracy[-1] > 0.9 and history.train_loss[-1] < 0.3 * history.train_loss[0]
    assert all(w.dtype == dtype for w in model.params.values())
    assert history.epochs == list(range(1, 31)) and history.lr == [0.02] * 30
    assert all(len(getattr(history, k)) == 30 for k in ("train_loss", "val_loss", "seconds"))
    assert history.best_epoch == 1 + int(np.argmin(history.val_loss))
    assert not history.stopped_early


@pytest.mark.kernel
@settings(deadline=None, max_examples=25)
@given(
    m=st.integers(1, 23), size=st.integers(1, 30), shuffle=st.booleans(), seed=st.integers(0, 2**20)
)
def test_fit_is_the_plain_loop(m, size, shuffle, seed):
    x, y = task(m, seed)
    ours, plain, loss = network(), network(), CrossEntropyLoss()
    rng, losses = np.random.default_rng(seed), []
    for _ in range(3):
        order, total = rng.permutation(m) if shuffle else np.arange(m), 0
        for first in range(0, m, size):
            rows = order[first : first + size]
            answer, cache = plain.forward(x[rows])
            value, back = loss.forward(answer, y[rows])
            grads = plain.backward(loss.backward(back), cache)[1]
            total += value * len(rows)
            for k, w in plain.params.items():
                w -= 0.1 * grads[k]
        losses.append(total / m)
    history = run(ours, data=(x, y), epochs=3, batch_size=size, shuffle=shuffle, rng=seed)
    np.testing.assert_allclose(history.train_loss, losses, rtol=1e-10)
    for k, w in plain.params.items():
        np.testing.assert_allclose(ours.params[k], w, rtol=0, atol=1e-10)


@pytest.mark.kernel
def test_the_same_seed_gives_the_same_weights():
    def trained(rng):
        model = network()
        run(model, AdamW(model.params), epochs=3, batch_size=7, rng=rng)
        return np.concatenate([w.ravel() for w in model.params.values()]).tobytes()

    assert trained(3) == trained(3) == trained(np.random.default_rng(3)) != trained(4)


@pytest.mark.kernel
def test_a_second_call_goes_on():
    once, twice, data = network(), network(), task()
    optimizers = [AdamW(model.params, 0.01) for model in (once, twice)]
    run(once, optimizers[0], data=data, epochs=4, shuffle=False)
    for _ in range(2):
        run(twice, optimizers[1], data=data, epochs=2, shuffle=False)
    for k, w in once.params.items():
        np.testing.assert_array_equal(twice.params[k], w)


@pytest.mark.kernel
def test_data_are_not_changed_and_any_layout_will_do():
    x, y = task()
    kept = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    results = []
    for data in (
        (x, y),
        (np.asfortranarray(x), y.astype(float)),
        (x.tolist(), y.tolist()),
        (np.repeat(x, 2, 0)[::2], y.astype(np.uint8)),
    ):
        model = network()
        run(model, data=data, validation=data, epochs=2)
        results.append(model.params["0.weight"])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(y, kept[1])


@pytest.mark.kernel
def test_early_stopping_puts_the_best_weights_back():
    rng = np.random.default_rng(0)
    x, y = task(30)
    noisy = np.where(rng.random(30) < 0.4, rng.integers(3, size=30), y)
    model, states, val = network(sizes=(5, 64, 3)), [], task(60, 1)
    history = run(
        model,
        AdamW(model.params, 0.01),
        data=(x, noisy),
        epochs=400,
        patience=4,
        validation=val,
        callback=lambda h: states.append(copy.deepcopy(model.params)),
    )
    assert history.stopped_early and len(history.epochs) == history.best_epoch + 4 < 400
    assert history.best_epoch == 1 + int(np.argmin(history.val_loss))
    for k, w in model.params.items():
        np.testing.assert_array_equal(w, states[history.best_epoch - 1][k])
    assert evaluate(model, CrossEntropyLoss(), *val)[0] == min(history.val_loss)


@pytest.mark.kernel
def test_patience_that_is_never_spent_also_keeps_the_best():
    model, val = network(), task(30, 1)
    history = run(model, SGD(model.params, 3.0), epochs=6, patience=100, validation=val)
    assert not history.stopped_early and len(history.epochs) == 6
    assert evaluate(model, CrossEntropyLoss(), *val)[0] == min(history.val_loss)


@pytest.mark.kernel
def test_schedule_and_callback():
    model, seen = network(), []
    optimizer = SGD(model.params)

    def schedule(step):
        seen.append(step)
        return 0.1 / (1 + step)

    history = run(model, optimizer, epochs=3, batch_size=25, schedule=schedule)
    assert seen == list(range(9)) and optimizer.lr == 0.1 / 9
    assert history.lr == [0.1 / 3, 0.1 / 6, 0.1 / 9] and optimizer.steps == 9
    history = run(model, epochs=9, callback=lambda h: len(h.epochs) == 2)
    assert history.epochs == [1, 2] and not history.stopped_early
    with pytest.raises(ValueError, match="^lr: "):
        run(model, schedule=lambda step: -1.0)


@pytest.mark.kernel
def test_other_losses():
    x, y = task(200)
    two = (y == 1)[:, None].astype(float)
    model = network(sizes=(5, 8, 1))
    history = run(
        model,
        AdamW(model.params, 0.03),
        BCEWithLogitsLoss(),
        (x, two),
        epochs=30,
        validation=(x, two),
    )
    assert history.val_accuracy[-1] > 0.9
    model = Sequential(Linear(5, 2, rng=0, dtype=np.float64))
    history = run(
        model,
        AdamW(model.params, 0.05),
        MSELoss(),
        (x, x[:, :2]),
        epochs=60,
        validation=(x, x[:, :2]),
    )
    assert history.val_loss[-1] < 0.01 and history.val_accuracy == []
    assert evaluate(model, MSELoss(), x, x[:, :2])[1] is None
    added = run(
        network(),
        loss=CrossEntropyLoss(reduction="sum"),
        data=task(40),
        epochs=1,
        optimizer=None,
        shuffle=False,
        batch_size=40,
    ).train_loss
    mean = run(network(), data=task(40), epochs=1, shuffle=False, batch_size=40).train_loss
    np.testing.assert_allclose(added, mean)


@pytest.mark.kernel
def test_divergence_is_an_error_that_says_what_to_do():
    x, _ = task()
    model = Sequential(Linear(5, 5, rng=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FloatingPointError, match="^the loss became (inf|nan) after .* lr"):
            run(model, SGD(model.params, 1e6), MSELoss(), (x, x), epochs=50)
    model = Sequential(Linear(5, 5, rng=0))  # the last step of all
    with pytest.raises(FloatingPointError, match="^0.weight is no longer finite"):
        run(model, SGD(model.params, 1e10), MSELoss(), (1e15 * x, x), epochs=1, batch_size=60)


@pytest.mark.kernel
@pytest.mark.parametrize("size", [1, 7, 60, 256])
def test_evaluate_does_not_depend_on_the_batches(size):
    model, (x, y) = network(), task()
    loss, share = evaluate(model, CrossEntropyLoss(), x, y, batch_size=size)
    np.testing.assert_allclose(loss, CrossEntropyLoss()(model(x), y), rtol=1e-12)
    np.testing.assert_allclose(share, (model(x).argmax(axis=1) == y).mean(), rtol=1e-12)


X, Y = task(6)


@pytest.mark.kernel
@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(x=X[:0], y=Y[:0]), ValueError, "^x: expected at least one example"),
        (dict(x=X[:, :4]), ValueError, r"^x: expected shape"),
        (dict(x=np.where(X == X[2, 2], np.nan, X)), ValueError, "^x: expected finite"),
        (dict(x=X.astype(complex)), TypeError, "^x: expected real numbers"),
        (dict(x="abc"), TypeError, "^x: "),
        (dict(x=3.0), ValueError, "^x: "),
        (dict(y=Y[:5]), ValueError, r"^y: expected shape \(6,\)"),
        (dict(y=Y[:, None]), ValueError, "^y: "),
        (dict(y=Y + 1), ValueError, "^y: expected 0 to 2, got 3"),
        (dict(y=Y - 1), ValueError, "^y: expected 0 to 2, got -1"),
        (dict(y=Y + 0.5), ValueError, "^y: "),
        (dict(y=None), TypeError, "^y: "),
        (dict(epochs=0), ValueError, "^epochs: expected 1 or more"),
        (dict(epochs=2.0), TypeError, "^epochs: "),
        (dict(batch_size=0), ValueError, "^batch_size: expected 1 or more"),
        (dict(batch_size=None), TypeError, "^batch_size: "),
        (dict(patience=3), ValueError, "^patience: expected validation data"),
        (dict(patience=0, validation=(X, Y)), ValueError, "^patience: expected 1 or more"),
        (dict(patience=1.5, validation=(X, Y)), TypeError, "^patience: "),
        (dict(validation=(X[:, :4], Y)), ValueError, "expected shape"),
        (dict(validation=(X, Y[:5])), ValueError, "^validation y: expected shape"),
        (dict(validation=(X[:0], Y[:0])), ValueError, "^validation x: "),
        (dict(validation=X), ValueError, "^validation: expected inputs and targets"),
        (dict(validation=5), ValueError, "^validation: expected inputs and targets"),
        (
            dict(optimizer=SGD(network().params)),
            ValueError,
            "^optimizer: expected one made of this",
        ),
        (dict(optimizer="sgd"), TypeError, "^optimizer: "),
        (dict(loss="mse"), TypeError, "^loss: "),
        (dict(model=lambda x: x), TypeError, "^model: "),
        (dict(schedule=0.1), TypeError, "^schedule: "),
        (dict(callback=3), TypeError, "^callback: "),
        (dict(rng="a"), (TypeError, ValueError), "."),
    ],
)
def test_fit_refuses(change, error, words):
    model = network()
    before = copy.deepcopy(model.params)
    arguments = dict(
        model=model,
        loss=CrossEntropyLoss(),
        optimizer=SGD(model.params),
        x=X,
        y=Y,
        epochs=2,
        progress=False,
    )
    with pytest.raises(error, match=words):
        fit(**{**arguments, **change})
    assert all((w == before[k]).all() for k, w in model.params.items())


@pytest.mark.kernel
@pytest.mark.parametrize(
    "change, words",
    [
        (dict(x=X[:0], y=Y[:0]), "^x: "),
        (dict(y=Y + 1), "^y: "),
        (dict(batch_size=0), "^batch_size"),
        (dict(x=X * np.inf), "^x: "),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_evaluate_refuses(change, words):
    arguments = dict(model=network(), loss=CrossEntropyLoss(), x=X, y=Y)
    with pytest.raises(ValueError, match=words):
        evaluate(**{**arguments, **change})


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_fit_of_anything_is_right_or_refused(data):
    "Never a crash, never a silent NaN: either a finite history, or one of our errors."
    values = st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e300, 1e-300, np.nan, np.inf])
    m, n = data.draw(st.integers(0, 5)), data.draw(st.sampled_from([4, 5, 6]))
    x = np.array(data.draw(st.lists(values, min_size=m * n, max_size=m * n))).reshape(m, n)
    y = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=m, max_size=m)))
    model = network(dtype=data.draw(st.sampled_from(DTYPES)))
    lr = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 1e10]))
    try:
        with np.errstate(all="ignore"):
            history = run(model, SGD(model.params, lr, momentum=0.5), data=(x, y), epochs=2)
    except (ValueError, TypeError, FloatingPointError) as e:
        assert str(e)
    else:
        assert np.isfinite(history.train_loss).all()
        assert all(np.isfinite(w).all() for w in model.params.values())


def test_the_bar_is_shown_only_if_wanted(capfd):
    run(network(), epochs=2)
    out, err = capfd.readouterr()
    assert out == err == ""
    run(network(), epochs=2, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "4/4" in err and "loss=" in err


def test_batch_and_mask_go_to_the_model_together():
    class Masked(Composite):
        "A dense layer that sees only what its mask lets through."

        def forward(self, x, mask=None):
            assert mask is None or (mask.dtype == bool and x.dtype == np.float64)
            return self.parts["dense"].forward(x if mask is None else x * mask)

        def backward(self, grad, cache, input_grad=True):
            grad, grads = self.parts["dense"].backward(grad, cache, input_grad)
            return grad, self._join({"dense": grads})

    x, y = task(40)
    mask = np.random.default_rng(0).random(x.shape) < 0.7
    runs = []
    for inputs in ((x, mask), x * mask):
        model = Masked(dense=Linear(5, 3, rng=0, dtype=np.float64))
        runs.append(
            fit(
                model,
                CrossEntropyLoss(),
                SGD(model.params, 0.1),
                inputs,
                y,
                epochs=3,
                rng=0,
                validation=(inputs, y),
                progress=False,
            )
        )
    assert runs[0].val_loss == runs[1].val_loss and runs[0].train_loss == runs[1].train_loss
    with pytest.raises(ValueError, match=r"^x\[1\]: "):
        fit(model, CrossEntropyLoss(), SGD(model.params), (x, mask[1:]), y, progress=False)


def test_whole_numbers_stay_where_the_model_takes_ids():
    class Rows(Layer):
        "Rows of a table, looked up."

        takes_ids = True

        def __init__(self):
            self.params = {"weight": np.eye(4, 3)}

        def forward(self, x):
            assert x.dtype == np.int32
            return self.params["weight"][x], x

        def backward(self, grad, cache, input_grad=True):
            into = np.zeros_like(self.params["weight"])
            np.add.at(into, cache, grad)
            return None, {"weight": into}

    model = Sequential(Rows(), Linear(3, 2, rng=0, dtype=np.float64))
    assert model.takes_ids and not model[1:].takes_ids
    x = np.arange(12, dtype=np.int32) % 4
    history = fit(
        model,
        CrossEntropyLoss(),
        SGD(model.params, 1.0),
        x,
        x % 2,
        epochs=60,
        rng=0,
        validation=(x, x % 2),
        progress=False,
    )
    assert history.val_accuracy[-1] == 1


def test_targets_to_be_ignored_do_not_count():
    x, y = task(30)
    hidden = y.copy()
    hidden[::3] = -100
    there = hidden >= 0
    model, loss = network(), CrossEntropyLoss()
    for size in (7, 30):
        assert evaluate(model, loss, x, hidden, size) == pytest.approx(
            evaluate(model, loss, x[there], y[there])
        )
    first = fit(
        model,
        loss,
        SGD(model.params, 0.0),
        x,
        hidden,
        epochs=1,
        batch_size=11,
        rng=0,
        progress=False,
    )
    assert first.train_loss[0] == pytest.approx(evaluate(model, loss, x[there], y[there])[0])
    with pytest.raises(ValueError, match="^y: "):
        evaluate(model, loss, x, np.full(30, -100))
    with pytest.raises(ValueError, match="^y: "):
        evaluate(model, loss, x, np.full(30, -1))


def test_a_class_that_is_ignored_is_never_right():
    model, loss = network(), CrossEntropyLoss(ignore_index=0)
    x, y = task(30)
    model.params["2.bias"][0] += 100.0
    assert (model(x).argmax(axis=1) == 0).all() and 0 < (y == 0).sum() < 30
    assert evaluate(model, loss, x, y)[1] == 0
    model.params["2.bias"][0] -= 200.0
    there = y != 0
    found = evaluate(model, loss, x, y, 7)
    assert found == pytest.approx(evaluate(model, loss, x[there], y[there])) and 0 < found[1] <= 1


def test_modes_of_fit():
    seen = []

    class Watching(ReLU):
        def forward(self, x):
            seen.append((self.training, len(x)))
            return super().forward(x)

    model = Sequential(
        Linear(5, 4, rng=0, dtype=np.float64),
        Watching(),
        Sequential(Linear(4, 3, rng=0, dtype=np.float64)),
    )
    assert model.training and model[2][0].training
    assert model.eval() is model and not (model.training or model[2][0].training)
    assert model.train() is model and model[2][0].training
    x, y = task(20)
    fit(
        model,
        CrossEntropyLoss(),
        SGD(model.params),
        x,
        y,
        batch_size=10,
        epochs=2,
        validation=(x, y),
        progress=False,
    )
    both = 2 * [(True, 10), (True, 10), (False, 20)]
    assert seen == [(False, 1), (False, 1), *both] and not model.training


def test_long_gradients_are_clipped():
    steps = []

    class Noting(SGD):
        def step(self, grads):
            steps.append(math.sqrt(sum((g**2).sum() for g in grads.values())))
            super().step(grads)

    x, y = task(40)
    for most in (None, 0.05):
        model = network()
        fit(
            model,
            CrossEntropyLoss(),
            Noting(model.params, 0.01),
            x,
            y,
            epochs=1,
            rng=0,
            max_norm=most,
            progress=False,
        )
    assert min(steps[:2]) > 0.1 and steps[2:] == pytest.approx([0.05] * 2)
    with pytest.raises(ValueError, match="^max_norm: "):
        fit(model, CrossEntropyLoss(), SGD(model.params), x, y, max_norm=0, progress=False)


@pytest.mark.kernel
def test_training_in_several_threads_at_once():
    def trained(seed):
        model = network(seed)
        run(model, AdamW(model.params, 0.01), epochs=5, rng=seed)
        return model.params["0.weight"]

    alone = [trained(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(trained, range(4)))
    for a, b in zip(alone, together):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


# --- saving and loading


@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_and_loaded(tmp_path, dtype):
    path, model, other = tmp_path / "model.safetensors", network(0, dtype), network(1, dtype)
    save(model, path)
    own = other.params["0.weight"]
    load(other, str(path))
    x = task(dtype=dtype)[0]
    np.testing.assert_array_equal(model(x), other(x))
    assert other.params["0.weight"] is own and own.dtype == dtype


def test_the_dtype_of_the_model_stays(tmp_path):
    save(network(0, np.float64), tmp_path / "a")
    model = network(1, np.float32)
    load(model, tmp_path / "a")
    np.testing.assert_array_equal(
        model.params["2.weight"], network(0).params["2.weight"].astype(np.float32)
    )


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    bias=st.booleans(),
    seed=st.integers(0, 2**20),
    double=st.booleans(),
)
def test_files_go_to_pytorch_and_back(tmp_path_factory, sizes, bias, seed, double):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    dtype, rng = (np.float64 if double else np.float32), np.random.default_rng(seed)
    pairs = list(zip(sizes, sizes[1:]))

    def ours():
        layers = [(Linear(*pair, bias=bias, rng=rng, dtype=dtype), Tanh()) for pair in pairs]
        return Sequential(*(layer for two in layers for layer in two))

    def theirs():
        kind = dict(dtype=torch.float64 if double else torch.float32)
        layers = [(torch.nn.Linear(*pair, bias=bias, **kind), torch.nn.Tanh()) for pair in pairs]
        return torch.nn.Sequential(*(layer for two in layers for layer in two))

    x = rng.normal(size=(4, sizes[0])).astype(dtype)
    tolerance = dict(rtol=0, atol=1e-12 if double else 1e-5)
    mine, module = ours(), theirs()
    save(mine, path)
    module.load_state_dict(load_file(path))
    np.testing.assert_allclose(module(torch.tensor(x)).detach().numpy(), mine(x), **tolerance)
    mine, module = ours(), theirs()
    save_file(module.state_dict(), path)
    load(mine, path)
    np.testing.assert_allclose(mine(x), module(torch.tensor(x)).detach().numpy(), **tolerance)


def test_arrays_that_are_not_contiguous_are_saved_right(tmp_path):
    layer = Layer()
    layer.params = {"weight": np.arange(6.0).reshape(2, 3).T, "scale": np.array(2.5)}
    save(layer, tmp_path / "a")
    again = Layer()
    again.params = {"weight": np.zeros((3, 2)), "scale": np.array(0.0)}
    load(again, tmp_path / "a")
    np.testing.assert_array_equal(again.params["weight"], layer.params["weight"])
    assert again.params["scale"] == 2.5


def test_load_refuses(tmp_path):
    from safetensors.numpy import save_file

    path, model = tmp_path / "a", network()
    before = copy.deepcopy(model.params)
    good = {k: w + 1 for k, w in model.params.items()}

    def refused(error, words, content=None, **change):
        if content is not None:
            path.write_bytes(content)
        else:
            save_file({k: w for k, w in {**good, **change}.items() if w is not None}, path)
        with pytest.raises(error, match=words):
            load(model, path)
        assert all((w == before[k]).all() for k, w in model.params.items())

    for content in (b"", b"abc", b"\x80\x04N.", b"\xff" * 64, bytes(100)):
        refused(ValueError, "^path: expected a safetensors file", content)
    save(model, path)
    refused(ValueError, "^path: expected a safetensors file", path.read_bytes()[:-5])
    refused(ValueError, "^state: .*2.bias", **{"2.bias": None})
    refused(ValueError, "^state: .*3.bias", **{"3.bias": np.zeros(3)})
    refused(
        ValueError,
        r"^0.weight: expected shape \(8, 5\), got \(5, 8\)",
        **{"0.weight": np.zeros((5, 8))},
    )
    refused(ValueError, "^2.weight: expected finite", **{"2.weight": np.full((3, 8), np.nan)})
    refused(ValueError, "^2.weight: expected finite", **{"2.weight": np.full((3, 8), np.inf)})
    with pytest.raises(FileNotFoundError):
        load(model, tmp_path / "nothing")
    for call in (load, save):
        with pytest.raises(OSError):
            call(model, tmp_path / "no" / "folder")
        with pytest.raises(TypeError, match="^path: "):
            call(model, 3)
        with pytest.raises(TypeError, match="^model: "):
            call({"w": np.ones(2)}, path)


def test_brain_floats_from_pytorch_are_loaded_or_refused(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path, model = tmp_path / "a", network()
    for dtype in (torch.float16, torch.bfloat16):
        module = torch.nn.Sequential(
            torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        ).to(dtype)
        save_file(module.state_dict(), path)
        try:
            load(model, path)
        except (ValueError, TypeError) as e:
            assert str(e)
        else:
            np.testing.assert_array_equal(
                model.params["2.bias"], module[2].bias.detach().double().numpy()
            )


def test_what_is_public():
    assert issubclass(SGD, Optimizer) and issubclass(AdamW, Optimizer)
    assert History().epochs == [] and History().best_epoch is None
    with pytest.raises(NotImplementedError):
        Optimizer({"w": np.ones(1)}, 0.1, memories=0).step({"w": np.ones(1)})
