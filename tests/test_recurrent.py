"""Recurrent layers beside PyTorch and their plain definitions: shapes, masks, states, bad input."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes import load, save, set_num_threads
from dlnotes.core.execution import num_threads
from dlnotes.kernels.recurrence import (
    plain_backward,
    plain_forward,
    recurrence_backward,
    recurrence_forward,
    recurrence_plan,
    weight_panels,
)
from dlnotes.lstm import GRU, LSTM
from dlnotes.rnn import RNN, Recurrent
from dlnotes.training import Dropout

LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
CELLS = ["tanh", "relu", "gru", "lstm"]
kinds = st.sampled_from(sorted(LAYERS))
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_pytorch():
    "Its threads wait for each other at every step, which takes long on a busy machine."
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def floats(rng, *shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


def layer_and_torch(kind, inputs, hidden, dtype=np.float64, seed=0, **options):
    "A layer of ours, and PyTorch's with the same weights, in float64."
    import torch

    ours = LAYERS[kind](inputs, hidden, rng=seed, dtype=dtype, **options)
    theirs = getattr(torch.nn, kind)(inputs, hidden, batch_first=True, **options).double()
    theirs.load_state_dict({k: torch.tensor(v).double() for k, v in ours.state_dict().items()})
    return ours, theirs


def each(state):
    "The arrays of a state."
    return list(state) if isinstance(state, tuple) else [state]


def as_state(arrays):
    return tuple(arrays) if len(arrays) > 1 else arrays[0]


def in_torch(net, x, state, lengths, grad_y, grad_ends):
    "Outputs, last states and gradients by x, the first states and all weights, as arrays."
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    leaves = [torch.tensor(a).double().requires_grad_() for a in (x, *state)]
    first = as_state(leaves[1:])
    if lengths is None:
        y, ends = net(leaves[0], first)
    else:
        packed = pack_padded_sequence(leaves[0], torch.tensor(lengths), True, False)
        y, ends = net(packed, first)
        y, _ = pad_packed_sequence(y, True, total_length=x.shape[1])
    weights = dict(net.named_parameters())
    grads = torch.autograd.grad(
        [y, *each(ends)],
        [*leaves, *weights.values()],
        [torch.tensor(g).double() for g in (grad_y, *grad_ends)],
    )
    return (
        [a.detach().numpy() for a in (y, *each(ends))],
        [g.numpy() for g in grads],
        list(weights),
    )


def compare(kind, m, steps, inputs, hidden, dtype, tolerance, seed, padded, **options):
    rng = np.random.default_rng(seed)
    ours, theirs = layer_and_torch(kind, inputs, hidden, dtype, seed, **options)
    d = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    n = 1 + (kind == "LSTM")
    x = floats(rng, m, steps, inputs, dtype=dtype)
    state = [floats(rng, d, m, hidden, dtype=dtype) for _ in range(n)]
    lengths = rng.integers(1, steps + 1, m) if padded else None
    mask = None if lengths is None else np.arange(steps) < lengths[:, None]
    (y, ends), cache = ours.forward(x, as_state(state), mask)
    grad_y = floats(rng, *y.shape, dtype=dtype)
    grad_ends = [floats(rng, *a.shape, dtype=dtype) for a in each(ends)]
    (dx, first), grads = ours.backward((grad_y, as_state(grad_ends)), cache)
    values, slopes, names = in_torch(theirs, x, state, lengths, grad_y, grad_ends)
    assert list(grads) == list(ours.params) == names
    got = [y, *each(ends), dx, *each(first), *grads.values()]
    for a, wanted in zip(got, values + slopes):
        assert a.shape == wanted.shape and a.dtype == dtype
        assert abs(a - wanted).max() <= tolerance * max(1, abs(wanted).max())
    without, _ = ours(x, as_state(state), mask)
    np.testing.assert_array_equal(without, y)
    nothing = ours.backward((grad_y, as_state(grad_ends)), cache, input_grad=False)
    assert nothing[0][0] is None
    assert all((nothing[1][k] == g).all() for k, g in grads.items())


# --- PyTorch


@settings(max_examples=60, deadline=None)
@given(
    kind=kinds,
    m=st.integers(1, 20),
    steps=st.integers(1, 12),
    inputs=st.integers(1, 40),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 3),
    both=st.booleans(),
    bias=st.booleans(),
    padded=st.booleans(),
    relu=st.booleans(),
    seed=seeds,
)
def test_parity_with_pytorch(
    kind, m, steps, inputs, hidden, layers, both, bias, padded, relu, seed
):
    options = {"nonlinearity": "relu"} if relu and kind == "RNN" else {}
    compare(
        kind,
        m,
        steps,
        inputs,
        hidden,
        np.float64,
        1e-10,
        seed,
        padded,
        num_layers=layers,
        bidirectional=both,
        bias=bias,
        **options,
    )


@pytest.mark.parametrize("kind", sorted(LAYERS))
@pytest.mark.parametrize(
    "sizes",
    [(33, 40, 65, 128), (1, 300, 64, 64), (128, 9, 28, 100), (3, 150, 1, 37), (2, 5, 130, 1)],
)
def test_parity_at_sizes_of_several_chunks_threads_and_panels(kind, sizes):
    compare(kind, *sizes, np.float64, 1e-10, 0, True, bidirectional=True)
    # float32: sums of up to 128 + 128 products in each of up to 300 steps, whose errors of 6e-8
    # each are carried from step to step
    compare(kind, *sizes, np.float32, 1e-4, 0, False)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_weights_go_to_pytorch_and_back_in_files(kind, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    options = dict(num_layers=3, bidirectional=True)
    ours, theirs = layer_and_torch(kind, 4, 6, np.float32, **options)
    theirs = theirs.float()
    save(ours, tmp_path / "ours.safetensors")
    fresh = getattr(torch.nn, kind)(4, 6, batch_first=True, **options)
    fresh.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    save_file({k: v + 1 for k, v in theirs.state_dict().items()}, tmp_path / "theirs.safetensors")
    x = floats(np.random.default_rng(0), 5, 7, 4, dtype=np.float32)
    with torch.no_grad():
        assert abs(fresh(torch.tensor(x))[0].numpy() - ours(x)[0]).max() < 1e-6
    before = ours.state_dict()["weight_hh_l2_reverse"].copy()
    load(ours, tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(ours.params["weight_hh_l2_reverse"], before + 1)


def test_first_values_are_pytorchs_even_ones():
    params = LSTM(30, 100, rng=0).params
    for p in params.values():
        assert abs(p).max() <= 0.1 and abs(p.std() * 10 * 3**0.5 - 1) < 0.1


# --- kernels beside their definition


def arguments(cell, m, steps, inputs, n, dtype, seed, mask):
    rng, k = np.random.default_rng(seed), {"lstm": 4, "gru": 3}.get(cell, 1) * n
    weights = [
        floats(rng, *s, dtype=dtype) / dtype(n**0.5) for s in [(k, inputs), (k, n), (k,), (k,)]
    ]
    states = [
        tuple(floats(rng, m, n, dtype=dtype) for _ in range(1 + (cell == "lstm"))) for _ in range(2)
    ]
    x, grad = floats(rng, m, steps, inputs, dtype=dtype), floats(rng, m, steps, n, dtype=dtype)
    holes = rng.random((m, steps)) < 0.6 if mask else None
    return (cell, x, states[0], weights, holes), (grad, states[1])


def both_ways(ahead, back, args, grads, reverse):
    y, ends, cache = ahead(*args, reverse)
    dx, first, dw = back(*grads, cache, args[3])
    return [y, *ends, dx, *first, *dw]


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=30, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    m=st.integers(1, 18),
    steps=st.integers(1, 9),
    inputs=st.integers(1, 40),
    n=st.integers(1, 40),
    mask=st.booleans(),
    reverse=st.booleans(),
    seed=seeds,
)
def test_kernels_beside_their_definition(dtype, cell, m, steps, inputs, n, mask, reverse, seed):
    args, grads = arguments(cell, m, steps, inputs, n, dtype, seed, mask)
    got = both_ways(recurrence_forward, recurrence_backward, args, grads, reverse)
    wanted = both_ways(plain_forward, plain_backward, args, grads, reverse)
    tolerance = 1e-11 if dtype is np.float64 else 1e-4  # 9 steps of sums of up to 160 products
    for a, b in zip(got, wanted):
        assert a.shape == b.shape and a.dtype == dtype
        assert abs(a - b).max() <= tolerance * max(1, abs(b).max())


@pytest.mark.kernel
@pytest.mark.parametrize("cell", CELLS)
def test_chunks_and_threads(cell):
    "More steps than a chunk has, and a batch that two threads share."
    for sizes in [(1, 140, 3, 5), (3, 45, 2, 4), (21, 9, 33, 34)]:
        args, grads = arguments(cell, *sizes, np.float64, 0, True)
        wanted = both_ways(plain_forward, plain_backward, args, grads, True)
        for a, b in zip(
            both_ways(recurrence_forward, recurrence_backward, args, grads, True), wanted
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_work_is_shared_only_where_it_pays():
    small, large = np.zeros((32, 3, 8), np.float32), np.zeros((70, 100, 64), np.float32)
    kept = num_threads()
    try:
        set_num_threads(4)
        assert len(recurrence_plan("gru", small, 8).cuts) == 1
        cuts = recurrence_plan("gru", large, 64).cuts
        assert len(cuts) == 4 and cuts[0][0] == 0 and cuts[-1][1] == 70
        assert all(a[1] == b[0] for a, b in zip(cuts, cuts[1:]))
        x, layer = floats(np.random.default_rng(0), 70, 100, 64, dtype=np.float32), GRU(64, 64)
        y, _ = layer(x)
        set_num_threads(1)
        np.testing.assert_array_equal(layer(x)[0], y)
    finally:
        set_num_threads(kept)


@pytest.mark.kernel
def test_panels_hold_all_columns_and_zeros():
    w = np.arange(5 * 70, dtype=np.float32).reshape(5, 70)
    for matrix in (w, w.T, w[:, ::2], w[:1, :1]):
        panels = weight_panels(matrix)
        joined = np.hstack(panels)
        np.testing.assert_array_equal(joined[:, : matrix.shape[1]], matrix)
        assert not joined[:, matrix.shape[1] :].any() and panels.ctypes.data % 64 == 0


# --- states and masks


@pytest.mark.parametrize("kind", sorted(LAYERS))
@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 29), max_size=3), layers=st.integers(1, 2), seed=seeds)
def test_piece_by_piece_is_the_whole(kind, cuts, layers, seed):
    rng = np.random.default_rng(seed)
    model = LAYERS[kind](3, 5, num_layers=layers, rng=seed, dtype=np.float64)
    x, mask = floats(rng, 4, 30, 3), rng.random((4, 30)) < 0.8
    (whole, end), state, ys = model(x, mask=mask), None, []
    for part, seen in zip(*(np.split(a, sorted(set(cuts)), axis=1) for a in (x, mask))):
        y, state = model(part, state, seen)
        ys.append(y)
    np.testing.assert_allclose(np.concatenate(ys, axis=1), whole, rtol=0, atol=1e-13)
    for a, b in zip(each(state), each(end)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_holes_are_as_if_they_were_not_there(kind):
    rng = np.random.default_rng(0)
    model = LAYERS[kind](3, 5, num_layers=2, bidirectional=True, rng=0, dtype=np.float64)
    x, mask = floats(rng, 6, 15, 3), rng.random((6, 15)) < 0.6
    mask[0] = False
    x[~mask] = np.nan
    (y, ends), cache = model.forward(x, mask=mask)
    grad_y, grad_ends = floats(rng, *y.shape), as_state([floats(rng, *e.shape) for e in each(ends)])
    grad_y[~mask] = np.nan
    (dx, first), grads = model.backward((grad_y, grad_ends), cache)
    assert (y[~mask] == 0).all() and (dx[~mask] == 0).all()
    assert (y[0] == 0).all() and all((e[:, 0] == 0).all() for e in each(ends))
    for g, e in zip(each(first), each(grad_ends)):
        np.testing.assert_array_equal(g[:, 0], e[:, 0])
    total = {name: 0 for name in grads}
    for k in range(1, 6):
        (own, last), cache = model.forward(x[k : k + 1, mask[k]])
        np.testing.assert_allclose(y[k, mask[k]], own[0], rtol=0, atol=1e-13)
        for a, b in zip(each(ends), each(last)):
            np.testing.assert_allclose(a[:, k], b[:, 0], rtol=0, atol=1e-13)
        part = as_state([e[:, k : k + 1] for e in each(grad_ends)])
        (own, _), more = model.backward((grad_y[k : k + 1, mask[k]], part), cache)
        np.testing.assert_allclose(dx[k, mask[k]], own[0], rtol=0, atol=1e-12)
        total = {name: g + more[name] for name, g in total.items()}
    for name, g in grads.items():
        np.testing.assert_allclose(g, total[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_mask_of_true_is_none_and_no_state_is_zeros(kind):
    rng = np.random.default_rng(0)
    model, x = LAYERS[kind](3, 5, num_layers=2, rng=0, dtype=np.float64), floats(rng, 4, 6, 3)
    zeros = as_state([np.zeros((2, 4, 5))] * (1 + (kind == "LSTM")))
    (y, ends), cache = model.forward(x)
    (same, last), _ = model.forward(x, zeros, np.ones((4, 6), bool))
    np.testing.assert_array_equal(y, same)
    assert all((a == b).all() for a, b in zip(each(ends), each(last)))
    np.testing.assert_array_equal(each(ends)[0][1], y[:, -1])


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_gradients_that_are_none_are_zeros(kind):
    rng = np.random.default_rng(0)
    model = LAYERS[kind](3, 5, 2, bidirectional=True, rng=0, dtype=np.float64)
    x = floats(rng, 4, 6, 3)
    (y, ends), cache = model.forward(x)
    grad_y, grad_ends = floats(rng, *y.shape), as_state([floats(rng, *e.shape) for e in each(ends)])
    nothing = as_state([np.zeros(e.shape) for e in each(ends)])

    def flat(grad):
        (dx, first), grads = model.backward(grad, cache)
        return np.concatenate([a.ravel() for a in (dx, *each(first), *grads.values())])

    np.testing.assert_array_equal(flat((grad_y, None)), flat((grad_y, nothing)))
    np.testing.assert_array_equal(flat((None, grad_ends)), flat((0 * grad_y, grad_ends)))
    np.testing.assert_allclose(
        flat((grad_y, None)) + flat((None, grad_ends)),
        flat((grad_y, grad_ends)),
        rtol=0,
        atol=1e-12,
    )
    assert not flat((None, None)).any()


def test_backward_twice_and_inputs_of_any_layout():
    rng = np.random.default_rng(0)
    model, x = LSTM(6, 5, 2, rng=0, dtype=np.float64), floats(rng, 4, 7, 6)
    (y, ends), cache = model.forward(x)
    grad = floats(rng, *y.shape)
    kept = x.copy(), grad.copy(), [p.copy() for p in model.params.values()]
    once, again = (model.backward((grad, ends), cache) for _ in range(2))
    assert all((a == again[1][k]).all() for k, a in once[1].items())
    for a, b in zip((x, grad, list(model.params.values())), kept):
        assert all((p == q).all() for p, q in zip(a, b))
    for same in (
        np.asfortranarray(x),
        x.repeat(2, axis=2)[..., ::2],
        x.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    ):
        (z, _), other = model.forward(same)
        np.testing.assert_array_equal(z, y)
        strange = np.asfortranarray(grad)
        np.testing.assert_array_equal(model.backward((strange, ends), other)[0][0], once[0][0])


def test_large_sums_neither_overflow_nor_warn():
    x = np.full((2, 5, 3), 1e30, np.float32)
    for layer in LAYERS.values():
        (y, ends), cache = (model := layer(3, 4, rng=0)).forward(x)
        assert np.isfinite(y).all() and abs(y).max() <= 1
        (dx, _), _ = model.backward((np.ones_like(y), None), cache)
        assert np.isfinite(dx).all()


# --- dropout


def test_dropout_scales_what_stays():
    x = np.ones((400, 500), np.float32)
    layer = Dropout(0.25, rng=0)
    y, cache = layer.forward(x)
    assert y.dtype == np.float32 and set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / x.size) ** 0.5
    np.testing.assert_array_equal(layer.backward(x, cache)[0], y)
    np.testing.assert_array_equal(Dropout(0.25, 0)(x), y)  # the seed decides
    assert (layer(x) != y).any()
    np.testing.assert_array_equal(layer.eval()(x), x)
    np.testing.assert_array_equal(Dropout(0)(x), x)
    assert repr(layer) == "Dropout(p=0.25)"


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_dropout_between_layers_only(kind):
    rng = np.random.default_rng(0)
    x = floats(rng, 5, 8, 3)
    one = LAYERS[kind](3, 6, rng=0, dtype=np.float64, dropout=0.5)
    np.testing.assert_array_equal(one(x)[0], one(x)[0])
    two = LAYERS[kind](3, 6, 2, rng=0, dtype=np.float64, dropout=0.5)
    (y, ends), cache = two.forward(x)
    assert (two(x)[0] != y).any()
    first = each(ends)[0][0]
    np.testing.assert_array_equal(each(two(x)[1])[0][0], first)  # the first layer is as it was
    np.testing.assert_array_equal(two.eval()(x)[0], two(x)[0])
    assert not two.training and two.train().training


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_gradients_through_dropout(kind):
    "Finite differences, with the generator set back before each run."
    rng = np.random.default_rng(0)
    model = LAYERS[kind](2, 3, 3, dropout=0.4, rng=0, dtype=np.float64)
    x, start = floats(rng, 2, 4, 2), copy.deepcopy(model.rng.bit_generator.state)

    def run():
        model.rng.bit_generator.state = copy.deepcopy(start)
        return model.forward(x)

    (y, _), cache = run()
    grad = floats(rng, *y.shape)
    (dx, _), grads = model.backward((grad, None), cache)
    for a, g in [(x, dx), *zip(model.params.values(), grads.values())]:
        at = tuple(rng.integers(0, n) for n in a.shape)
        kept, values = a[at], []
        for h in (1e-6, -1e-6):
            a[at] = kept + h
            values.append((run()[0][0] * grad).sum())
        a[at] = kept
        assert abs((values[0] - values[1]) / 2e-6 - g[at]) < 1e-8


# --- seeds and threads


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_the_seed_decides(kind):
    make = LAYERS[kind]
    x = floats(np.random.default_rng(0), 5, 8, 3, dtype=np.float32)
    a, b, c = (make(3, 6, 2, dropout=0.5, rng=seed) for seed in (1, np.random.default_rng(1), 2))
    assert all((p == b.params[k]).all() for k, p in a.params.items())
    assert any((p != c.params[k]).any() for k, p in a.params.items())
    for _ in range(2):
        np.testing.assert_array_equal(a(x)[0], b(x)[0])
    np.testing.assert_array_equal(copy.deepcopy(a)(x)[0], a(x)[0])


def test_several_threads_at_once_give_the_same():
    rng = np.random.default_rng(0)
    jobs = []
    for kind in sorted(LAYERS):
        for m, steps in [(40, 50), (1, 200), (9, 3)]:
            model = LAYERS[kind](20, 33, 2, bidirectional=True, rng=0)
            jobs.append(
                (model, floats(rng, m, steps, 20, dtype=np.float32), rng.random((m, steps)) < 0.8)
            )

    def run(job):
        model, x, mask = job
        (y, ends), cache = model.forward(x, mask=mask)
        (dx, _), grads = model.backward((y, ends), cache)
        return [y, *each(ends), dx, *grads.values()]

    wanted = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda i: (i % len(jobs), run(jobs[i % len(jobs)])), range(36)):
            assert all((a == b).all() for a, b in zip(got[1], wanted[got[0]]))


# --- bad input

X, MASK = np.zeros((4, 6, 3), np.float32), np.ones((4, 6), bool)
STATE = np.zeros((2, 4, 5), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"x": X[0]}, ValueError, "x: expected shape"),
        ({"x": X[..., :2]}, ValueError, "x: expected"),
        ({"x": X[:0]}, ValueError, "x: expected at least"),
        ({"x": X[:, :0]}, ValueError, "x: expected at least"),
        ({"x": X.astype(np.float64)}, TypeError, "x: expected dtype float32"),
        ({"x": "text"}, TypeError, "x: "),
        ({"x": X.astype(complex)}, TypeError, "x: "),
        ({"mask": MASK.astype(int)}, TypeError, "mask: expected True and False"),
        ({"mask": MASK[:2]}, ValueError, r"mask: expected shape \(4, 6\)"),
        ({"mask": MASK[:, :5]}, ValueError, "mask: "),
        ({"mask": MASK[..., None]}, ValueError, "mask"),
        ({"mask": [4, 6]}, TypeError, "mask: "),
        ({"mask": [[True], [True, False]]}, ValueError, "mask: expected an array"),
        ({"state": STATE[:1]}, ValueError, "state: "),
        ({"state": STATE[:, :1]}, ValueError, "state: "),
        ({"state": STATE[..., :4]}, ValueError, "state: "),
        ({"state": 3.0}, TypeError, "state: "),
        ({"state": STATE.astype(np.float64)}, TypeError, "state: "),
        ({"state": (STATE, STATE, STATE)}, (TypeError, ValueError), "state: "),
    ],
)
def test_bad_arguments_are_named(change, error, name):
    for kind, layer in LAYERS.items():
        model, args = layer(3, 5, 2, rng=0), {"x": X, **change}
        if kind == "LSTM" and isinstance(args.get("state"), np.ndarray):
            for pair in [(args["state"], STATE), (STATE, args["state"])]:
                with pytest.raises(error, match=name):
                    model.forward(**{**args, "state": pair})
            with pytest.raises((TypeError, ValueError), match="state: expected a pair"):
                model(**args)
        else:
            for f in (model, model.forward):
                with pytest.raises(error, match=name):
                    f(**args)


@pytest.mark.parametrize(
    ("grad", "error", "name"),
    [
        (None, TypeError, "grad: expected a pair"),
        (X, TypeError, "grad: expected a pair"),
        ((X,), TypeError, "grad: "),
        ((X, None), ValueError, "grad_y: "),
        ((np.zeros((4, 6, 5)), None), ValueError, "grad_y: expected float32"),
        ((None, STATE[:1]), (TypeError, ValueError), "grad_state_n: "),
        ((None, 1.0), TypeError, "grad_state_n: "),
    ],
)
def test_bad_gradients_are_named(grad, error, name):
    for layer in LAYERS.values():
        model = layer(3, 5, 2, rng=0)
        with pytest.raises(error, match=name):
            model.backward(grad, model.forward(X)[1])


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"input_size": 0}, ValueError, "input_size"),
        ({"input_size": 2.0}, TypeError, "input_size"),
        ({"hidden_size": -1}, ValueError, "hidden_size"),
        ({"hidden_size": True}, TypeError, "hidden_size"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"num_layers": "2"}, TypeError, "num_layers"),
        ({"bias": 1}, TypeError, "bias"),
        ({"bidirectional": None}, TypeError, "bidirectional"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"dropout": "0"}, TypeError, "dropout"),
        ({"rng": "seed"}, TypeError, "rng"),
        ({"rng": -1}, ValueError, "rng"),
        ({"dtype": np.int64}, TypeError, "dtype"),
        ({"dtype": np.float16}, TypeError, "dtype"),
    ],
)
def test_bad_settings_are_named(options, error, name):
    for layer in LAYERS.values():
        with pytest.raises(error, match=f"{name}: expected"):
            layer(**{"input_size": 3, "hidden_size": 5, **options})


def test_other_settings_that_are_refused():
    with pytest.raises(ValueError, match="nonlinearity: expected"):
        RNN(3, 5, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match="cell: expected one of"):
        Recurrent("elman", 3, 5)
    for p, error in [(1, ValueError), (-0.1, ValueError), ("half", TypeError), (True, TypeError)]:
        with pytest.raises(error, match="p: expected"):
            Dropout(p)
    with pytest.raises(TypeError, match="rng: expected"):
        Dropout(rng="seed")
    y, cache = Dropout(rng=0).forward(X)
    with pytest.raises(ValueError, match="grad: expected"):
        Dropout().backward(X[:1], cache)


def test_parameters_that_were_replaced_are_refused_before_a_kernel_reads_past_them():
    for layer in LAYERS.values():
        for name in ("weight_ih_l0", "weight_hh_l1", "bias_ih_l0", "bias_hh_l1"):
            model = layer(3, 5, 2, rng=0)
            _, cache = model.forward(X)
            for wrong in (model.params[name][:2], model.params[name].astype(np.float64)):
                model.params[name] = wrong
                for f in (
                    lambda m=model: m(X),
                    lambda m=model, c=cache: m.backward((None, None), c),
                ):
                    with pytest.raises((ValueError, TypeError), match="expected"):
                        f()


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_the_cache_of_another_layer_is_refused_before_a_kernel_reads_past_it(kind):
    own = LAYERS[kind](3, 5, rng=0)
    (y, _), cache = own.forward(X)
    others = [layer(3, 5) for name, layer in LAYERS.items() if name != kind]
    others += [
        LAYERS[kind](*sizes, **options)
        for *sizes, options in [
            (3, 16, {}),
            (3, 4, {}),
            (7, 5, {}),
            (3, 5, {"num_layers": 2}),
            (3, 5, {"bidirectional": True}),
            (3, 5, {"bias": False}),
            (3, 5, {"dtype": np.float64}),
        ]
    ]
    for other in others:
        for grad in ((y, None), (None, None)):
            with pytest.raises(ValueError, match="cache: expected one that forward of"):
                other.backward(grad, cache)
    for wrong in (None, (), (1, 2, 3), [*cache]):
        with pytest.raises(ValueError, match="cache: "):
            own.backward((y, None), wrong)
    _, grads = copy.deepcopy(own).backward((y, None), cache)
    for name, g in own.backward((y, None), cache)[1].items():
        np.testing.assert_array_equal(g, grads[name])


def test_how_layers_call_themselves():
    assert repr(RNN(3, 5)) == "RNN(3, 5)"
    assert repr(RNN(3, 5, nonlinearity="relu")) == "RNN(3, 5, nonlinearity='relu')"
    assert (
        repr(LSTM(3, 5, 2, bidirectional=True, dropout=0.2))
        == "LSTM(3, 5, num_layers=2, dropout=0.2, bidirectional=True)"
    )
