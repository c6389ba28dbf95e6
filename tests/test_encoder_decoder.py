"""Encoder and decoder beyond their chapter: PyTorch, masks, beam search, bad input, seeds."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.encoder_decoder import Decoder, Encoder, Seq2Seq, beam_search, greedy_decode
from dlnotes.mlp import CrossEntropyLoss, log_softmax
from dlnotes.training import AdamW, fit, load, save
from tests.parity import parity, torch

KINDS = [("gru", False), ("gru", True), ("lstm", False), ("lstm", True)]
SRC = np.array([[3, 4, 5, 6, 2], [6, 2, 0, 0, 0], [5, 3, 2, 0, 0]])
MASK = SRC != 0
TGT = np.array([[1, 4, 3, 5], [1, 3, 2, 0], [1, 5, 5, 4]])
OUT = np.array([[4, 3, 5, 2], [3, 2, 0, 0], [5, 5, 4, 2]])


def model(cell="gru", bidirectional=False, seed=0, dtype=np.float64, vocab=6, scale=1.0):
    made = Seq2Seq(7, vocab, 3, 4, cell, bidirectional, rng=seed, dtype=dtype)
    for p in made.params.values():
        p *= scale
    return made


class Torch(torch.nn.Module if torch else object):
    "The same, put together from PyTorch's own layers; the source is packed."

    def __init__(self, cell, bidirectional, v_src=7, v_tgt=6, e=3, h=4):
        super().__init__()
        kind, c = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell], h * (1 + bidirectional)
        self.encoder, self.decoder = torch.nn.Module(), torch.nn.Module()
        self.encoder.embedding = torch.nn.Embedding(v_src, e, padding_idx=0)
        self.encoder.rnn = kind(e, h, batch_first=True, bidirectional=bidirectional)
        self.decoder.bridge = torch.nn.Linear(c, h)
        self.decoder.embedding = torch.nn.Embedding(v_tgt, e, padding_idx=0)
        self.decoder.rnn = kind(e + c, h, batch_first=True)
        self.decoder.head = torch.nn.Linear(h, v_tgt)
        self.lstm = cell == "lstm"

    def forward(self, src, tgt, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            self.encoder.embedding(src), lengths, batch_first=True, enforce_sorted=False
        )
        last = self.encoder.rnn(packed)[1]
        c = torch.cat(list(last[0] if self.lstm else last), dim=1)
        s = torch.tanh(self.decoder.bridge(c))[None]
        x = torch.cat([self.decoder.embedding(tgt), c[:, None].expand(-1, tgt.shape[1], -1)], dim=2)
        return self.decoder.head(
            self.decoder.rnn(x, (s, torch.zeros_like(s)) if self.lstm else s)[0]
        )


# ---- the model


@parity
@pytest.mark.parametrize(("cell", "bidirectional"), KINDS)
def test_as_pytorch_forward_and_backward(cell, bidirectional):
    ours, theirs = model(cell, bidirectional), Torch(cell, bidirectional).double()
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    logits = theirs(torch.tensor(SRC), torch.tensor(TGT), MASK.sum(axis=1).tolist())
    value = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.tensor(OUT), ignore_index=0
    )
    value.backward()
    loss = CrossEntropyLoss(ignore_index=0)
    answer, cache = ours.forward(SRC, TGT, MASK)
    mine, back = loss.forward(answer, OUT)
    _, grads = ours.backward(loss.backward(back), cache)
    assert answer.shape == (3, 6, 4)
    assert abs(answer - logits.detach().numpy().transpose(0, 2, 1)).max() < 1e-10
    assert abs(mine - value.item()) < 1e-10
    assert list(grads) == list(ours.params)
    for name, p in theirs.named_parameters():
        assert abs(grads[name] - p.grad.numpy()).max() < 1e-10, name


@pytest.mark.parametrize(("cell", "bidirectional"), KINDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing_and_steps_are_the_whole(cell, bidirectional, data):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    t, rng = data.draw(st.integers(1, 5)), np.random.default_rng(data.draw(st.integers(0, 99)))
    made, m, longest = model(cell, bidirectional, scale=2), len(lengths), max(lengths)
    src, tgt = rng.integers(1, 7, (m, longest)), rng.integers(0, 6, (m, t))
    mask = np.arange(longest) < np.array(lengths)[:, None]
    whole = made(np.where(mask, src, 0), tgt, mask)
    assert abs(made(src, tgt, mask) - whole).max() < 1e-12  # whatever stands under the mask
    for i, n in enumerate(lengths):
        assert abs(made(src[i : i + 1, :n], tgt[i : i + 1]) - whole[i]).max() < 1e-12
    state = made.encode(src, mask)
    assert all(a.shape[0] == m for a in state)
    for k in range(t):
        logits, state = made.step(tgt[:, k], state)
        assert abs(logits - whole[:, :, k]).max() < 1e-12


@pytest.mark.parametrize(("cell", "bidirectional"), KINDS)
def test_a_fully_masked_source_has_a_context_of_zeros(cell, bidirectional):
    mask = MASK.copy()
    mask[1] = False
    made = model(cell, bidirectional)
    answer, cache = made.forward(SRC, TGT, mask)
    _, grads = made.backward(np.ones_like(answer), cache)
    assert not made.encode(SRC, mask)[0][1].any()
    assert np.isfinite(answer).all() and all(np.isfinite(g).all() for g in grads.values())
    ids, scores = beam_search(made, SRC, mask, max_length=5)
    assert np.isfinite(scores).all() and ids.shape[0] == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_and_shapes_stay(dtype):
    made = model(dtype=dtype)
    answer, cache = made.forward(SRC.astype(np.int32), TGT.astype(np.uint8), MASK)
    _, grads = made.backward(np.ones(answer.shape, dtype), cache)
    assert answer.dtype == dtype and {g.dtype for g in grads.values()} == {np.dtype(dtype)}
    assert all(g.shape == made.params[k].shape for k, g in grads.items())
    assert all(a.dtype == dtype for a in made.encode(SRC))


def test_seeds_copies_and_files(tmp_path):
    a, b, c = model(seed=3), model(seed=3), model(seed=4)
    same = {k: np.array_equal(v, b.params[k]) for k, v in a.params.items()}
    assert all(same.values()) and not np.array_equal(a(SRC, TGT), c(SRC, TGT))
    assert np.array_equal(pickle.loads(pickle.dumps(a))(SRC, TGT), a(SRC, TGT))
    save(a, tmp_path / "model.safetensors")
    load(c, tmp_path / "model.safetensors")
    assert np.array_equal(a(SRC, TGT), c(SRC, TGT))
    with pytest.raises(ValueError, match="shape"):
        load(model(vocab=8), tmp_path / "model.safetensors")


def test_learns_to_copy():
    rng = np.random.default_rng(0)
    words = rng.integers(3, 6, (200, 3))
    ends = np.full((200, 1), 2)
    src, tgt_in, out = (
        np.hstack([words, ends]),
        np.hstack([ends - 1, words]),
        np.hstack([words, ends]),
    )
    made = Seq2Seq(6, 6, 8, 24, rng=0)
    history = fit(
        made,
        CrossEntropyLoss(ignore_index=0),
        AdamW(made.params, lr=1e-2),
        (src, tgt_in, src != 0),
        out,
        epochs=25,
        rng=0,
        progress=False,
    )
    assert history.train_loss[-1] < 0.1
    assert (greedy_decode(made, src, max_length=6)[:, :4] == out).all(axis=1).mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[]], [[1]]), ValueError, "src: expected whole numbers|src: expected at least one"),
        ((np.zeros((2, 0), int), [[1], [1]]), ValueError, "src: expected at least one token"),
        ((np.zeros((0, 2), int), np.zeros((0, 2), int)), ValueError, "src: expected at least one"),
        (([[7]], [[1]]), ValueError, "src: expected tokens from 0 to 6, got 7 to 7"),
        (([[-1]], [[1]]), ValueError, "src: expected tokens from 0 to 6, got -1"),
        (([[3]], [[6]]), ValueError, "tgt: expected tokens from 0 to 5, got 6"),
        (([[3]], np.zeros((1, 0), int)), ValueError, "tgt: expected at least one token"),
        (([[3]], [[1], [1]]), ValueError, "tgt: expected 1 rows, as src has, got 2"),
        (([3], [[1]]), ValueError, "src: expected whole numbers"),
        (([[3.0]], [[1]]), ValueError, "src: expected whole numbers .* got float64"),
        (([[3], [3, 4]], [[1], [1]]), ValueError, "src: expected an array, got rows of unequal"),
        (
            ([[3]], [[1]], [[True], [True, False]]),
            ValueError,
            "src_mask: expected an array, got rows",
        ),
        (([[3]], [[1]], [[1]]), TypeError, "src_mask: expected True and False, got dtype int64"),
        (([[3]], [[1]], [[True, True]]), ValueError, r"src_mask: expected shape \(1, 1\)"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        model().forward(*arguments)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"cell": "rnn"}, ValueError, "cell: expected 'gru' or 'lstm', got 'rnn'"),
        ({"src_vocab": 0}, ValueError, "src_vocab: expected 1 or more"),
        ({"tgt_vocab": 2.5}, TypeError, "tgt_vocab: expected a whole number"),
        ({"hidden_size": 0}, ValueError, "hidden_size|context_size|in_features"),
        ({"embedding_dim": -1}, ValueError, "embedding_dim"),
        ({"bidirectional": "yes"}, TypeError, "bidirectional: expected True or False"),
        ({"dtype": np.int64}, TypeError, "dtype: expected float32 or float64"),
        ({"rng": "now"}, TypeError, "rng: expected a Generator"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        Seq2Seq(**({"src_vocab": 5, "tgt_vocab": 5} | settings))


def test_bad_gradient_and_bad_step():
    made = model()
    answer, cache = made.forward(SRC, TGT, MASK)
    with pytest.raises(ValueError, match="grad: expected float64 of shape"):
        made.backward(answer[:, :, :2], cache)
    with pytest.raises(ValueError, match="tokens: expected tokens from 0 to 5, got 1 to 9"):
        made.step(np.array([1, 2, 9]), made.encode(SRC))


def test_halves_alone():
    encoder = Encoder(7, 3, 4, "lstm", True, rng=0, dtype=np.float64)
    context = encoder(SRC, MASK)
    decoder = Decoder(6, 3, 5, context.shape[1], rng=0, dtype=np.float64)
    logits, state = decoder(TGT, context)
    assert context.shape == (3, 8) and logits.shape == (3, 4, 6) and state.shape == (1, 3, 5)


def test_halves_draw_each_part_anew_and_refuse_what_does_not_fit():
    decoder = Decoder(6, 3, 5, 8, rng=0)
    bridge, weight = (decoder.params[f"{name}.weight"].ravel() for name in ("bridge", "head"))
    assert abs(np.corrcoef(bridge[:30], weight[:30])[0, 1]) < 0.9
    with pytest.raises(TypeError, match="seed"):
        Encoder(7, 3, 4, seed=0)
    context = np.ones((3, 8), np.float32)
    for wrong in (context[:2], context[0], context[:, :7], context.astype("f8"), None):
        with pytest.raises((ValueError, TypeError), match="^context: expected"):
            decoder(TGT, wrong)
    with pytest.raises(ValueError, match=r"^tgt: expected shape \(m, T\), got \(4,\)"):
        decoder(TGT[0], context)
    (logits, state), _ = decoder.forward(TGT, context)
    with pytest.raises(ValueError, match="^cache: expected one of forward without a state"):
        decoder.backward(logits, decoder.forward(TGT, context, state)[1])


@pytest.mark.parametrize(("cell", "bidirectional"), KINDS)
def test_states_and_tokens_of_a_step_are_refused(cell, bidirectional):
    made = model(cell, bidirectional)
    state = made.encode(SRC)
    for wrong in (
        None,
        5,
        (),
        state[:1],
        state + state,
        tuple(a[0] for a in state),
        (state[0][:2], *state[1:]),
        tuple(a.astype("f4") for a in state),
    ):
        with pytest.raises(ValueError, match="^state: expected what encode or step gave"):
            made.step([1, 2, 3], wrong)
    for wrong in ([1, 2], 3, [[1], [2], [3]], [1.0, 2, 3], [[1], [2, 3]], None):
        with pytest.raises(ValueError, match="^tokens: expected"):
            made.step(wrong, state)
    assert np.array_equal(made.step([1, 2, 3], list(state))[0], made.step([1, 2, 3], state)[0])


def test_words_for_the_model():
    assert repr(model()) == "Seq2Seq(7, 6, 3, 4, 'gru')"
    assert repr(model("lstm", True)) == "Seq2Seq(7, 6, 3, 4, 'lstm', bidirectional=True)"


# ---- decoding


class Table:
    "A model whose next token depends on the last one and on the source's first."

    def __init__(self, seed, vocab, sources=3):
        self.logits = np.random.default_rng(seed).normal(0, 2, (sources, vocab, vocab))

    def encode(self, src, src_mask=None):
        return (np.asarray(src)[:, :1], (np.asarray(src)[:, 0].astype(float),))

    def step(self, tokens, state):
        source, (again,) = state
        assert (source[:, 0] == again).all()  # rows of a nested state stay together
        return self.logits[source[:, 0], tokens], state


def plain_beam(model, src, size, steps, alpha, end=2):
    "The definition, for one source: the best answer and its score."
    live, done = [(0.0, [1], model.encode(src))], []
    while len(live[0][1]) <= steps and len(done) < size:
        grown = []
        for score, tokens, state in live:
            logits, after = model.step(np.array(tokens[-1:]), state)
            grown += [
                (score + p, [*tokens, k], after) for k, p in enumerate(log_softmax(logits[0]))
            ]
        grown.sort(key=lambda g: -g[0])
        done += [g for g in grown[:size] if g[1][-1] == end]
        live = [g for g in grown if g[1][-1] != end][:size]
    score, tokens, _ = max(done or live, key=lambda g: g[0] / (len(g[1]) - 1) ** alpha)
    return tokens[1:], score / (len(tokens) - 1) ** alpha


def all_answers(model, src, steps, vocab, end=2):
    "(log-probability, tokens) of each finished answer of at most `steps` tokens."
    todo = [(0.0, [1], model.encode(src))]
    while todo:
        score, tokens, state = todo.pop()
        logits, after = model.step(np.array(tokens[-1:]), state)
        for k, p in enumerate(log_softmax(logits[0])):
            if k == end:
                yield score + p, [*tokens[1:], k]
            elif len(tokens) < steps:
                todo.append((score + p, [*tokens, k], after))


@given(
    seed=st.integers(0, 999),
    vocab=st.integers(3, 6),
    size=st.integers(1, 9),
    steps=st.integers(1, 6),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
@settings(max_examples=120, deadline=None)
def test_beams_are_those_of_the_definition(seed, vocab, size, steps, alpha):
    table, src = Table(seed, vocab), np.array([[0], [1], [2]])
    ids, scores = beam_search(table, src, beam_size=size, max_length=steps, length_penalty=alpha)
    assert ids.dtype == np.int64 and scores.dtype == np.float64 and ids.shape[1] <= steps
    for i in range(3):
        tokens, score = plain_beam(table, src[i : i + 1], size, steps, alpha)
        assert abs(score - scores[i]) < 1e-9
        assert ids[i].tolist() == tokens + [0] * (ids.shape[1] - len(tokens))


@given(
    seed=st.integers(0, 999),
    vocab=st.integers(3, 4),
    steps=st.integers(1, 4),
    alpha=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_beam_wide_enough_finds_the_best_of_all(seed, vocab, steps, alpha):
    table, src = Table(seed, vocab), np.array([[0], [1], [2]])
    ids, scores = beam_search(
        table, src, beam_size=vocab**steps, max_length=steps, length_penalty=alpha
    )
    for i in range(3):
        answers = [
            (score / len(t) ** alpha, t)
            for score, t in all_answers(table, src[i : i + 1], steps, vocab)
        ]
        best = max(score for score, _ in answers)
        tied = [t for score, t in answers if best - score < 1e-9]
        assert abs(best - scores[i]) < 1e-9
        assert any(ids[i][: len(t)].tolist() == t and not ids[i][len(t) :].any() for t in tied)


@given(seed=st.integers(0, 999), cell=st.sampled_from(["gru", "lstm"]), alpha=st.floats(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_beam_of_one_is_greedy(seed, cell, alpha):
    made = model(cell, seed=seed, scale=4)
    greedy = greedy_decode(made, SRC, MASK, max_length=6)
    ids, scores = beam_search(made, SRC, MASK, beam_size=1, max_length=6, length_penalty=alpha)
    assert np.array_equal(ids, greedy)
    told = np.hstack([np.ones((3, 1), int), greedy[:, :-1]])
    logp = log_softmax(made(SRC, told, MASK), dim=1)
    each = np.take_along_axis(logp, greedy[:, None], axis=1)[:, 0] * (greedy != 0)
    if not (greedy == 0).any():  # no padding, and 0 was not written as a token
        assert np.allclose(scores, each.sum(axis=1) / greedy.shape[1] ** alpha, atol=1e-9)


def test_after_the_end_there_is_padding_and_nothing_longer_than_allowed():
    table = Table(0, 5)
    table.logits[:] = -9
    table.logits[0, :, 2] = 9  # ends at once
    table.logits[1, 1, 3] = table.logits[1, 3, 2] = 9
    table.logits[2, :, 4] = 9  # never ends
    src = np.array([[0], [1], [2]])
    wanted = [[2, 0, 0], [3, 2, 0], [4, 4, 4]]
    assert greedy_decode(table, src, max_length=3).tolist() == wanted
    assert beam_search(table, src, beam_size=1, max_length=3)[0].tolist() == wanted
    assert greedy_decode(table, src[:2], max_length=50).tolist() == [row[:2] for row in wanted[:2]]


def test_a_finished_answer_is_kept_though_others_push_it_from_the_beam():
    table = Table(0, 7, sources=1)
    table.logits[:] = -50
    for token, p in ((2, 0.3), (3, 0.36), (4, 0.34)):
        table.logits[0, 1, token] = np.log(p)
    table.logits[0, 3, 3:7] = table.logits[0, 4, 3:7] = np.log(0.25)  # likely, but scattered later
    table.logits[0, 5:, 3:7] = np.log(0.25)
    ids, scores = beam_search(table, np.array([[0]]), beam_size=3, max_length=8)
    assert ids.tolist() == [[2]] and abs(np.exp(scores[0]) - 0.3) < 1e-9


def test_rows_do_not_depend_on_their_neighbours():
    made = model(scale=4)
    ids, scores = beam_search(made, SRC, MASK, beam_size=5, max_length=6)
    for i in range(3):
        n = MASK[i].sum()
        alone, score = beam_search(made, SRC[i : i + 1, :n], beam_size=5, max_length=6)
        assert abs(score[0] - scores[i]) < 1e-12
        assert ids[i].tolist() == alone[0].tolist() + [0] * (ids.shape[1] - alone.shape[1])


@pytest.mark.parametrize("decode", [lambda *a, **k: (greedy_decode(*a, **k),), beam_search])
def test_tokens_can_be_forbidden(decode):
    src = np.array([[0], [1], [2]])
    for seed in range(10):
        table = Table(seed, 7)
        finite = table.logits
        finite[:, :, 5] = -1e9
        expected = decode(table, src, max_length=5)
        table.logits = finite.copy()
        table.logits[:, :, 5] = -np.inf
        ids, *scores = decode(table, src, max_length=5)
        assert (ids == expected[0]).all() and not (ids == 5).any()
        assert not scores or abs(scores[0] - expected[1]).max() < 1e-12
    table.logits[:] = -np.inf
    assert decode(table, src, max_length=5)[-1].max() in (0, -np.inf)
    for wrong in (np.nan, np.inf):
        table.logits[0, 1, 3] = wrong
        with pytest.raises(ValueError, match="^logits: expected finite numbers or -inf"):
            decode(table, src)


@pytest.mark.parametrize(
    ("decode", "options", "error", "message"),
    [
        (greedy_decode, {"max_length": 0}, ValueError, "max_length: expected 1 or more"),
        (greedy_decode, {"start": -1}, ValueError, "start: expected 0 or more"),
        (greedy_decode, {"start": 6}, ValueError, "tokens: expected tokens from 0 to 5"),
        (greedy_decode, {"end": 1.5}, TypeError, "end: expected a whole number"),
        (beam_search, {"beam_size": 0}, ValueError, "beam_size: expected 1 or more"),
        (beam_search, {"beam_size": 2.0}, TypeError, "beam_size: expected a whole number"),
        (beam_search, {"max_length": 0}, ValueError, "max_length: expected 1 or more"),
        (beam_search, {"length_penalty": -1}, ValueError, "length_penalty: expected a number"),
        (beam_search, {"length_penalty": float("nan")}, ValueError, "length_penalty"),
        (beam_search, {"start": 6}, ValueError, "tokens: expected tokens from 0 to 5"),
    ],
)
def test_bad_options(decode, options, error, message):
    with pytest.raises(error, match=message):
        decode(model(), SRC, MASK, **options)


@pytest.mark.parametrize("decode", [greedy_decode, beam_search])
def test_bad_sources(decode):
    with pytest.raises(ValueError, match="src: expected at least one token"):
        decode(model(), np.zeros((2, 0), int))
    with pytest.raises(ValueError, match="src: expected tokens from 0 to 6, got 8"):
        decode(model(), [[8]])
    assert len(decode(model(), [[3, 4]], max_length=3)) in (1, 2)  # a list will do


class Sure:
    "Sure, at each step, of one token more until there are `n`, and then of the end."

    def __init__(self, n):
        self.n = n

    def encode(self, src, src_mask=None):
        return np.zeros((len(src), 1), int)

    def step(self, tokens, written):
        go_on, stop = [0, 0, 0.02, 0.96, 0.02], [0, 0, 0.96, 0.02, 0.02]
        with np.errstate(divide="ignore"):
            return np.log(np.where(written < self.n, go_on, stop)), written + 1


@pytest.mark.parametrize("size", [2, 4, 10])
def test_a_long_answer_is_found_if_the_search_goes_on(size):
    src = np.ones((2, 1), int)
    wanted = np.array([[3] * 20 + [2]] * 2)
    ids, scores = beam_search(Sure(20), src, beam_size=size, early_stopping=False)
    assert np.array_equal(ids, wanted) and np.allclose(scores, 21 * np.log(0.96))
    early, worse = beam_search(Sure(20), src, beam_size=size)
    assert early.shape[1] < 21 and (worse < scores).all()
    with pytest.raises(TypeError, match="early_stopping"):
        beam_search(Sure(20), src, early_stopping=2)
