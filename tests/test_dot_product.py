"""Attention beside PyTorch's, for shapes, masks and layouts of all kinds."""

import os
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlnotes.core.execution import num_threads, set_num_threads
from dlnotes.kernels import tiled_attention
from dlnotes.kernels.tiled_attention import attention_backward, attention_forward, attention_memory
from dlnotes.transformer import scaled_dot_product_attention, scaled_dot_product_attention_backward
from tests.parity import parity, torch

COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
EXAMPLES = 60 if COMPILED else 12
LONGEST = 150 if COMPILED else 40


@pytest.fixture(params=[0, 1 << 30], ids=["tiles", "table"])
def small(request, monkeypatch):
    "Each size by tiles, and by a table of all weights."
    monkeypatch.setattr(tiled_attention, "_SMALL", request.param)


def in_torch(grad, query, key, value, mask=None, is_causal=False, scale=None):
    "PyTorch's answer and gradients, in float64; its `is_causal` takes no mask besides."
    tensors = [
        torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (query, key, value)
    ]
    mask = None if mask is None else torch.tensor(mask)
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=bool).tril()
        if mask is None:
            mask = seen
        elif mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = torch.where(seen, mask, -torch.inf)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.double()
    out = torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=scale)
    grads = torch.autograd.grad(out, tensors, torch.tensor(grad, dtype=torch.float64))
    return [a.detach().numpy() for a in (out, *grads)]


def ours(grad, *args, **options):
    return [
        scaled_dot_product_attention(*args, **options),
        *scaled_dot_product_attention_backward(grad, *args, **options),
    ]


def numbers(rng, lead, queries, keys, e, ev, dtype=np.float64):
    "Gradient, queries, keys, values."
    shapes = (queries, ev), (queries, e), (keys, e), (keys, ev)
    return [rng.standard_normal((*lead, *shape)).astype(dtype) for shape in shapes]


def some_mask(rng, kind, lead, queries, keys):
    whole = (*lead, queries, keys)
    shape = {
        "all": whole,
        "table": (queries, keys),
        "queries": (*lead, queries, 1),
        "padding": (*lead[:1], *[1] * (len(whole) - 1 - len(lead[:1])), keys),
    }
    if kind is None:
        return None
    kind, form = kind
    if kind == "bool":
        return rng.random(shape[form]) < 0.6
    mask = rng.standard_normal(shape[form])
    return np.where(rng.random(shape[form]) < 0.8, mask, -np.inf)


KINDS = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from(["bool", "float"]), st.sampled_from(["all", "table", "queries", "padding"])
    ),
)


@parity
@pytest.mark.kernel
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 1),
    lead=st.lists(st.integers(1, 3), max_size=3),
    queries=st.integers(1, LONGEST),
    keys=st.integers(1, LONGEST),
    e=st.integers(1, 70),
    ev=st.integers(1, 70),
    kind=KINDS,
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.3, -1.0, 0.0]),
)
def test_parity_with_torch(small, seed, lead, queries, keys, e, ev, kind, is_causal, scale):
    rng = np.random.default_rng(seed)
    if not COMPILED:
        e, ev, lead = min(e, 20), min(ev, 20), lead[:1]
    grad, *args = numbers(rng, lead, queries, keys, e, ev)
    mask = some_mask(rng, kind, tuple(lead), queries, keys)
    options = {"is_causal": is_causal, "scale": scale}
    for got, wanted in zip(
        ours(grad, *args, mask, **options), in_torch(grad, *args, mask, **options)
    ):
        assert got.shape == wanted.shape and got.dtype == np.float64
        assert abs(got - wanted).max() <= 1e-10


