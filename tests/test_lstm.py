"""What the chapter on gates adds to the layers: the first biases, and the long runs it shows."""

import json
from pathlib import Path

import numpy as np
import pytest

from dlnotes.lstm import GRU, LSTM, chrono_init
from dlnotes.rnn import RNN
from experiments import long_memory

KEPT = json.loads(
    (Path(__file__).parent.parent / "experiments" / "results" / "long_memory.json").read_text(
        encoding="utf-8"
    )
)
SMALL = {**long_memory.SETTINGS, "steps": {"adding": 300, "copying": 100}, "hidden": 16}


def gate(layer, name, k):
    "The sum of both biases of gate `k` of a layer and direction."
    d = layer.hidden_size
    return sum(layer.params[f"bias_{side}_{name}"][k * d : (k + 1) * d] for side in ("ih", "hh"))


# --- first biases


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_chrono_init_draws_the_time_that_things_are_kept(cell, dtype):
    layer = cell(3, 2000, rng=0, dtype=dtype)
    chrono_init(layer, 50, rng=1)
    times = np.exp(gate(layer, "l0", 1).astype(float)) + 1
    assert 2 <= times.min() < 2.2 and 49.8 < times.max() <= 50.001
    assert abs(times.mean() - 26) < 4 * 48 / np.sqrt(12 * 2000)  # four standard errors
    assert {w.dtype for w in layer.params.values()} == {np.dtype(dtype)}


def test_chrono_init_closes_the_input_gate_of_an_lstm():
    layer = LSTM(3, 10, rng=0)
    chrono_init(layer, 50, rng=1)
    np.testing.assert_array_equal(gate(layer, "l0", 0), -gate(layer, "l0", 1))


@pytest.mark.parametrize("cell, kept", [(LSTM, [2, 3]), (GRU, [0, 2])])
def test_chrono_init_leaves_the_other_parameters_alone(cell, kept):
    layer, before = cell(3, 10, rng=0), cell(3, 10, rng=0)
    chrono_init(layer, 50, rng=1)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        np.testing.assert_array_equal(layer.params[name], before.params[name])
    for name in ("bias_ih_l0", "bias_hh_l0"):
        for k in kept:
            part = slice(10 * k, 10 * (k + 1))
            np.testing.assert_array_equal(layer.params[name][part], before.params[name][part])


def test_chrono_init_reaches_all_layers_and_directions_each_with_its_own_times():
    layer = GRU(3, 10, 2, bidirectional=True, rng=0)
    chrono_init(layer, 50, rng=1)
    found = [gate(layer, name, 1) for name in ("l0", "l0_reverse", "l1", "l1_reverse")]
    assert min(a.min() for a in found) >= 0
    assert len({a.tobytes() for a in found}) == 4


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_chrono_init_follows_its_seed_and_writes_in_place(cell):
    one, two, other = (cell(3, 10, rng=0) for _ in range(3))
    arrays = dict(one.params)
    for layer, seed in ((one, 7), (two, np.random.default_rng(7)), (other, 8)):
        assert chrono_init(layer, 50, rng=seed) is None
    assert all(one.params[name] is a for name, a in arrays.items())
    np.testing.assert_array_equal(one.params["bias_ih_l0"], two.params["bias_ih_l0"])
    assert (one.params["bias_ih_l0"] != other.params["bias_ih_l0"]).any()


def test_chrono_init_of_two_steps_stands_at_one_half():
    layer = LSTM(3, 4, rng=0)
    chrono_init(layer, 2, rng=0)
    np.testing.assert_array_equal(gate(layer, "l0", 1), 0)


@pytest.mark.parametrize("cell", [LSTM, GRU])
def test_after_chrono_init_the_first_input_is_still_felt(cell):
    def felt(start):
        layer = cell(2, 16, rng=0, dtype=np.float64)
        if start:
            chrono_init(layer, 200, rng=0)
        x = np.random.default_rng(0).normal(size=(1, 100, 2))
        (_, state), cache = layer.forward(x)
        ones = tuple(np.ones_like(s) for s in state) if cell is LSTM else np.ones_like(state)
        (grad_x, _), _ = layer.backward((None, ones), cache)
        return abs(grad_x[0, 0]).max()

    assert felt(True) > 1e-6 and felt(False) < 1e-12


