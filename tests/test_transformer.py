"""Attention in heads and the Transformer: PyTorch, masks, caches, bad input, threads, seeds."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.core.checking import check_gradients, numerical_grad
from dlnotes.mlp import CrossEntropyLoss, MSELoss
from dlnotes.training import AdamW, fit, load, save
from dlnotes.transformer import (
    MultiHeadAttention,
    Transformer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    rotate,
    sinusoidal_positions,
)
from tests.parity import parity, torch

REL = 1e-10  # float64: sums of some hundred terms, rounded in another order
# what PyTorch says of a speed-up that it leaves out
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")
LAYERS = [MultiHeadAttention, TransformerEncoderLayer, TransformerDecoderLayer]


def close(ours, theirs, tolerance=REL):
    theirs = theirs if isinstance(theirs, np.ndarray) else theirs.detach().numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, abs(theirs).max()))


def shaken(layer, seed=0):
    "The layer with all parameters moved at random, so that no bias is 0 and no norm 1."
    rng = np.random.default_rng(seed)
    for a in layer.params.values():
        a += 0.3 * rng.normal(size=a.shape)
    return layer.eval()


def twin(layer, module):
    "PyTorch's module with the weights of our layer: the names must be the same."
    module.load_state_dict({k: torch.tensor(a) for k, a in layer.state_dict().items()})
    return module.double()


def tensor(a):
    return torch.tensor(a, requires_grad=True)


def padding(rng, m, s):
    "True at real places, at least one in each row, otherwise at random."
    real = rng.random((m, s)) < 0.7
    real[np.arange(m), rng.integers(s, size=m)] = True
    return real


def compare_grads(grads, module):
    "Our gradients against those that `backward` has left in PyTorch's module."
    theirs = {k: p.grad for k, p in module.named_parameters()}
    assert list(grads) == list(theirs)
    for k, g in grads.items():
        close(g, theirs[k])


sizes = {
    "m": st.integers(1, 3),
    "t": st.integers(1, 5),
    "s": st.integers(1, 6),
    "heads": st.sampled_from([1, 2, 3]),
    "d": st.sampled_from([1, 2, 4]),
    "seed": st.integers(0, 1000),
}


# attention in heads


@parity
@settings(max_examples=40, deadline=None)
@given(
    **sizes,
    bias=st.booleans(),
    given_=st.sampled_from(["query", "key", "value"]),
    masked=st.sampled_from(["no", "padding", "attn", "per head", "both", "causal"]),
)
def test_attention_is_pytorchs(m, t, s, heads, d, seed, bias, given_, masked):
    rng, e = np.random.default_rng(seed), heads * d
    s = t if given_ == "query" or masked == "causal" else s
    layer = shaken(MultiHeadAttention(e, heads, bias=bias, rng=seed, dtype=np.float64))
    module = twin(
        layer,
        torch.nn.MultiheadAttention(e, heads, bias=bias, batch_first=True, dtype=torch.float64),
    )
    x = [rng.normal(size=(m, t, e))]
    x += [rng.normal(size=(m, s, e)) for _ in range({"query": 0, "key": 1, "value": 2}[given_])]
    ours, theirs = {}, {}
    real = padding(rng, m, s)
    seen = rng.random((m, heads, t, s) if masked == "per head" else (t, s)) < 0.6
    seen[..., 0] = real[:, 0] = True  # so that no query sees nothing
    if masked in ("padding", "both"):
        ours["key_padding_mask"], theirs["key_padding_mask"] = real, torch.tensor(~real)
    if masked in ("attn", "per head", "both"):
        ours["attn_mask"] = seen  # PyTorch's heads lie behind its batch
        theirs["attn_mask"] = torch.tensor(
            ~seen.reshape(-1, *seen.shape[-2:]).squeeze()
            if seen.ndim == 2
            else ~seen.reshape(-1, t, s)
        )
        if seen.ndim == 2:
            theirs["attn_mask"] = torch.tensor(~seen)
    if masked == "causal":
        ours["is_causal"] = True
        theirs["attn_mask"] = torch.tensor(~np.tri(t, s, dtype=bool))
    y, cache = layer.forward(*x, **ours)
    tensors = [tensor(a) for a in x]
    answer, weights = module(
        *(tensors + tensors[-1:] * (3 - len(x)))[:3] if len(x) > 1 else tensors * 3,
        average_attn_weights=False,
        **theirs,
    )
    close(y, answer)
    if len(x) < 3:
        close(layer.weights(*x, **ours), weights)
    grad = rng.normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    by_x, grads = layer.backward(grad, cache)
    for a, b in zip(by_x if len(x) > 1 else [by_x], tensors):
        close(a, b.grad)
    compare_grads(grads, module)


@pytest.mark.parametrize(
    "mask",
    [
        {"key_padding_mask": np.array([[False] * 4, [True] * 4])},
        {"attn_mask": np.tri(4, 4, -1, dtype=bool)},
    ],
)
def test_a_query_that_sees_nothing_draws_nothing(mask):
    layer = shaken(MultiHeadAttention(6, 2, rng=0, dtype=np.float64))
    x = np.random.default_rng(0).normal(size=(2, 4, 6))
    y, cache = layer.forward(x, **mask)
    assert np.array_equal(y[0, 0], layer.params["out_proj.bias"])
    assert not layer.weights(x, **mask)[0, :, 0].any()
    by_x, grads = layer.backward(np.ones_like(y), cache)
    assert np.isfinite(by_x).all() and all(np.isfinite(g).all() for g in grads.values())
    if "key_padding_mask" in mask:
        assert not by_x[0].any()


@parity
def test_a_mask_means_what_pytorchs_function_means_and_the_opposite_of_its_layer():
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, 1, 1, 4, 5))
    from dlnotes.kernels.tiled_attention import attention_forward

    seen = np.tri(4, 4, dtype=bool)
    close(
        attention_forward(q, k, v, seen)[0],
        torch.nn.functional.scaled_dot_product_attention(
            *map(torch.tensor, (q, k, v)), attn_mask=torch.tensor(seen)
        ),
    )
    layer = shaken(MultiHeadAttention(4, 2, rng=0, dtype=np.float64))
    module = twin(layer, torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64))
    x = rng.normal(size=(1, 4, 4))
    theirs = module(*[torch.tensor(x)] * 3, attn_mask=torch.tensor(~seen))[0]
    close(layer(x, attn_mask=seen), theirs)
    assert abs(layer(x, attn_mask=seen.T) - theirs.detach().numpy()).max() > 0.01


# layers


@parity
@settings(max_examples=25, deadline=None)
@given(
    **sizes,
    norm_first=st.booleans(),
    activation=st.sampled_from(["relu", "gelu"]),
    bias=st.booleans(),
    masked=st.sampled_from(["no", "padding", "causal"]),
)
def test_encoder_layer_is_pytorchs(m, t, s, heads, d, seed, norm_first, activation, bias, masked):
    rng, e = np.random.default_rng(seed), heads * d
    options = {"activation": activation, "norm_first": norm_first, "bias": bias}
    layer = shaken(TransformerEncoderLayer(e, heads, 7, rng=seed, dtype=np.float64, **options))
    module = twin(
        layer,
        torch.nn.TransformerEncoderLayer(
            e, heads, 7, dropout=0, batch_first=True, dtype=torch.float64, **options
        ),
    )
    x, real = rng.normal(size=(m, t, e)), padding(rng, m, t)
    ours, theirs = {}, {}
    if masked == "padding":
        ours["src_key_padding_mask"] = real
        theirs["src_key_padding_mask"] = torch.tensor(~real)
    if masked == "causal":
        ours["is_causal"], theirs["src_mask"] = True, torch.tensor(~np.tri(t, dtype=bool))
    y, cache = layer.forward(x, **ours)
    a = tensor(x)
    answer = module(a, **theirs)
    grad = rng.normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    by_x, grads = layer.backward(grad, cache)
    close(y, answer, 1e-9 if e == 1 else REL)  # a norm over one number divides by sqrt(eps)
    close(by_x, a.grad, 1e-9 if e == 1 else REL)
    compare_grads(grads, module)


@parity
@settings(max_examples=25, deadline=None)
@given(
    **sizes,
    norm_first=st.booleans(),
    activation=st.sampled_from(["relu", "gelu"]),
    masked=st.booleans(),
)
def test_decoder_layer_is_pytorchs(m, t, s, heads, d, seed, norm_first, activation, masked):
    rng, e = np.random.default_rng(seed), 2 * heads * d
    options = {"activation": activation, "norm_first": norm_first}
    layer = shaken(TransformerDecoderLayer(e, heads, 7, rng=seed, dtype=np.float64, **options))
    module = twin(
        layer,
        torch.nn.TransformerDecoderLayer(
            e, heads, 7, dropout=0, batch_first=True, dtype=torch.float64, **options
        ),
    )
    x, memory = rng.normal(size=(m, t, e)), rng.normal(size=(m, s, e))
    ours, theirs = {"tgt_is_causal": True}, {"tgt_mask": torch.tensor(~np.tri(t, dtype=bool))}
    if masked:
        real, own, seen = padding(rng, m, s), padding(rng, m, t), rng.random((t, s)) < 0.6
        own[:, 0] = seen[:, 0] = real[:, 0] = True
        ours |= {"memory_key_padding_mask": real, "tgt_key_padding_mask": own, "memory_mask": seen}
        theirs |= {k: torch.tensor(~a) for k, a in ours.items() if k != "tgt_is_causal"}
    y, cache = layer.forward(x, memory, **ours)
    a, b = tensor(x), tensor(memory)
    answer = module(a, b, **theirs)
    grad = rng.normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    (by_x, by_memory), grads = layer.backward(grad, cache)
    close(y, answer)
    close(by_x, a.grad)
    close(by_memory, b.grad)
    compare_grads(grads, module)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers_gradients_are_those_measured(norm_first, activation):
    rng = np.random.default_rng(0)
    layer = shaken(
        TransformerEncoderLayer(
            4, 2, 5, 0.0, activation, norm_first=norm_first, rng=0, dtype=np.float64
        )
    )
    x, y = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    assert check_gradients(layer, MSELoss(), x, y) < 1e-6  # a kink of ReLU is not near
    layer = shaken(
        TransformerDecoderLayer(
            4, 2, 5, 0.0, activation, norm_first=norm_first, rng=0, dtype=np.float64
        )
    )
    memory, loss = rng.normal(size=(2, 4, 4)), MSELoss()
    answer, cache = layer.forward(x, memory, tgt_is_causal=True)
    by_memory = layer.backward(loss.backward(loss.forward(answer, y)[1]), cache)[0][1]
    measured = numerical_grad(lambda v: loss(layer(x, v, tgt_is_causal=True), y), memory)
    close(by_memory, measured, 1e-8)


# the whole


def small(dtype=np.float64, norm_first=True, dropout=0.0, seed=0, **options):
    return Transformer(
        11, 9, 8, 2, 2, 3, 12, dropout, norm_first=norm_first, rng=seed, dtype=dtype, **options
    )


def tokens(m=3, s=5, t=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(11, size=(m, s)), rng.integers(9, size=(m, t)), padding(rng, m, s)


@parity
@settings(max_examples=15, deadline=None)
@given(
    m=st.integers(1, 3),
    s=st.integers(1, 5),
    t=st.integers(1, 5),
    seed=st.integers(0, 99),
    norm_first=st.booleans(),
    activation=st.sampled_from(["relu", "gelu"]),
)
def test_core_is_pytorchs_transformer(m, s, t, seed, norm_first, activation):
    model = small(seed=seed, norm_first=norm_first, activation=activation)
    core, rng = shaken(model.core), np.random.default_rng(seed)
    module = twin(
        core,
        torch.nn.Transformer(
            8,
            2,
            2,
            3,
            12,
            0,
            activation,
            batch_first=True,
            norm_first=norm_first,
            dtype=torch.float64,
        ),
    )
    src, tgt, real = rng.normal(size=(m, s, 8)), rng.normal(size=(m, t, 8)), padding(rng, m, s)
    y, cache = core.forward(src, tgt, real)
    a, b, hidden = tensor(src), tensor(tgt), torch.tensor(~real)
    answer = module(
        a,
        b,
        tgt_mask=torch.tensor(~np.tri(t, dtype=bool)),
        src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden,
    )
    grad = rng.normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    (by_src, by_tgt), grads = core.backward(grad, cache)
    close(y, answer)
    close(by_src, a.grad)
    close(by_tgt, b.grad)
    compare_grads(grads, module)


@parity
def test_weights_travel_by_file(tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = small(seed=1), small(seed=2)
    save(model.core, tmp_path / "core.safetensors")
    module = torch.nn.Transformer(8, 2, 2, 3, 12, batch_first=True, norm_first=True)
    module.double().load_state_dict(load_file(tmp_path / "core.safetensors"))
    save_file(module.state_dict(), tmp_path / "back.safetensors")
    load(other.core, tmp_path / "back.safetensors")
    for k, a in model.core.state_dict().items():
        assert np.array_equal(a, other.core.state_dict()[k])
    for name, layer, theirs in [
        ("a", MultiHeadAttention(8, 2, rng=0), torch.nn.MultiheadAttention(8, 2)),
        ("e", TransformerEncoderLayer(8, 2, 5, rng=0), torch.nn.TransformerEncoderLayer(8, 2, 5)),
        ("d", TransformerDecoderLayer(8, 2, 5, rng=0), torch.nn.TransformerDecoderLayer(8, 2, 5)),
    ]:
        save_file(theirs.state_dict(), tmp_path / name)
        load(layer, tmp_path / name)
        for k, a in theirs.state_dict().items():
            assert np.array_equal(layer.params[k], a)


@pytest.mark.parametrize("rotary", [False, True])
def test_transformers_gradients_are_those_measured(rotary):
    model, loss, (src, tgt, real) = (
        small(seed=3, rotary=rotary),
        CrossEntropyLoss(ignore_index=0),
        tokens(),
    )
    shaken(model)
    target = np.roll(tgt, -1, axis=1)
    answer, cache = model.forward(src, tgt, real)
    none, grads = model.backward(loss.backward(loss.forward(answer, target)[1]), cache)
    assert none is None and list(grads) == list(model.params)
    rng = np.random.default_rng(0)
    for name, p in model.params.items():  # along one direction for each array
        kept, way = p.copy(), rng.normal(size=p.shape)

        def at(h, p=p, kept=kept, way=way):
            p[...] = kept + h * way
            value = loss(model(src, tgt, real), target)
            p[...] = kept
            return value

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        assert abs(slope - (grads[name] * way).sum()) < 1e-7 * max(1, abs(slope)), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm_first, rotary", [(False, False), (True, False), (True, True)])
def test_cached_steps_give_what_the_whole_gives(dtype, norm_first, rotary):
    model = shaken(small(dtype, norm_first, rotary=rotary), 4)
    src, tgt, real = tokens(4, 6, 7)
    real[0] = False  # nothing to read: defined, as everywhere
    for mask in (real, None):
        whole, state = model(src, tgt, mask), model.encode(src, mask)
        for t in range(tgt.shape[1]):
            logits, state = model.step(tgt[:, t], state)
            assert logits.dtype == dtype
            close(logits, whole[:, :, t], 1e-12 if dtype is np.float64 else 1e-5)
        assert np.isfinite(whole).all()


def test_cached_steps_go_on_beyond_the_first_table_of_positions():
    "Tables of positions have 64 rows at first, and grow by doubling."
    model, (src, tgt, _) = shaken(small(), 4), tokens(2, 5, 67)
    whole, state = model(src, tgt), model.encode(src)
    for t in range(tgt.shape[1]):
        logits, state = model.step(tgt[:, t], state)
        close(logits, whole[:, :, t], 1e-10)


def test_states_are_rows_and_stay_as_they_were():
    model, (src, tgt, real) = shaken(small(), 4), tokens(4, 6, 3)
    state = model.encode(src, real)
    first, after = model.step(tgt[:, 0], state)
    kept = [a.copy() for a in after]
    one, _ = model.step(tgt[:, 1], after)
    model.step(tgt[:, 2], after)  # another way on from the same state
    again, _ = model.step(tgt[:, 1], after)
    assert np.array_equal(one, again)
    assert all(np.array_equal(a, b) for a, b in zip(after, kept))
    rows = np.array([2, 2, 0])
    chosen, _ = model.step(tgt[rows, 1], tuple(a[rows] for a in after))
    close(chosen, one[rows], 1e-12)


def test_the_future_and_padding_do_not_matter():
    model, (src, tgt, real) = shaken(small(), 5), tokens(3, 5, 6)
    y, changed, other = model(src, tgt, real), tgt.copy(), src.copy()
    changed[:, 3:] = (tgt[:, 3:] + 1) % 9
    other[~real] = (src[~real] + 1) % 11
    z = model(other, changed, real)
    close(z[:, :, :3], y[:, :, :3], 1e-13)
    assert abs(z[:, :, 3:] - y[:, :, 3:]).min(axis=1).max() > 1e-3


def test_dropout_in_training_only():
    model, (src, tgt, real) = small(dropout=0.5, dtype=np.float32), tokens()
    a, b = model.train()(src, tgt, real), model(src, tgt, real)
    assert abs(a - b).max() > 1e-2
    a, b = model.eval()(src, tgt, real), model(src, tgt, real)
    assert np.array_equal(a, b)
    layer = MultiHeadAttention(4, 2, dropout=0.5, rng=0, dtype=np.float64)
    x = np.random.default_rng(0).normal(size=(1, 5, 4))
    many = np.mean([layer(x) for _ in range(4000)], axis=0)
    close(many, layer.eval()(x), 0.05)  # 4000 draws: 0.01 or so


def test_gradients_with_dropout_are_of_what_was_kept():
    layer = shaken(MultiHeadAttention(4, 2, dropout=0.5, rng=0, dtype=np.float64)).train()
    rng = np.random.default_rng(0)
    x, y, loss = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4)), MSELoss()

    def value(v):
        layer.dropout.rng = np.random.default_rng(7)
        return loss(layer(v), y)

    layer.dropout.rng = np.random.default_rng(7)
    answer, cache = layer.forward(x)
    by_x, _ = layer.backward(loss.backward(loss.forward(answer, y)[1]), cache)
    close(by_x, numerical_grad(value, x), 1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_stay(dtype):
    model, (src, tgt, real) = small(dtype, dropout=0.1), tokens()
    y, cache = model.forward(src, tgt, real)
    _, grads = model.backward(np.ones_like(y), cache)
    assert y.dtype == dtype and {g.dtype for g in grads.values()} == {np.dtype(dtype)}
    assert {a.dtype for a in model.params.values()} == {np.dtype(dtype)}
    for k, g in grads.items():
        assert g.shape == model.params[k].shape


def test_one_seed_one_model():
    a, b, c = (small(seed=s).params for s in (1, 1, 2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["head.weight"], c["head.weight"])
    src, tgt, real = tokens(40, 5, 4)

    def trained():
        model = small(np.float32, dropout=0.1, seed=1)
        fit(
            model,
            CrossEntropyLoss(),
            AdamW(model.params),
            (src, tgt, real),
            tgt,
            epochs=2,
            rng=0,
            progress=False,
        )
        return model.params

    a, b = trained(), trained()
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_learns_to_turn_a_sequence_round():
    rng = np.random.default_rng(0)
    src = rng.integers(3, 11, size=(600, 5))
    tgt = src[:, ::-1] - 2
    tgt_in = np.concatenate([np.zeros((600, 1), int), tgt[:, :-1]], axis=1)
    model = Transformer(11, 9, 32, 4, 1, 1, 64, 0.0, norm_first=True, rng=0)
    fit(
        model,
        CrossEntropyLoss(),
        AdamW(model.params, 3e-3),
        (src[:500], tgt_in[:500]),
        tgt[:500],
        epochs=40,
        rng=0,
        progress=False,
    )
    assert (model(src[500:], tgt_in[500:]).argmax(axis=1) == tgt[500:]).mean() > 0.9


def test_threads_and_copies():
    model, (src, tgt, real) = shaken(small(np.float32)), tokens(20)
    y = model(src, tgt, real)
    with ThreadPoolExecutor(4) as pool:
        for z in pool.map(lambda _: model(src, tgt, real), range(16)):
            assert np.array_equal(y, z)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other(src, tgt, real), y)
        other.params["head.bias"][...] += 1
        assert np.allclose(other(src, tgt, real), y + 1, atol=1e-5)
        state = other.encode(src, real)
        assert np.allclose(other.step(tgt[:, 0], state)[0], y[:, :, 0] + 1, atol=1e-4)


# positions


@given(t=st.integers(0, 40), half=st.integers(1, 20))
def test_positions_are_sines_and_cosines(t, half):
    p = sinusoidal_positions(t + 1, 2 * half, np.float64)
    for i in range(half):
        angle = t * 10000 ** (-2 * i / (2 * half))
        assert abs(p[t, 2 * i] - np.sin(angle)) < 1e-12
        assert abs(p[t, 2 * i + 1] - np.cos(angle)) < 1e-12


@given(start=st.integers(0, 1000), seed=st.integers(0, 99))
def test_rotated_scores_depend_on_the_distance(start, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 6, 8))
    near, far = rotate(q) @ rotate(k).T, rotate(q, start) @ rotate(k, start).T
    close(far, near, 1e-11)  # angles up to 1000, in units of 1e-16
    close((rotate(q, start) ** 2).sum(-1), (q**2).sum(-1), 1e-13)


def test_rotation_keeps_dtype_and_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    y = rotate(x, 5)
    assert y.dtype == np.float32 and y.shape == x.shape
    assert np.array_equal(y[1, 2], rotate(x[1, 2], 5))
    close(rotate(rotate(x, 5)[:, :, :1], -5), x[:, :, :1], 1e-6)


@parity
@settings(max_examples=40, deadline=None)
@given(**sizes, given_=st.sampled_from(["query", "key", "value"]))
def test_rotary_attention_is_that_of_turned_queries_and_keys(m, t, s, heads, d, seed, given_):
    "PyTorch's layer has no such option: its parts are put together by hand."
    d, rng = 2 * heads * d, np.random.default_rng(seed)
    layer = shaken(MultiHeadAttention(d, heads, rotary=True, rng=0, dtype=np.float64), seed)
    inputs = [tensor(rng.normal(size=(m, n, d))) for n in (t, s, s)]
    inputs = inputs[: 1 + ["query", "key", "value"].index(given_)]
    weights = {k: tensor(a) for k, a in layer.params.items()}

    def turned(x):
        angles = torch.arange(x.shape[2])[:, None] * 10000 ** (
            -torch.arange(0, x.shape[3], 2, dtype=torch.float64) / x.shape[3]
        )
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    q, k, v = [
        torch.nn.functional.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(1, 2)
        for x, w, b in zip(
            [*inputs, *inputs[-1:] * 2],
            weights["in_proj_weight"].chunk(3),
            weights["in_proj_bias"].chunk(3),
        )
    ]
    y = torch.nn.functional.scaled_dot_product_attention(turned(q), turned(k), v)
    y = torch.nn.functional.linear(
        y.transpose(1, 2).flatten(2), weights["out_proj.weight"], weights["out_proj.bias"]
    )
    ours, cache = layer.forward(*[x.detach().numpy() for x in inputs])
    close(ours, y)
    grad = rng.normal(size=ours.shape)
    y.backward(torch.tensor(grad))
    by_inputs, grads = layer.backward(grad, cache)
    for a, x in zip(by_inputs if len(inputs) > 1 else [by_inputs], inputs):
        close(a, x.grad)
    for k, w in weights.items():
        close(grads[k], w.grad)


# bad input

X = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    "settings_, error, words",
    [
        ({"embed_dim": 5, "num_heads": 2}, ValueError, "embed_dim"),
        ({"embed_dim": 0, "num_heads": 2}, ValueError, "embed_dim"),
        ({"embed_dim": 4, "num_heads": 0}, ValueError, "num_heads"),
        ({"embed_dim": 4.0, "num_heads": 2}, TypeError, "embed_dim"),
        ({"embed_dim": 4, "num_heads": 2, "dropout": 1.0}, ValueError, "dropout"),
        ({"embed_dim": 4, "num_heads": 2, "bias": 1}, TypeError, "bias"),
        ({"embed_dim": 4, "num_heads": 2, "rotary": 1}, TypeError, "rotary"),
        ({"embed_dim": 6, "num_heads": 2, "rotary": True}, ValueError, "embed_dim"),
        ({"embed_dim": 4, "num_heads": 2, "rng": "x"}, (TypeError, ValueError), "rng"),
        ({"embed_dim": 4, "num_heads": 2, "dtype": np.int64}, TypeError, "dtype"),
    ],
)
def test_settings_of_attention(settings_, error, words):
    with pytest.raises(error, match=words):
        MultiHeadAttention(**settings_)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X[0],), ValueError, "query"),
        ((X[..., :3],), ValueError, "query"),
        ((X[:, :0],), ValueError, "query"),
        ((X[:0],), ValueError, "query"),
        ((X.astype(float),), TypeError, "query"),
        ((X, X[:1]), ValueError, "key"),
        ((X, X[:, :0]), ValueError, "key"),
        ((X, X, X[:, :2]), ValueError, "value"),
        ((X, None, X), ValueError, "key"),
        (("x",), TypeError, "query"),
        ((X, None, None, np.ones((2, 3))), TypeError, "key_padding_mask"),
        ((X, None, None, np.ones((2, 4), bool)), ValueError, "key_padding_mask"),
        ((X, None, None, [[True], [True, False]]), ValueError, "key_padding_mask"),
        ((X, None, None, None, np.ones((3, 3))), TypeError, "attn_mask"),
        ((X, None, None, None, np.ones((3, 4), bool)), ValueError, "attn_mask"),
        ((X, None, None, None, None, 1), TypeError, "is_causal"),
    ],
)
def test_arguments_of_attention(arguments, error, words):
    with pytest.raises(error, match=words):
        MultiHeadAttention(4, 2, rng=0)(*arguments)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "name, bad",
    [
        (name, bad)
        for name in ("src", "tgt", "memory")
        for bad in (None, "x", X[0], X[..., :3], X[:, :0], X[:0], X.astype(float))
    ]
    + [("memory", X[:1])]
    + [
        (name, bad)
        for name in (
            "src_mask",
            "tgt_mask",
            "memory_mask",
            "src_key_padding_mask",
            "tgt_key_padding_mask",
            "memory_key_padding_mask",
        )
        for bad in (np.ones((2, 4), bool), np.ones((2, 3)), [[True], [True, False]])
    ]
    + [("is_causal", 1), ("tgt_is_causal", None)],
)
def test_layers_name_their_own_arguments(name, bad, norm_first):
    kind = (
        TransformerEncoderLayer
        if name in ("src", "src_mask", "src_key_padding_mask", "is_causal")
        else TransformerDecoderLayer
    )
    args = {"src": X} if kind is TransformerEncoderLayer else {"tgt": X, "memory": X}
    with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
        kind(4, 2, 8, norm_first=norm_first, rng=0)(**{**args, name: bad})


@pytest.mark.parametrize("kind", LAYERS[1:])
@pytest.mark.parametrize(
    "settings_, words",
    [
        ({"d_model": 0}, "d_model"),
        ({"d_model": 5}, "d_model"),
        ({"nhead": 0}, "nhead"),
        ({"nhead": 2.0}, "nhead"),
        ({"dim_feedforward": 0}, "dim_feedforward"),
        ({"dropout": 1}, "dropout"),
        ({"activation": "tanh"}, "activation"),
        ({"norm_first": 1}, "norm_first"),
        ({"rotary": 1}, "rotary"),
        ({"bias": 1}, "bias"),
        ({"rng": "a"}, "rng"),
        ({"layer_norm_eps": -1}, "eps"),
        ({"dtype": int}, "dtype"),
    ],
)
def test_settings_of_layers(kind, settings_, words):
    with pytest.raises((ValueError, TypeError), match=f"^{words}: "):
        kind(**{"d_model": 4, "nhead": 2, **settings_})


def test_how_they_call_themselves():
    assert [repr(kind(4, 2)) for kind in LAYERS] == [
        "MultiHeadAttention(4, 2)",
        "TransformerEncoderLayer(4, 2)",
        "TransformerDecoderLayer(4, 2)",
    ]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_gradient_of_another_shape_is_refused(kind):
    layer = kind(4, 2, rng=0)
    more = (X,) if kind is TransformerDecoderLayer else ()
    _, cache = layer.forward(X, *more)
    for grad in (X[:1], X.astype(float), [1]):
        with pytest.raises((ValueError, TypeError), match="grad"):
            layer.backward(grad, cache)


@pytest.mark.parametrize(
    "settings_, words",
    [
        ({"d_model": 7}, "d_model"),
        ({"nhead": 3}, "d_model"),
        ({"nhead": 0}, "nhead"),
        ({"num_encoder_layers": 0}, "num_encoder_layers"),
        ({"activation": "tanh"}, "activation"),
        ({"num_decoder_layers": -1}, "num_decoder_layers"),
        ({"dropout": -0.1}, "dropout"),
        ({"norm_first": 3}, "norm_first"),
        ({"dim_feedforward": 0}, "dim_feedforward"),
        ({"src_vocab": 0}, "src_vocab"),
        ({"tgt_vocab": 1.5}, "tgt_vocab"),
        ({"dtype": int}, "dtype"),
        ({"rng": "a"}, "rng"),
    ],
)
def test_settings_of_the_transformer(settings_, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Transformer(
            **{
                "src_vocab": 5,
                "tgt_vocab": 5,
                "d_model": 8,
                "nhead": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 1,
                "dim_feedforward": 8,
                **settings_,
            }
        )


IDS = np.ones((2, 3), int)


@pytest.mark.parametrize(
    "src, tgt, mask, words",
    [
        (IDS[:, :0], IDS, None, "src"),
        (IDS, IDS[:, :0], None, "tgt"),
        (IDS[:0], IDS, None, "src"),
        (IDS + 10, IDS, None, "src"),
        (IDS, IDS + 8, None, "tgt"),
        (-IDS, IDS, None, "src"),
        (IDS, -IDS, None, "tgt"),
        (IDS[0], IDS, None, "src"),
        (IDS, IDS[:1], None, "tgt"),
        (IDS.astype(float), IDS, None, "src"),
        (IDS, IDS > 0, None, "tgt"),
        ("ab", IDS, None, "src"),
        (IDS, IDS, IDS, "src_mask"),
        (IDS, IDS, IDS[:, :2] > 0, "src_mask"),
    ],
)
def test_tokens_that_do_not_fit(src, tgt, mask, words):
    with pytest.raises((ValueError, TypeError), match=words):
        small()(src, tgt, mask)


def test_steps_that_do_not_fit():
    model = small().eval()
    for bad in (IDS, IDS[0, :1], np.array([1, 9]), np.array([-1, 0]), np.array([0.5, 1])):
        with pytest.raises((ValueError, TypeError), match="tokens"):
            model.step(bad, model.encode(IDS))
    for bad in (IDS[:, :0], IDS[0], IDS + 10):
        with pytest.raises((ValueError, TypeError), match="src"):
            model.encode(bad)
    for bad in (None, (), (1, 2, 3), model.encode(IDS)[:2], small(np.float32).encode(IDS)):
        with pytest.raises((ValueError, TypeError), match="state"):
            model.step(IDS[:, 0], bad)


@pytest.mark.parametrize(
    "bad", [{"length": -1}, {"length": 2.5}, {"d_model": 3}, {"d_model": 0}, {"dtype": int}]
)
def test_positions_that_do_not_fit(bad):
    with pytest.raises((ValueError, TypeError)):
        sinusoidal_positions(**{"length": 4, "d_model": 4, **bad})


@pytest.mark.parametrize(
    "x, start",
    [
        (np.ones(4), 0),
        (np.ones((2, 3)), 0),
        ("a", 0),
        (np.full((2, 4), np.nan), 0),
        (np.ones((2, 4)), 0.5),
    ],
)
def test_rotations_that_do_not_fit(x, start):
    with pytest.raises((ValueError, TypeError)):
        rotate(x, start)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_comes_is_answered_or_refused(data):
    "Shapes, dtypes and values at random: a finite answer of the right shape, or an error."
    arrays = st.tuples(
        st.lists(st.integers(0, 3), min_size=1, max_size=3),
        st.sampled_from([np.int64, np.int8, np.uint16, np.float64, bool]),
        st.integers(-2, 12),
        st.integers(0, 9),
    )

    def draw():
        shape, dtype, top, seed = data.draw(arrays)
        a = np.random.default_rng(seed).integers(min(0, top), max(1, top + 1), size=shape)
        return a.astype(dtype)

    model, src, tgt = small(np.float32).eval(), draw(), draw()
    mask = draw() if data.draw(st.booleans()) else None
    try:
        y = model(src, tgt, mask)
    except (ValueError, TypeError) as e:
        assert any(name in str(e) for name in ("src", "tgt", "src_mask"))
    else:
        assert y.shape == (len(src), 9, tgt.shape[1]) and np.isfinite(y).all()
