"""Embedding, Transpose and SequenceModel beyond their chapter: PyTorch, bad input, masks, files."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.core.checking import check_gradients, numerical_grad
from dlnotes.core.layers import Sequential
from dlnotes.lstm import GRU, LSTM
from dlnotes.mlp import CrossEntropyLoss, Linear, MSELoss, ReLU, Tanh
from dlnotes.rnn import RNN, Embedding, SequenceModel, Transpose
from dlnotes.training import SGD, AdamW, Dropout, evaluate, fit, load, save

DTYPES = [np.float32, np.float64]
CELLS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}


def close(ours, theirs, tolerance=1e-10):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=tolerance)


# --- Embedding


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    width=st.integers(1, 7),
    shape=st.lists(st.integers(0, 5), max_size=3),
    padding=st.booleans(),
    kind=st.sampled_from([np.int8, np.int32, np.int64, np.uint8]),
    seed=st.integers(0, 2**20),
)
def test_embedding_is_that_of_pytorch(rows, width, shape, padding, kind, seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    padding_idx = int(rng.integers(-rows, rows)) if padding else None
    ours = Embedding(rows, width, padding_idx, rng=seed, dtype=np.float64)
    theirs = torch.nn.Embedding(rows, width, padding_idx, dtype=torch.float64)
    theirs.load_state_dict({k: torch.tensor(a) for k, a in ours.state_dict().items()})
    ids = rng.integers(0, rows, shape).astype(kind)
    y, cache = ours.forward(ids)
    answer = theirs(torch.tensor(ids.astype(np.int64)))
    assert y.shape == tuple(answer.shape) == (*shape, width) and y.dtype == np.float64
    close(y, answer, 0)
    grad = rng.normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    grad_x, grads = ours.backward(grad, cache)
    assert grad_x is None and list(grads) == ["weight"]
    close(grads["weight"], theirs.weight.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_draws_from_the_standard_normal_distribution(dtype):
    table = Embedding(2000, 50, rng=3, dtype=dtype)
    weight = table.params["weight"]
    assert weight.dtype == dtype and abs(weight.mean()) < 0.02 and abs(weight.std() - 1) < 0.02
    assert 0.02 < (abs(weight) > 2).mean() < 0.07  # 4.6% of normal numbers
    assert (
        Embedding(2000, 50, rng=np.random.default_rng(3), dtype=dtype).params["weight"] == weight
    ).all()
    assert (Embedding(2000, 50, rng=4, dtype=dtype).params["weight"] != weight).any()
    y, cache = table.forward(np.array([5, 5, 9]))
    _, grads = table.backward(np.ones_like(y), cache)
    assert y.dtype == grads["weight"].dtype == dtype
    assert (grads["weight"][5] == 2).all() and grads["weight"].sum() == 150


def test_the_padding_row_is_zero_and_stays():
    model = SequenceModel(
        RNN(3, 4, rng=0),
        Linear(4, 2, rng=0),
        embedding=Embedding(5, 3, padding_idx=-5, rng=0),
        last=True,
    )
    table = model.embedding
    assert table.padding_idx == 0 and (table.params["weight"][0] == 0).all()
    assert (table.params["weight"][1:] != 0).all()
    before = table.params["weight"].copy()
    ids = np.random.default_rng(0).integers(0, 5, (20, 6))
    fit(
        model,
        CrossEntropyLoss(),
        AdamW(model.params, 0.01),
        ids,
        ids[:, -1] % 2,
        epochs=2,
        rng=0,
        progress=False,
    )
    assert (table.params["weight"][0] == 0).all() and (table.params["weight"] != before)[1:].all()


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([0.0, 1.0], TypeError, "x: expected whole numbers"),
        ([True, False], TypeError, "x: expected whole numbers"),
        (["a"], TypeError, "x: expected whole numbers"),
        ([0, -1], ValueError, "x: expected 0 to 3, got -1"),
        ([[0, 4]], ValueError, "x: expected 0 to 3, got 4"),
        (np.array([2**63], np.uint64), ValueError, "x: expected 0 to 3"),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(ids, error, words):
    with pytest.raises(error, match=words):
        Embedding(4, 2)(ids)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(num_embeddings=0), ValueError, "num_embeddings"),
        (dict(num_embeddings=2.0), TypeError, "num_embeddings"),
        (dict(embedding_dim=-1), ValueError, "embedding_dim"),
        (dict(embedding_dim=True), TypeError, "embedding_dim"),
        (dict(padding_idx=4), ValueError, "padding_idx: expected -4 to 3, got 4"),
        (dict(padding_idx=-5), ValueError, "padding_idx: expected -4 or more, got -5"),
        (dict(padding_idx=1.0), TypeError, "padding_idx"),
        (dict(padding_idx=[1, 2]), TypeError, "padding_idx"),
        (dict(rng="a"), TypeError, "rng"),
        (dict(rng=-1), ValueError, "rng"),
        (dict(dtype=np.float16), TypeError, "dtype"),
        (dict(dtype=int), TypeError, "dtype"),
    ],
)
def test_settings_of_an_embedding_that_do_not_fit(arguments, error, words):
    with pytest.raises(error, match=words):
        Embedding(**{"num_embeddings": 4, "embedding_dim": 2, **arguments})


@pytest.mark.parametrize("grad", [np.zeros((2, 3)), np.zeros((2, 2), np.float32), np.zeros(2)])
def test_a_gradient_of_another_shape_or_dtype_is_refused(grad):
    table = Embedding(4, 2, dtype=np.float64)
    with pytest.raises(ValueError, match="grad: expected float64 of shape"):
        table.backward(grad, table.forward(np.array([1, 2]))[1])


# --- Transpose


@settings(deadline=None, max_examples=40)
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=4), data=st.data())
def test_transpose_is_that_of_pytorch(shape, data):
    torch = pytest.importorskip("torch")
    dims = [data.draw(st.integers(-len(shape), len(shape) - 1)) for _ in range(2)]
    x = np.random.default_rng(0).normal(size=shape)
    tensor = torch.tensor(x, requires_grad=True)
    answer = tensor.transpose(*dims)
    y, cache = Transpose(*dims).forward(x)
    assert y.flags.c_contiguous and y.dtype == x.dtype
    close(y, answer, 0)
    grad = np.random.default_rng(1).normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    grad_x, grads = Transpose(*dims).backward(grad, cache)
    assert grads == {} and grad_x.flags.c_contiguous
    close(grad_x, tensor.grad, 0)


def test_transpose_refuses_axes_that_are_not_there():
    for wrong in (1.0, None, "a", True):
        with pytest.raises(TypeError, match="dim1"):
            Transpose(0, wrong)
    for dims in ((0, 2), (-3, 0)):
        with pytest.raises(ValueError, match="x: expected axes"):
            Transpose(*dims)(np.zeros((2, 3)))
    layer = Transpose(0, 1)
    with pytest.raises(ValueError, match="grad: expected"):
        layer.backward(np.zeros((2, 3)), layer.forward(np.zeros((2, 3)))[1])
    with pytest.raises(TypeError, match="x"):
        layer(np.array([["a"]]))
    assert repr(layer) == "Transpose(0, 1)"
    assert layer(np.zeros((2, 3), np.float32)).dtype == np.float32


# --- SequenceModel


def twins(cell, *, layers=1, both=False, last=False, vocabulary=None, seed=0, padding_idx=None):
    "A model of ours and the same in PyTorch, in float64, as a module with the same names."
    torch = pytest.importorskip("torch")
    d = 5 * (1 + both)
    table = vocabulary and Embedding(vocabulary, 3, padding_idx, rng=seed, dtype=np.float64)
    ours = SequenceModel(
        CELLS[cell](3, 5, num_layers=layers, bidirectional=both, rng=seed, dtype=np.float64),
        Linear(d, 4, rng=seed, dtype=np.float64),
        embedding=table,
        last=last,
    )

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if vocabulary:
                self.embedding = torch.nn.Embedding(vocabulary, 3, padding_idx)
            self.recurrent = getattr(torch.nn, cell)(
                3, 5, num_layers=layers, bidirectional=both, batch_first=True
            )
            self.head = torch.nn.Linear(d, 4)

        def forward(self, x, lengths=None):
            x = self.embedding(x) if vocabulary else x
            total = x.shape[1]
            if lengths is not None:
                x = torch.nn.utils.rnn.pack_padded_sequence(
                    x, lengths, batch_first=True, enforce_sorted=False
                )
            y, state = self.recurrent(x)
            h = state[0] if isinstance(state, tuple) else state
            if lengths is not None:
                y, _ = torch.nn.utils.rnn.pad_packed_sequence(
                    y, batch_first=True, total_length=total
                )
            return self.head(torch.cat(tuple(h[-1 - both :]), dim=1) if last else y)

    theirs = Twin().double()
    theirs.load_state_dict({k: torch.tensor(a) for k, a in ours.state_dict().items()})
    return torch, ours, theirs


@pytest.mark.parametrize("cell", CELLS)
@settings(deadline=None, max_examples=25)
@given(
    layers=st.integers(1, 3),
    both=st.booleans(),
    last=st.booleans(),
    ids=st.booleans(),
    masked=st.booleans(),
    size=st.tuples(st.integers(1, 5), st.integers(1, 8)),
    seed=st.integers(0, 2**20),
)
def test_sequence_models_are_those_of_pytorch(cell, layers, both, last, ids, masked, size, seed):
    torch, ours, theirs = twins(
        cell, layers=layers, both=both, last=last, seed=seed, vocabulary=6 if ids else None
    )
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, size) if ids else rng.normal(size=(*size, 3))
    lengths = rng.integers(1, size[1] + 1, size[0]) if masked else None
    mask = np.arange(size[1]) < lengths[:, None] if masked else None
    tensor = torch.tensor(x, requires_grad=not ids)
    answer = theirs(tensor, None if lengths is None else torch.tensor(lengths))
    y, cache = ours.forward(x, mask)
    assert y.shape == tuple(answer.shape)
    close(y, answer)
    grad = rng.normal(size=y.shape)
    answer.backward(torch.tensor(grad))
    grad_x, grads = ours.backward(grad, cache)
    assert list(grads) == list(ours.params) == [name for name, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        close(grads[name], parameter.grad)
    if ids:
        assert grad_x is None
    else:
        close(grad_x, tensor.grad)
        assert ours.backward(grad, cache, input_grad=False)[0] is None


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("last", [False, True])
def test_weights_go_to_and_from_pytorch_in_a_file(cell, last, tmp_path):
    torch, ours, theirs = twins(cell, layers=2, both=True, last=last, vocabulary=6, padding_idx=2)
    files = pytest.importorskip("safetensors.torch")
    save(ours, tmp_path / "ours.safetensors")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    changed = copy.deepcopy(theirs)
    theirs.load_state_dict(files.load_file(tmp_path / "ours.safetensors"))
    ids = np.random.default_rng(0).integers(0, 6, (3, 7))
    close(ours(ids), theirs(torch.tensor(ids)))
    files.save_file(changed.state_dict(), tmp_path / "theirs.safetensors")
    load(ours, tmp_path / "theirs.safetensors")
    close(ours(ids), changed(torch.tensor(ids)))


def test_names_are_those_of_the_parts_in_pytorchs_order():
    model = SequenceModel(LSTM(3, 5), Sequential(Linear(5, 4), ReLU()), embedding=Embedding(6, 3))
    assert (
        list(model.state_dict())
        == list(model.params)
        == [
            "embedding.weight",
            "recurrent.weight_ih_l0",
            "recurrent.weight_hh_l0",
            "recurrent.bias_ih_l0",
            "recurrent.bias_hh_l0",
            "head.0.weight",
            "head.0.bias",
        ]
    )
    assert list(SequenceModel(RNN(3, 5, bias=False), Linear(5, 4)).params) == [
        "recurrent.weight_ih_l0",
        "recurrent.weight_hh_l0",
        "head.weight",
        "head.bias",
    ]
    assert repr(model) == (
        "SequenceModel(embedding=Embedding(6, 3), recurrent=LSTM(3, 5), "
        "head=Sequential(Linear(5, 4), ReLU()))"
    )
    assert repr(SequenceModel(RNN(3, 5), Linear(5, 4), last=True)).endswith("last=True)")
    assert repr(Embedding(6, 3, padding_idx=-1)) == "Embedding(6, 3, padding_idx=5)"


@pytest.mark.parametrize("cell", CELLS)
def test_what_stands_at_masked_steps_does_not_matter(cell):
    rng = np.random.default_rng(0)
    mask = rng.random((6, 9)) < 0.6  # holes as well
    mask[0] = False  # and a sequence without a real step
    x = rng.normal(size=(6, 9, 3))
    for last in (False, True):
        model = SequenceModel(
            CELLS[cell](3, 5, num_layers=2, bidirectional=True, rng=0, dtype=np.float64),
            Linear(10, 4, rng=0, dtype=np.float64),
            last=last,
        )
        other = np.where(mask[:, :, None], x, rng.normal(size=x.shape))
        y, cache = model.forward(x, mask)
        assert (y == model(other, mask)).all()
        grad = rng.normal(size=y.shape)
        grad_x, grads = model.backward(grad, cache)
        assert (grad_x[~mask] == 0).all() and (grad_x[mask] != 0).all()
        real = [model(x[k : k + 1, mask[k]])[0] for k in range(1, 6)]
        ours = y[1:] if last else [a[m] for a, m in zip(y, mask)][1:]
        for one, alone in zip(ours, real):
            np.testing.assert_allclose(one, alone, rtol=0, atol=1e-12)
        bias = model.head.params["bias"]
        assert (y[0] == bias).all()
        measured = numerical_grad(lambda v: (grad * model(v, mask)).sum(), x)  # noqa: B023
        np.testing.assert_allclose(grad_x, measured, rtol=0, atol=1e-7)


def test_an_embedding_may_be_any_layer():
    model = SequenceModel(
        GRU(4, 5, rng=0), Linear(5, 2, rng=0), embedding=Sequential(Linear(3, 4, rng=0), Tanh())
    )
    rng = np.random.default_rng(0)
    assert not model.takes_ids
    assert (
        check_gradients(model, MSELoss(), rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 2)))
        < 1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept_and_mixed_ones_refused(dtype):
    model = SequenceModel(
        LSTM(3, 5, rng=0, dtype=dtype),
        Linear(5, 2, rng=0, dtype=dtype),
        embedding=Embedding(4, 3, rng=0, dtype=dtype),
        last=True,
    )
    y, cache = model.forward(np.array([[1, 2], [0, 3]]))
    grads = model.backward(np.ones_like(y), cache)[1]
    assert y.dtype == dtype and {g.dtype for g in grads.values()} == {np.dtype(dtype)}
    other = np.float64 if dtype == np.float32 else np.float32
    mixed = SequenceModel(
        RNN(3, 5, dtype=dtype), Linear(5, 2, dtype=dtype), embedding=Embedding(4, 3, dtype=other)
    )
    with pytest.raises(TypeError, match="expected dtype"):
        mixed(np.array([[1, 2]]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(recurrent=Linear(3, 4)), "recurrent: expected a Recurrent, got Linear"),
        (dict(head=np.tanh), "head: expected a Layer"),
        (dict(embedding=np.eye(3)), "embedding: expected a Layer"),
        (dict(last=1), "last: expected True or False"),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(arguments, words):
    with pytest.raises(TypeError, match=words):
        SequenceModel(**{"recurrent": RNN(3, 4), "head": Linear(4, 2), **arguments})


def test_inputs_that_do_not_fit_are_refused():
    model = SequenceModel(RNN(3, 4), Linear(4, 2), embedding=Embedding(5, 3))
    ids = np.zeros((2, 6), int)
    for x, mask, error, words in [
        (ids.astype(float), None, TypeError, "x: expected whole numbers"),
        (ids + 5, None, ValueError, "x: expected 0 to 4, got 5"),
        (ids[0], None, ValueError, "x: expected shape"),
        (ids[:, :0], None, ValueError, "x: expected at least one"),
        (ids, np.ones((2, 6)), TypeError, "mask"),
        (ids, np.ones((2, 5), bool), ValueError, "mask"),
    ]:
        with pytest.raises(error, match=words):
            model(x, mask)
    with pytest.raises(ValueError, match="once"):
        one = Linear(4, 4)
        SequenceModel(RNN(4, 4), one, embedding=one)


def test_dropout_of_all_parts_follows_train_and_eval():
    head = Sequential(Dropout(0.5, rng=0), Linear(8, 2, rng=0))
    model = SequenceModel(RNN(3, 8, num_layers=2, dropout=0.5, rng=0), head, last=True)
    x = np.random.default_rng(0).normal(size=(3, 5, 3)).astype(np.float32)
    assert model.training and (model(x) != model(x)).any()
    assert model.eval() is model and not model.recurrent.training and not head.layers[0].training
    assert (model(x) == model(x)).all()


def first_among(n, rng):
    "Ids of 1 to 4 with zeros behind; the class is whether the first real one is above 2."
    ids, lengths = rng.integers(1, 5, (n, 6)), rng.integers(1, 7, n)
    mask = np.arange(6) < lengths[:, None]
    return (np.where(mask, ids, 0), mask), (ids[:, 0] > 2).astype(int)


@pytest.mark.parametrize("cell", CELLS)
def test_fit_takes_ids_and_masks(cell):
    rng = np.random.default_rng(0)
    model = SequenceModel(
        CELLS[cell](4, 16, rng=rng),
        Linear(16, 2, rng=rng),
        last=True,
        embedding=Embedding(5, 4, padding_idx=0, rng=rng),
    )
    assert model.takes_ids
    x, y = first_among(400, rng)
    history = fit(
        model, CrossEntropyLoss(), AdamW(model.params, 0.01), x, y, epochs=15, rng=0, progress=False
    )
    assert history.train_loss[-1] < 0.1 * history.train_loss[0]
    new, right = first_among(300, rng)
    assert evaluate(model, CrossEntropyLoss(), new, right)[1] > 0.97
    with pytest.raises(TypeError, match="whole numbers"):
        fit(model, CrossEntropyLoss(), SGD(model.params), x[0] * 0.5, y, progress=False)


def test_models_are_safe_in_threads_and_can_be_copied():
    rng = np.random.default_rng(0)
    model = SequenceModel(
        LSTM(4, 8, num_layers=2, rng=rng), Linear(8, 5, rng=rng), embedding=Embedding(5, 4, rng=rng)
    )
    batches = [rng.integers(0, 5, (3, 7 + k)) for k in range(12)]

    def both_ways(ids):
        y, cache = model.forward(ids)
        return y, model.backward(np.ones_like(y), cache)[1]

    alone = [both_ways(ids) for ids in batches]
    with ThreadPoolExecutor(4) as pool:
        for (y, grads), (y_2, grads_2) in zip(alone, pool.map(both_ways, batches)):
            assert (y == y_2).all() and all((grads[k] == grads_2[k]).all() for k in grads)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin(batches[0]) == model(batches[0])).all()
        assert not any(np.shares_memory(a, twin.params[k]) for k, a in model.params.items())
        twin.params["embedding.weight"][...] = 0  # the parts of a copy are its own
        assert (twin.embedding.params["weight"] == 0).all()
        assert (model.embedding.params["weight"] != 0).any()


# --- the experiment


def test_the_letter_experiment_learns_and_writes():
    from experiments import char_rnn

    known, unseen = char_rnn.TEXT[:60_000], char_rnn.TEXT[60_000:65_000]
    model = char_rnn.run(known, 0, 16, 32, 16, 20, 150, 0.01, 1.0)
    cost = char_rnn.bits(model, unseen)
    table = char_rnn.best_table(known[:2000], unseen[:500])
    assert 2.5 < cost < 3.7  # 5 bits for letters drawn blindly, 4.3 for their frequencies
    assert 0 <= table["k"] < 5 and 2 < table["bits"] < 4.5
    written = char_rnn.write(model, known[:20], 30, 0.5, np.random.default_rng(0))
    assert len(written) == 30 and set(written) <= set(char_rnn.LETTERS)