@parity
@pytest.mark.kernel
@pytest.mark.parametrize("queries, keys, e, ev", [(3, 17, 1, 5), (64, 64, 16, 16), (33, 70, 24, 8)])
def test_float32(small, queries, keys, e, ev):
    """Beside float64: scores of size 1 to 5 are off by about e roundings, the sums by as many as
    there are terms; 200 roundings of numbers near 10 are 2e-4, and most cancel."""
    rng = np.random.default_rng(0)
    grad, *args = numbers(rng, (2,), queries, keys, e, ev, np.float32)
    for got, wanted in zip(ours(grad, *args), in_torch(grad, *args)):
        assert got.dtype == np.float32
        assert abs(got - wanted).max() < 2e-5


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_read_outside(small, dtype):
    "Each argument lies in memory full of NaN, and no NaN comes out."
    rng = np.random.default_rng(0)
    for queries, keys, e, ev in [(1, 1, 1, 1), (5, 7, 3, 2), (33, 65, 17, 31), (31, 66, 32, 16)]:
        plain = numbers(rng, (2, 3), queries, keys, e, ev, dtype)
        for heads_between in (False, True):
            inside = []
            for a in plain:
                laid = a.transpose(0, 2, 1, 3) if heads_between else a
                memory = np.full((laid.shape[0] + 2, *laid.shape[1:]), np.nan, dtype)
                memory[1:-1] = laid
                laid = memory[1:-1]
                inside.append(laid.transpose(0, 2, 1, 3) if heads_between else laid)
            grad, *args = inside
            out, cache = attention_forward(*args)
            wanted = ours(*plain)
            for a, b in zip((out, *attention_backward(grad, cache)), wanted):
                assert abs(a - b).max() < 100 * np.finfo(dtype).eps  # NumPy's products differ


@pytest.mark.kernel
def test_heads_beside_each_other_are_not_copied(small):
    "Views (N, H, T, E) of (N, T, H, E), as a layer's projections give them."
    rng = np.random.default_rng(0)
    grad, *args = [rng.standard_normal((2, 9, 3, 5)) for _ in range(4)]
    grad, *args = [a.transpose(0, 2, 1, 3) for a in (grad, *args)]
    assert all(np.shares_memory(attention_memory(a), a) for a in args)
    out, cache = attention_forward(*args)
    results = [out, *attention_backward(grad, cache)]
    for got, wanted in zip(results, ours(grad, *args)):
        assert got.transpose(0, 2, 1, 3).flags.c_contiguous
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)
    mixed, cache = attention_forward(args[0], *[np.ascontiguousarray(a) for a in args[1:]])
    np.testing.assert_allclose(mixed, out, rtol=0, atol=1e-13)
    for got, wanted in zip(attention_backward(np.ascontiguousarray(grad), cache), results[1:]):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores(small, dtype):
    "Far beyond where exp overflows: weights are 0 and 1, and nothing is NaN."
    key = np.eye(6, dtype=dtype)
    value = np.arange(12, dtype=dtype).reshape(6, 2)
    query = 1e4 * key[[3, 0, 5]]
    with np.errstate(all="raise"):
        out = scaled_dot_product_attention(query, key, value)
    assert np.array_equal(out, value[[3, 0, 5]])
    grads = scaled_dot_product_attention_backward(np.ones((3, 2), dtype), query, key, value)
    assert all(np.isfinite(a).all() for a in grads)
    others = scaled_dot_product_attention(-query, key, value)[0]
    assert abs(others - value[[0, 1, 2, 4, 5]].mean(0)).max() < 50 * np.finfo(dtype).eps


@parity
@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_fully_masked_rows(small, kind, is_causal):
    rng = np.random.default_rng(0)
    grad, *args = numbers(rng, (2, 2), 6, 7, 4, 3)
    seen = np.ones((2, 1, 6, 7), bool)
    seen[0, :, 2] = seen[1, :, 4:] = False
    mask = seen if kind == "bool" else np.where(seen, 0.0, -np.inf)
    got = ours(grad, *args, mask, is_causal=is_causal)
    for a, b in zip(got, in_torch(grad, *args, mask, is_causal)):
        assert abs(a - np.nan_to_num(b)).max() < 1e-10
    out, dq = got[:2]
    for a in (out, dq):
        assert (a[0, :, 2] == 0).all() and (a[1, :, 4:] == 0).all()
        assert (a[0, :, 1] != 0).any()
    padding = np.array([True, False])[:, None, None, None]
    for a in ours(grad, *args, padding, is_causal=is_causal):
        assert (a[1] == 0).all() and (a[0] != 0).any()


