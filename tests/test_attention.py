"""Attention beyond its chapter: PyTorch, masks, bad input, the models' interface, seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.attention import Attention, AttentionSeq2Seq, BahdanauSeq2Seq
from dlnotes.encoder_decoder import beam_search, greedy_decode
from dlnotes.mlp import CrossEntropyLoss
from dlnotes.training import AdamW, fit, load, save

SCORES = ["dot", "general", "additive"]
MODELS = [AttentionSeq2Seq, BahdanauSeq2Seq]
DTYPES = [np.float32, np.float64]


@st.composite
def cases(draw, largest=7):
    "A layer in float64, queries, a memory and a mask, with rows that are all masked among them."
    score = draw(st.sampled_from(SCORES))
    n, t, s, q, k, d = (draw(st.integers(1, largest)) for _ in range(6))
    k, rng = q if score == "dot" else k, np.random.default_rng(draw(st.integers(0, 2**20)))
    layer = Attention(score, q, k, d if score == "additive" else None, rng=rng, dtype=np.float64)
    scale = draw(st.sampled_from([1.0, 30.0]))
    query, memory = scale * rng.normal(size=(n, t, q)), rng.normal(size=(n, s, k))
    mask = draw(st.sampled_from([None, rng.random((n, s)) < 0.6, rng.random((n, s)) < 0.1]))
    return layer, query, memory, mask


def composed(torch, score, p, query, memory, mask):
    "The same of tensors, written with PyTorch's functions."
    if score == "dot":
        e = torch.einsum("ntd,nsd->nts", query, memory)
    elif score == "general":
        e = torch.einsum("ntq,qk,nsk->nts", query, p["weight"], memory)
    else:
        linear = torch.nn.functional.linear
        a = linear(query, p["weight_q"], p["bias"])[:, :, None]
        e = torch.tanh(a + linear(memory, p["weight_k"])[:, None]) @ p["v"]
    if mask is not None:
        e = e.masked_fill(~mask[:, None], -torch.inf)
    weights = torch.softmax(e, dim=2)
    if mask is not None:  # PyTorch has NaN where nothing is left
        weights = torch.where(mask.any(dim=1)[:, None, None], weights, 0.0)
    return weights @ memory, weights


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_attention_is_that_of_pytorch(case):
    torch = pytest.importorskip("torch")
    layer, query, memory, mask = case
    tensors = {k: torch.tensor(a, requires_grad=True) for k, a in layer.params.items()}
    q, m = (torch.tensor(a, requires_grad=True) for a in (query, memory))
    rows = slice(None) if mask is None else mask.any(axis=1)
    theirs = composed(
        torch, layer.score, tensors, q, m, None if mask is None else torch.tensor(mask)
    )
    ours, cache = layer.forward(query, memory, mask)
    for mine, tensor in zip(ours, theirs):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, tensor.detach().numpy(), rtol=0, atol=1e-10)
    rng = np.random.default_rng(0)
    grads = tuple(rng.normal(size=a.shape) for a in ours)
    by_inputs, by_params = layer.backward(grads, cache)
    if not np.arange(len(query))[rows].size:
        assert all((g == 0).all() for g in (*by_inputs, *by_params.values()))
        return
    # softmax over nothing has NaN as its slope in PyTorch: only the other rows are given to it
    mask = None if mask is None else torch.tensor(mask[rows])
    theirs = composed(torch, layer.score, tensors, q[rows], m[rows], mask)
    sum((a * torch.tensor(g[rows])).sum() for a, g in zip(theirs, grads)).backward()
    names = list(layer.params)
    for mine, tensor in zip(
        [*by_inputs, *(by_params[k] for k in names)], [q, m, *(tensors[k] for k in names)]
    ):
        np.testing.assert_allclose(
            mine, tensor.grad.numpy(), rtol=0, atol=1e-10 * max(1, abs(mine).max())
        )


@pytest.mark.kernel
@settings(deadline=None, max_examples=40)
@given(case=cases(4), dtype=st.sampled_from(DTYPES))
def test_attention_is_its_definition(case, dtype):
    layer, query, memory, mask = case
    layer.params = {k: a.astype(dtype) for k, a in layer.params.items()}
    query, memory, p = query.astype(dtype), memory.astype(dtype), layer.params
    context, weights = layer(query, memory, mask)
    assert context.dtype == weights.dtype == dtype
    for i, t in np.ndindex(query.shape[:2]):
        s, real = query[i, t], np.ones(len(memory[i]), bool) if mask is None else mask[i]
        score = {
            "dot": lambda h: s @ h,  # noqa: B023
            "general": lambda h: s @ p["weight"] @ h,  # noqa: B023
            "additive": lambda h: (
                p["v"]
                @ np.tanh(
                    p["weight_q"] @ s + p["weight_k"] @ h + p["bias"]  # noqa: B023
                )
            ),
        }[layer.score]
        e = np.array([score(h) for h in memory[i]], np.float64)
        expected = np.zeros(len(e))
        if real.any():
            expected[real] = np.exp(e[real] - e[real].max())
            expected /= expected.sum()
        # scores of up to some hundred, rounded, are the exponents
        tolerance = np.finfo(dtype).eps * 40 * max(1, abs(e).max())
        np.testing.assert_allclose(weights[i, t], expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(context[i, t], expected @ memory[i], rtol=0, atol=10 * tolerance)
    _, cache = layer.forward(query, memory, mask)
    once, again = (
        layer.backward((context, weights), cache),
        layer.backward((context, weights), cache),
    )
    assert once[0][0].dtype == once[0][1].dtype == dtype
    for a, b in zip((*once[0], *once[1].values()), (*again[0], *again[1].values())):
        np.testing.assert_array_equal(a, b)


@pytest.mark.kernel
@pytest.mark.parametrize("score", SCORES)
def test_nothing_to_look_at(score):
    layer = Attention(score, 4, 4, rng=0)
    rng = np.random.default_rng(0)
    query, memory = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[True, True, False], [False] * 3])
    (context, weights), cache = layer.forward(query, memory, mask)
    assert (context[1] == 0).all() and (weights[1] == 0).all()
    np.testing.assert_allclose(weights[0].sum(axis=1), 1, rtol=1e-6)
    (by_query, by_memory), grads = layer.backward((context + 1, weights + 1), cache)
    assert (by_query[1] == 0).all() and (by_memory[1] == 0).all()
    assert all(np.isfinite(g).all() for g in grads.values())
    assert (by_memory[0, 2] == 0).all()


@pytest.mark.parametrize("score", SCORES)
def test_masked_rows_do_not_matter(score):
    rng, layer = np.random.default_rng(0), Attention(score, 4, 4, rng=0, dtype=np.float64)
    query, memory = rng.normal(size=(2, 3, 5, 4))
    mask = rng.random((3, 5)) < 0.5
    other = np.where(mask[..., None], memory, 1e6 * rng.normal(size=memory.shape))
    for a, b in zip(layer(query, memory, mask), layer(query, other, mask)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("score", SCORES)
def test_large_scores_do_not_overflow(score):
    layer = Attention(score, 3, 3, rng=0)
    query = np.full((1, 2, 3), 1e15, np.float32)
    memory = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    context, weights = layer(query, memory)
    assert np.isfinite(context).all()
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-5)


def test_either_gradient_may_be_left_out():
    rng, layer = np.random.default_rng(0), Attention("additive", 3, 4, 5, rng=0, dtype=np.float64)
    query, memory = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 5, 4))
    answer, cache = layer.forward(query, memory)
    both, parts = layer.backward(answer, cache), []
    for pair in ((answer[0], None), (None, answer[1])):
        (a, b), grads = layer.backward(pair, cache)
        parts.append([a, b, *grads.values()])
    for whole, *two in zip((*both[0], *both[1].values()), *parts):
        np.testing.assert_allclose(whole, sum(two), rtol=0, atol=1e-13)
    (a, b), grads = layer.backward((None, None), cache)
    assert all((g == 0).all() for g in (a, b, *grads.values()))


def test_seeds_dtypes_and_words():
    for score in SCORES:
        a, b, c = (Attention(score, 4, 4, rng=seed) for seed in (0, 0, 1))
        for name, w in a.params.items():
            np.testing.assert_array_equal(w, b.params[name])
            assert not np.array_equal(w, c.params[name]) and w.dtype == np.float32
    assert repr(Attention("dot", 4, 4)) == "Attention('dot', 4, 4)"
    assert repr(Attention("additive", 4, 3, 5)) == "Attention('additive', 4, 3, 5)"
    p = Attention("additive", 4, 3, 5).params
    assert {k: a.shape for k, a in p.items()} == {
        "weight_q": (5, 4),
        "weight_k": (5, 3),
        "bias": (5,),
        "v": (5,),
    }
    assert Attention("additive", 4, 3).params["v"].shape == (4,)
    assert abs(Attention("general", 400, 100, rng=0).params["weight"]).max() <= 0.1


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("score", ("product", 4, 4)),
        ("score", (None, 4, 4)),
        ("query_size", ("dot", 0, 0)),
        ("query_size", ("dot", 2.0, 2)),
        ("key_size", ("general", 4, -1)),
        ("key_size", ("dot", 4, 5)),
        ("hidden_size", ("general", 4, 5, 6)),
        ("hidden_size", ("additive", 4, 5, 0)),
    ],
)
def test_settings_are_refused_by_name(name, arguments):
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        Attention(*arguments)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "name, change",
    [
        ("query", {"query": np.zeros((2, 3, 5))}),
        ("query", {"query": np.zeros((2, 4))}),
        ("query", {"query": np.zeros((2, 0, 4))}),
        ("query", {"query": np.zeros((0, 3, 4))}),
        ("query", {"query": "abc"}),
        ("query", {"query": np.zeros((2, 3, 4), complex)}),
        ("memory", {"memory": np.zeros((3, 5, 4))}),
        ("memory", {"memory": np.zeros((2, 5, 3))}),
        ("memory", {"memory": np.zeros((2, 0, 4))}),
        ("memory", {"memory": np.zeros(4)}),
        ("memory", {"memory": np.zeros((2, 5, 4), np.float32)}),
        ("mask", {"mask": np.ones((2, 4), bool)}),
        ("mask", {"mask": np.ones((2, 5))}),
        ("mask", {"mask": np.ones((2, 5, 1), bool)}),
    ],
)
def test_arrays_are_refused_by_name(score, name, change):
    layer = Attention(score, 4, 4, rng=0, dtype=np.float64)
    good = {"query": np.zeros((2, 3, 4)), "memory": np.zeros((2, 5, 4)), "mask": None}
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        layer(**{**good, **change})


@pytest.mark.parametrize(
    "name, grad",
    [
        ("grad", np.zeros((2, 3, 4))),
        ("grad", (None,)),
        ("grad_context", (np.zeros((2, 3, 5)), None)),
        ("grad_context", ([1.0], None)),
        ("grad_weights", (None, np.zeros((2, 3, 4)))),
        ("grad_context", (np.zeros((2, 3, 4), np.float32), None)),
    ],
)
def test_gradients_are_refused_by_name(name, grad):
    layer = Attention("general", 4, 4, rng=0, dtype=np.float64)
    _, cache = layer.forward(np.zeros((2, 3, 4)), np.zeros((2, 5, 4)))
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        layer.backward(grad, cache)


@pytest.mark.parametrize(
    "other",
    [
        Attention("additive", 4, 4, 300),
        Attention("general", 4, 4),
        Attention("dot", 4, 4),
        Attention("additive", 5, 4, 6),
        Attention("additive", 4, 5, 6),
    ],
)
def test_the_cache_of_another_layer_is_refused(other):
    layer = Attention("additive", 4, 4, 6, rng=0)
    q, k = other.query_size, other.key_size
    (context, _), cache = other.forward(np.ones((2, 3, q), "f4"), np.ones((2, 5, k), "f4"))
    for wrong in (cache, cache[:4], None):
        with pytest.raises(ValueError, match="^cache: expected one that forward of Attention"):
            layer.backward((context, None), wrong)


@pytest.mark.parametrize("name", ["weight_q", "weight_k", "bias", "v"])
@pytest.mark.parametrize(
    "change",
    [lambda a: np.zeros((100, *a.shape), a.dtype), lambda a: a[:-1], lambda a: a.astype("f8")],
)
def test_replaced_parameters_are_refused_by_name(name, change):
    layer, x = Attention("additive", 4, 4, 6, rng=0), np.ones((2, 3, 4), "f4")
    (context, _), cache = layer.forward(x, x)
    layer.params[name] = change(layer.params[name])
    with pytest.raises((ValueError, TypeError), match=f"^({name}|query): expected"):
        layer.forward(x, x)
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        layer.backward((context, None), cache)


# --- the model


def tokens(rng, n, s, t, src_vocab=9, tgt_vocab=7):
    "Sources of unequal length, their masks, and what the decoder is told."
    lengths = rng.integers(1, s + 1, n)
    lengths[0] = s
    mask = np.arange(s) < lengths[:, None]
    src = np.where(mask, rng.integers(2, src_vocab, (n, s)), 0)
    return src, rng.integers(1, tgt_vocab, (n, t)), mask


def in_torch(torch, model, cell):
    "The same model, made of PyTorch's modules, with the same numbers."
    p = {k: torch.tensor(a) for k, a in model.params.items()}
    d, h = (model.params[k].shape[1] for k in ("src_embedding.weight", "decoder.weight_hh_l0"))
    kind = torch.nn.GRU if cell == "gru" else torch.nn.LSTM
    net = torch.nn.ModuleDict(
        {
            "src_embedding": torch.nn.Embedding(model.src_vocab, d, 0),
            "encoder": kind(d, h // 2, batch_first=True, bidirectional=True),
            "tgt_embedding": torch.nn.Embedding(model.tgt_vocab, d, 0),
            "decoder": kind(p["decoder.weight_ih_l0"].shape[1], h, batch_first=True),
            "attention": torch.nn.ParameterDict(
                {
                    k.split(".")[1]: torch.nn.Parameter(a)
                    for k, a in p.items()
                    if k.startswith("attention.")
                }
            ),
            "head": torch.nn.Linear(2 * h, model.tgt_vocab),
        }
    ).double()
    missing, unknown = net.load_state_dict(p, strict=False)
    assert not missing and not unknown
    return net


def torch_forward(torch, net, score, src, tgt, mask, before=False):
    pack = torch.nn.utils.rnn.pack_padded_sequence
    unpack = torch.nn.utils.rnn.pad_packed_sequence
    src, tgt, real = (torch.tensor(a) for a in (src, tgt, mask))
    x = pack(net["src_embedding"](src), real.sum(1), batch_first=True, enforce_sorted=False)
    memory, state = net["encoder"](x)
    memory, _ = unpack(memory, batch_first=True, total_length=src.shape[1])

    def beside(h):
        return torch.cat([h[0], h[1]], dim=1)[None]

    state = tuple(map(beside, state)) if isinstance(state, tuple) else beside(state)
    y = net["tgt_embedding"](tgt)
    if not before:
        s, _ = net["decoder"](y, state)
        c, _ = composed(torch, score, net["attention"], s, memory, real)
        return net["head"](torch.cat([s, c], dim=2)).transpose(1, 2)
    answers = []
    for t in range(y.shape[1]):
        query = (state[0] if isinstance(state, tuple) else state).transpose(0, 1)
        c, _ = composed(torch, score, net["attention"], query, memory, real)
        s, state = net["decoder"](torch.cat([y[:, t : t + 1], c], dim=2), state)
        answers.append(net["head"](torch.cat([s, c], dim=2)))
    return torch.cat(answers, dim=1).transpose(1, 2)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", MODELS)
def test_the_model_is_that_of_pytorch(cell, score, kind):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    model = kind(9, 7, 5, 6, cell, score, rng=0, dtype=np.float64)
    net = in_torch(torch, model, cell)
    src, tgt, mask = tokens(rng, 8, 10, 4)
    target = rng.integers(0, 7, (8, 4))
    theirs = torch_forward(torch, net, score, src, tgt, mask, kind is BahdanauSeq2Seq)
    ours, cache = model.forward(src, tgt, mask)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-10)
    loss = CrossEntropyLoss(ignore_index=0)
    value, loss_cache = loss.forward(ours, target)
    torch_loss = torch.nn.functional.cross_entropy(theirs, torch.tensor(target), ignore_index=0)
    assert abs(value - torch_loss.item()) < 1e-10
    torch_loss.backward()
    _, grads = model.backward(loss.backward(loss_cache), cache)
    assert list(grads) == list(model.params)
    own = dict(net.named_parameters())
    for name, g in grads.items():
        np.testing.assert_allclose(g, own[name].grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_steps_are_the_whole(cell, masked, kind):
    rng, model = np.random.default_rng(0), kind(9, 7, 5, 6, cell, rng=0, dtype=np.float64)
    src, tgt, mask = tokens(rng, 4, 8, 5)
    mask = mask if masked else None
    logits, weights = model(src, tgt, mask), model.alignment(src, tgt, mask)
    assert logits.shape == (4, 7, 5) and weights.shape == (4, 5, 8)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=0, atol=1e-12)
    if masked:
        assert (weights.swapaxes(1, 2)[~mask] == 0).all()
    state = model.encode(src, mask)

    def arrays(part):
        return sum(map(arrays, part), []) if isinstance(part, tuple) else [part]

    assert all(len(a) == 4 for a in arrays(state))
    for t in range(5):
        one, state = model.step(tgt[:, t], state)
        np.testing.assert_allclose(one, logits[:, :, t], rtol=0, atol=1e-12)


def test_padding_does_not_matter():
    rng, model = np.random.default_rng(0), AttentionSeq2Seq(9, 7, 5, 6, rng=0, dtype=np.float64)
    src, tgt, mask = tokens(rng, 4, 8, 5)
    wide, more = np.pad(src, ((0, 0), (0, 3))), np.pad(mask, ((0, 0), (0, 3)))
    np.testing.assert_allclose(model(src, tgt, mask), model(wide, tgt, more), rtol=0, atol=1e-12)
    for i in range(4):
        n = mask[i].sum()
        np.testing.assert_allclose(
            model(src[i : i + 1, :n], tgt[i : i + 1]),
            model(src, tgt, mask)[i : i + 1],
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_source_without_tokens(cell, kind):
    model = kind(9, 7, 5, 6, cell, rng=0)
    src, tgt, mask = tokens(np.random.default_rng(0), 3, 6, 4)
    mask[1] = False
    logits, cache = model.forward(src, tgt, mask)
    assert np.isfinite(logits).all() and (model.alignment(src, tgt, mask)[1] == 0).all()
    _, grads = model.backward(np.ascontiguousarray(logits), cache)
    assert all(np.isfinite(g).all() for g in grads.values())
    assert len(greedy_decode(model, src, mask, max_length=5)) == 3


def test_search_takes_the_model():
    model = AttentionSeq2Seq(9, 7, 5, 6, rng=3)
    src, _, mask = tokens(np.random.default_rng(0), 3, 6, 4)
    greedy = greedy_decode(model, src, mask, max_length=6)
    ids, scores = beam_search(model, src, mask, beam_size=1, max_length=6)
    np.testing.assert_array_equal(ids, greedy)
    ids, scores = beam_search(model, src, mask, beam_size=20, max_length=6)
    assert ids.shape[0] == 3 and np.isfinite(scores).all()


def test_it_learns_seeds_repeat_and_files_keep_it(tmp_path):
    rng = np.random.default_rng(0)
    src = rng.integers(3, 9, (256, 5))
    out = np.where(src[:, ::-1] < 7, src[:, ::-1], 3)  # the reverse
    tgt = np.concatenate([np.ones((256, 1), int), out[:, :-1]], axis=1)
    mask = np.ones(src.shape, bool)

    def learnt(seed):
        model = AttentionSeq2Seq(9, 7, 16, 32, rng=seed)
        fit(
            model,
            CrossEntropyLoss(ignore_index=0),
            AdamW(model.params, lr=1e-2),
            (src, tgt, mask),
            out,
            epochs=12,
            rng=seed,
            progress=False,
        )
        return model

    model, twin = learnt(0), learnt(0)
    assert (model(src, tgt, mask).argmax(axis=1) == out).mean() > 0.97
    np.testing.assert_array_equal(model(src, tgt, mask), twin(src, tgt, mask))
    save(model, tmp_path / "model.safetensors")
    other = AttentionSeq2Seq(9, 7, 16, 32, rng=5)
    load(other, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model(src, tgt, mask), other(src, tgt, mask))


@pytest.mark.parametrize(
    "name, change",
    [
        ("src", {"src": np.zeros((3, 0), int)}),
        ("src", {"src": np.full((3, 6), 9)}),
        ("src", {"src": np.full((3, 6), -1)}),
        ("src", {"src": np.zeros((3, 6))}),
        ("src", {"src": np.zeros(6, int)}),
        ("src", {"src": np.zeros((0, 6), int)}),
        ("tgt", {"tgt": np.zeros((3, 0), int)}),
        ("tgt", {"tgt": np.full((3, 4), 7)}),
        ("tgt", {"tgt": np.zeros((2, 4), int)}),
        ("tgt", {"tgt": "no"}),
        ("src_mask", {"src_mask": np.ones((3, 5), bool)}),
        ("src_mask", {"src_mask": np.ones((3, 6))}),
    ],
)
def test_tokens_are_refused_by_name(name, change):
    model = AttentionSeq2Seq(9, 7, 5, 6, rng=0)
    good = {"src": np.ones((3, 6), int), "tgt": np.ones((3, 4), int), "src_mask": None}
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        model.forward(**{**good, **change})


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("kind", MODELS)
def test_tokens_and_states_of_a_step_are_refused_by_name(kind, cell):
    model = kind(9, 7, 5, 6, cell, rng=0)
    first, memory, mask = state = model.encode(np.ones((3, 6), int))
    for wrong in (np.full(3, 7), np.full(3, -1), np.zeros(3), [1, 2], 1, [[1]] * 3, None):
        with pytest.raises((ValueError, TypeError), match="^tokens: expected"):
            model.step(wrong, state)
    for wrong in (
        None,
        5,
        (),
        state[:2],
        (memory, memory, mask),
        (first, memory[:2], mask),
        (first, memory[:, :, :5], mask),
        (first, memory, mask * 1.0),
        (first, memory[0], mask),
        kind(9, 7, 5, 8, cell).encode(np.ones((3, 6), int)),
    ):
        with pytest.raises(ValueError, match="^state: expected what encode or step gave"):
            model.step([1, 2, 3], wrong)


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_the_model_are_refused(kind):
    model = kind(9, 7, 5, 6, rng=0)
    answer, cache = model.forward(np.ones((3, 6), int), np.ones((3, 4), int))
    for wrong in (answer[:, :, :2], answer.astype("f8"), answer[0], None, answer.tolist()):
        with pytest.raises((ValueError, TypeError), match="^grad: expected"):
            model.backward(wrong, cache)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "name, change",
    [
        ("src_vocab", {"src_vocab": 0}),
        ("tgt_vocab", {"tgt_vocab": 2.5}),
        ("embedding_dim", {"embedding_dim": 0}),
        ("hidden_size", {"hidden_size": 7}),
        ("hidden_size", {"hidden_size": 0}),
        ("hidden_size", {"hidden_size": "8"}),
        ("cell", {"cell": "rnn"}),
        ("score", {"score": "cosine"}),
        ("rng", {"rng": "seed"}),
    ],
)
def test_settings_of_the_model_are_refused_by_name(name, change, kind):
    good = {"src_vocab": 9, "tgt_vocab": 7, "embedding_dim": 4, "hidden_size": 6}
    with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
        kind(**{**good, **change})