@pytest.mark.parametrize(
    "layer, steps, error, words",
    [
        (RNN(3, 4), 50, TypeError, "layer"),
        (None, 50, TypeError, "layer"),
        (LSTM(3, 4, bias=False), 50, ValueError, "layer.*bias=False"),
        (LSTM(3, 4), 1, ValueError, "max_steps.*2.*1"),
        (LSTM(3, 4), 2.5, TypeError, "max_steps"),
        (LSTM(3, 4), True, TypeError, "max_steps"),
    ],
)
def test_chrono_init_names_what_does_not_fit(layer, steps, error, words):
    before = {} if layer is None else {k: a.copy() for k, a in layer.params.items()}
    with pytest.raises(error, match=words):
        chrono_init(layer, steps)
    for name, a in before.items():
        np.testing.assert_array_equal(layer.params[name], a)


def test_chrono_init_names_a_bad_seed():
    with pytest.raises((TypeError, ValueError), match="rng"):
        chrono_init(LSTM(3, 4), 50, rng="seed")


# --- the long runs


@pytest.mark.parametrize("T", [2, 5, 20])
def test_adding_marks_one_number_in_each_half_and_adds_the_two(T):
    x, y = long_memory.adding(np.random.default_rng(0), 200, T)
    assert x.shape == (200, T, 2) and y.shape == (200, 1)
    numbers, marks = x[..., 0], x[..., 1]
    assert ((numbers >= 0) & (numbers < 1)).all() and set(marks.ravel()) <= {0, 1}
    assert (marks[:, : T // 2].sum(axis=1) == 1).all() and (marks.sum(axis=1) == 2).all()
    np.testing.assert_array_equal(y[:, 0], (numbers * marks).sum(axis=1))


def test_copying_asks_for_the_first_letters_at_the_end_and_for_nothing_else():
    x, y = long_memory.copying(np.random.default_rng(0), 300, 7)
    k, nothing = long_memory.KEPT, long_memory.LETTERS
    assert x.shape == (300, 7 + 2 * k, nothing + 2) and (x.sum(axis=2) == 1).all()
    ids = x.argmax(axis=2)
    np.testing.assert_array_equal(ids[:, :k], y[:, -k:])
    assert (y[:, :-k] == -100).all() and set(y[:, -k:].ravel()) == set(range(nothing))
    assert (ids[:, k + 6] == nothing + 1).all()
    assert (np.delete(ids, k + 6, axis=1)[:, k:] == nothing).all()


def test_a_run_learns_and_can_be_repeated():
    one, two = (long_memory.run("adding", "GRU", 10, 3, settings=SMALL) for _ in range(2))
    assert one["solved"] and one["value"] < 0.02 and one["steps"] <= 300
    assert {**one, "cpu_seconds": 0} == {**two, "cpu_seconds": 0}


@pytest.mark.parametrize("cell", ["RNN", "RNN, ReLU", "GRU", "LSTM"])
def test_a_run_that_ends_unsolved_says_so(cell):
    one = long_memory.run("copying", cell, 20, 3, settings=SMALL)
    assert not one["solved"] and one["steps"] == 100 and 0 < one["value"] < 0.99


def test_a_run_that_goes_to_infinity_is_unsolved_and_not_an_error():
    wild = {**SMALL, "rates": {**SMALL["rates"], "RNN, ReLU": 1e4}, "max_norm": 1e9}
    one = long_memory.run("adding", "RNN, ReLU", 50, 3, settings=wild)
    assert not one["solved"] and np.isfinite(one["value"])


def test_the_kept_result_is_of_these_settings_and_complete():
    settings = json.loads(json.dumps(long_memory.SETTINGS))
    assert KEPT["settings"] == settings
    assert (KEPT["letters"], KEPT["kept"]) == (long_memory.LETTERS, long_memory.KEPT)
    for part in ("growing", "starts"):
        wanted = [run for name, run in long_memory.plan(settings) if name == part]
        ran = [(r["task"], r["cell"], r["length"], r["seed"], r["start"]) for r in KEPT[part]]
        assert ran == wanted
    for run in KEPT["growing"] + KEPT["starts"]:
        assert 0 <= run["value"] <= 1 and run["steps"] <= settings["steps"][run["task"]]
    assert {"processor", "versions", "date"} <= KEPT["machine"].keys()