def test_a_large_number_in_a_mask_is_no_infinity(small):
    "A row of -1e9 everywhere, as some masks have it, is a row of equal weights again."
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 5, 4))
    out = scaled_dot_product_attention(
        query.astype(np.float32) * 0,
        key.astype(np.float32),
        value.astype(np.float32),
        np.full((5, 5), -1e9),
    )
    assert np.allclose(out, value.mean(0), rtol=0, atol=1e-6)


@pytest.mark.kernel
@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,), (2, 0)])
def test_empty(small, lead):
    "Without keys the answers are 0, without queries there are none; gradients likewise."
    for queries, keys, ev in [(4, 0, 3), (0, 5, 3), (0, 0, 3), (4, 5, 0)]:
        grad, *args = numbers(np.random.default_rng(0), lead, queries, keys, 2, ev)
        for is_causal in (False, True):
            got = ours(grad, *args, is_causal=is_causal)
            assert got[0].shape == (*lead, queries, ev)
            assert all((a == 0).all() for a in got)
            assert [a.shape for a in got[1:]] == [a.shape for a in args]
    with pytest.raises(ValueError, match="query: .*features"):
        scaled_dot_product_attention(*[np.ones((*lead, 3, 0))] * 3)


GOOD = {
    "query": np.ones((2, 3, 4)),
    "key": np.ones((2, 5, 4)),
    "value": np.ones((2, 5, 6)),
    "attn_mask": None,
    "is_causal": False,
    "scale": None,
}


@pytest.mark.parametrize(
    "name, bad, error",
    [
        ("query", np.ones(4), ValueError),
        ("query", np.ones((3, 3, 4)), ValueError),
        ("query", np.ones((3, 4)), ValueError),
        ("query", "text", TypeError),
        ("query", np.ones((2, 3, 4), complex), TypeError),
        ("query", [[1, 2], [3]], ValueError),
        ("query", np.full((2, 3, 4), np.nan), ValueError),
        ("query", None, TypeError),
        ("key", np.ones((2, 5, 3)), ValueError),
        ("key", np.ones((1, 5, 4)), ValueError),
        ("key", np.ones((2, 5, 4), np.float32), TypeError),
        ("key", np.ones((5, 4)), ValueError),
        ("key", np.full((2, 5, 4), np.inf), ValueError),
        ("key", np.ones(()), ValueError),
        ("value", np.ones((2, 4, 6)), ValueError),
        ("value", np.ones((3, 5, 6)), ValueError),
        ("value", np.ones((2, 5, 6), np.float32), TypeError),
        ("value", np.full((2, 5, 6), -np.inf), ValueError),
        ("attn_mask", np.ones((3, 4), bool), ValueError),
        ("attn_mask", "no", TypeError),
        ("attn_mask", np.ones((3, 5), int), TypeError),
        ("attn_mask", np.full(5, np.inf), ValueError),
        ("attn_mask", np.ones((1, 2, 3, 5), bool), ValueError),
        ("attn_mask", np.full((3, 5), np.nan), ValueError),
        ("attn_mask", np.ones((0, 5), bool), ValueError),
        ("attn_mask", [[True], [1, 2]], ValueError),
        ("is_causal", 1, TypeError),
        ("is_causal", None, TypeError),
        ("is_causal", "yes", TypeError),
        ("scale", "1", TypeError),
        ("scale", np.nan, ValueError),
        ("scale", True, TypeError),
        ("scale", np.inf, ValueError),
    ],
)
def test_bad_input_names_the_argument(name, bad, error):
    args = {**GOOD, name: bad}
    with pytest.raises(error, match=name):
        scaled_dot_product_attention(**args)
    with pytest.raises(error, match=name):
        scaled_dot_product_attention_backward(np.ones((2, 3, 6)), **args)


@pytest.mark.parametrize(
    "bad", [np.ones((2, 3, 5)), np.ones((3, 6)), np.full((2, 3, 6), np.nan), "text", None]
)
def test_bad_grad(bad):
    with pytest.raises((TypeError, ValueError), match="grad"):
        scaled_dot_product_attention_backward(bad, **GOOD)


def test_grad_of_another_shape_in_a_layer():
    cache = attention_forward(GOOD["query"], GOOD["key"], GOOD["value"])[1]
    for bad in (np.ones((2, 3, 5)), np.ones((2, 3, 6), np.float32)):
        with pytest.raises(ValueError, match="grad"):
            attention_backward(bad, cache)


def test_lists_and_integers_count_as_float64():
    out = scaled_dot_product_attention([[1, 0]], [[0, 1], [1, 0]], [[2], [4]])
    weight = 1 / (1 + np.exp(-1 / np.sqrt(2)))
    assert out.dtype == np.float64 and np.allclose(out, 2 + 2 * weight)


def test_a_mask_as_a_list():
    out = scaled_dot_product_attention([[1.0]], [[1.0], [2.0]], [[2.0], [4.0]], [[True, False]])
    assert out == 2


@pytest.mark.parametrize("lead", [(), (3,), (2, 4)])
def test_the_number_of_threads_changes_roundings_at_most(lead):
    rng = np.random.default_rng(0)
    grad, *args = numbers(rng, lead, 300, 280, 33, 20)
    before, results = num_threads(), []
    try:
        for n in (1, 2, 3):
            set_num_threads(n)
            results.append(ours(grad, *args, is_causal=True))
            again = ours(grad, *args, is_causal=True)
            assert all(np.array_equal(a, b) for a, b in zip(results[-1], again))
    finally:
        set_num_threads(before)
    for other in results[1:]:
        assert np.array_equal(other[0], results[0][0])  # shares differ in the gradients only
        assert all(abs(a - b).max() < 1e-12 for a, b in zip(other, results[0]))


def test_several_callers_at_once():
    rng = np.random.default_rng(0)
    cases = [numbers(rng, (2, 2), 20 + 30 * i, 100, 16, 16) for i in range(4)]
    wanted, wrong = [ours(*case) for case in cases], []

    def caller(i):
        for _ in range(10):
            for a, b in zip(ours(*cases[i]), wanted[i]):
                if not np.array_equal(a, b):
                    wrong.append(i)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_memory_grows_with_the_length_not_its_square():
    def peak(n):
        grad, *args = np.random.default_rng(0).standard_normal((4, 1, 1, n, 32), dtype=np.float32)

        def both():
            attention_backward(grad, attention_forward(*args)[1])

        tracemalloc.start()
        thread = threading.Thread(target=both)  # one that has kept no memory yet
        thread.start()
        thread.join()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    before = num_threads()
    set_num_threads(1)
    try:
        peak(64)
        short, long = peak(1024), peak(4096)
    finally:
        set_num_threads(before)
    assert 3 < long / short < 4.5
    assert long < 4096 * 4096  # the weights alone would be four times that


def test_small_sizes_go_by_a_table():
    rng = np.random.default_rng(0)
    for queries, keys, table in [(64, 64, True), (1, 4096, True), (64, 65, False)]:
        _, query, key, value = numbers(rng, (1, 2), queries, keys, 3, 3)
        assert isinstance(attention_forward(query, key, value)[1], tiled_attention._Table) is table


def test_masked_keys_at_the_end_are_skipped(monkeypatch):
    "Padding is cut off: what it holds is not even looked at."
    monkeypatch.setattr(tiled_attention, "_SMALL", 0)
    rng = np.random.default_rng(0)
    grad, query, key, value = numbers(rng, (2, 2), 9, 100, 8, 8)
    seen = np.arange(100) < np.array([70, 40])[:, None, None, None]
    clean = ours(grad, query, key, value, seen)
    for a in (key, value):
        a[1, :, 64:] = np.nan  # a block of its own
    out, cache = attention_forward(query, key, value, seen)
    for a, b in zip((out, *attention_backward(grad, cache)), clean):
        assert np.array_equal(a, b)
