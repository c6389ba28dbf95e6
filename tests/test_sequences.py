"""Estimators for sequences: scikit-learn's checks, kinds of input, masks, forecasts, bad input."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from dlnotes import SequenceClassifier, SequenceForecaster

CELLS = ["rnn", "lstm", "gru"]
DTYPES = [np.float32, np.float64]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def which_came_first(m=120, steps=9, seed=0, dtype=np.float64):
    "Two bumps in noise; the class says which of the two features has the earlier one."
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.normal(size=(m, steps, 2))
    first = rng.integers(0, 2, m)
    early, late = rng.integers(0, steps // 2, m), rng.integers(steps // 2, steps - 1, m)
    x[np.arange(m), early, first] += 2
    x[np.arange(m), late, 1 - first] += 2
    return x.astype(dtype), np.array(["left", "right"])[first]


def quick(**settings):
    return SequenceClassifier(
        **{
            "hidden_size": 12,
            "learning_rate_init": 0.02,
            "max_iter": 25,
            "random_state": 0,
            **settings,
        }
    )


def wave(steps=400, seed=0, dtype=np.float64):
    t = np.arange(steps)
    noise = 0.02 * np.random.default_rng(seed).normal(size=steps)
    return (np.sin(t / 3) + 0.5 * np.sin(t / 7.3) + noise).astype(dtype)


def forecaster(**settings):
    return SequenceForecaster(
        **{
            "hidden_size": 16,
            "window": 30,
            "learning_rate_init": 0.01,
            "max_iter": 15,
            "random_state": 0,
            **settings,
        }
    )


# --- scikit-learn's own checks


@parametrize_with_checks([SequenceClassifier(random_state=0, learning_rate_init=0.02)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_no_check_is_skipped_or_failed():
    results = check_estimator(
        SequenceClassifier(random_state=0, learning_rate_init=0.02), on_skip=None, on_fail=None
    )
    assert len(results) > 40
    for result in results:
        assert result["status"] == "passed", result


# --- classes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_the_order_of_things(cell, dtype):
    X, y = which_came_first(300, dtype=dtype)
    X_test, y_test = which_came_first(200, seed=1, dtype=dtype)
    model = quick(cell=cell).fit(X, y)
    assert model.score(X_test, y_test) > 0.95
    assert model.classes_.tolist() == ["left", "right"] and model.n_features_in_ == 2
    assert all(w.dtype == dtype for w in model.model_.params.values())
    p = model.predict_proba(X_test)
    assert p.dtype == dtype and np.allclose(p.sum(axis=1), 1, rtol=0, atol=1e-6)
    assert np.allclose(np.exp(model.predict_log_proba(X_test)), p, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        dict(bidirectional=True),
        dict(num_layers=2, dropout=0.1),
        dict(max_norm=None),
        dict(early_stopping=True),
    ],
    ids=str,
)
def test_other_settings_learn_as_well(settings):
    X, y = which_came_first(300)
    X_test, y_test = which_came_first(200, seed=1)
    assert quick(**settings).fit(X, y).score(X_test, y_test) > 0.95


def test_lengths_may_differ():
    X, y = which_came_first(200)
    rng = np.random.default_rng(2)
    ragged = [
        np.concatenate([x, np.zeros((n, 2))])[rng.integers(0, 2) :]
        for x, n in zip(X, rng.integers(0, 6, len(X)))
    ]
    model = quick().fit(ragged, y)
    assert model.score(ragged, y) > 0.95
    one_by_one = np.concatenate([model.predict_proba(x[None]) for x in ragged])
    np.testing.assert_allclose(model.predict_proba(ragged), one_by_one, rtol=0, atol=1e-12)
    same = quick().fit([*X], y)  # of one length, a list is an array
    assert (same.predict_proba(X) == quick().fit(X, y).predict_proba([*X])).all()


def test_rows_of_a_table_are_sequences_of_numbers():
    X, y = which_came_first(60)
    table = X[:, :, 0]
    model = quick(max_iter=3).fit(table, y)
    assert model.n_features_in_ == 9
    deep = quick(max_iter=3).fit(table[:, :, None], y)
    assert (model.predict_proba(table) == deep.predict_proba(table[:, :, None])).all()
    assert deep.predict_proba(table[:, :5, None]).shape == (60, 2)  # another length
    with pytest.raises(ValueError, match="features"):
        model.predict(table[:, :5])
    assert (model.predict_proba(table[:, :, None]) == model.predict_proba(table)).all()
    assert (model.predict_proba([*table]) == model.predict_proba(table)).all()
    with pytest.raises(ValueError, match="^X: expected a list of sequences"):
        deep.predict(table)


@pytest.mark.parametrize("lengths", [(5, 7, 5, 9), (6, 6, 6, 6)])
def test_lists_of_rows_may_have_other_lengths_than_in_fit(lengths):
    rows = [np.sin(np.arange(n) + k) for k, n in enumerate(lengths)]
    model = quick(max_iter=2).fit(rows, [0, 1, 0, 1])
    assert model.n_features_in_ == 1
    p = model.predict_proba(rows)
    for k, row in enumerate(rows):
        for one in ([row], [row.tolist()], row[None, :, None]):
            np.testing.assert_allclose(model.predict_proba(one)[0], p[k], rtol=0, atol=1e-12)
        two = model.predict_proba([row.tolist(), row[:4].tolist()])
        np.testing.assert_allclose(two[0], p[k], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="^X: expected sequences of 1 features"):
        model.predict([np.ones((3, 2))])


def test_seeds_copies_and_searches():
    X, y = which_came_first(80)
    first, again, other = (quick(max_iter=4, random_state=s).fit(X, y) for s in (0, 0, 1))
    assert first.loss_curve_ == again.loss_curve_ != other.loss_curve_
    for twin in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert (twin.predict_proba(X) == first.predict_proba(X)).all()
    assert clone(first).get_params() == first.get_params()
    search = GridSearchCV(quick(max_iter=12), {"cell": ["rnn", "gru"]}, cv=2).fit(X, y)
    assert search.best_params_["cell"] in CELLS
    assert cross_val_score(quick(), X, y, cv=3).min() > 0.6


# --- forecasts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_goes_on_with_a_wave(cell, dtype):
    series = wave(440, dtype=dtype)
    model = forecaster(cell=cell, max_iter=80, tol=0, n_iter_no_change=80).fit(series[:400])
    forecast = model.predict(series[:400], 10)
    assert forecast.shape == (10,) and forecast.dtype == dtype
    rmse = np.sqrt(((forecast - series[400:410]) ** 2).mean())
    assert rmse < 0.35 * series[400:].std()
    assert (model.predict(series[:400]) == forecast[:1]).all()


def test_a_trend_is_followed_by_differences():
    series = wave(440) + 0.05 * np.arange(440)
    errors = []
    for difference in (False, True):
        model = forecaster(difference=difference, max_iter=60).fit(series[:400])
        errors.append(abs(model.predict(series[:400], 40) - series[400:]).mean())
    assert errors[1] < 0.35 and errors[1] < 0.5 * errors[0]


def test_several_features_and_early_stopping():
    series = np.stack([wave(300), wave(300, 1)[::-1]], axis=1)
    model = forecaster(early_stopping=True, max_iter=8).fit(series)
    assert model.predict(series, 5).shape == (5, 2) and len(model.validation_loss_curve_) <= 8
    assert model.predict(series, 3).tolist() == model.predict(series, 5)[:3].tolist()
    flat = forecaster(max_iter=2).fit(series[:, 0])
    deep = forecaster(max_iter=2).fit(series[:, :1])
    assert (flat.predict(series[:, 0], 4) == deep.predict(series[:, :1], 4)[:, 0]).all()


def test_windows_set_aside_share_no_step_with_the_others():
    model = forecaster(validation_fraction=0.2)
    rows, aside = model._split(100, None)
    assert aside.tolist() == list(range(80, 100)) and rows[-1] + model.window < aside[0]
    assert rows[0] == 0 and rows[-1] + model.window + 1 == aside[0]


def test_a_constant_series_stays_what_it_is():
    model = forecaster(max_iter=30, learning_rate_init=0.02).fit(np.full(80, 3.0))
    np.testing.assert_allclose(model.predict([3.0], 4), 3, rtol=0, atol=0.1)


# --- what does not fit

X, Y = which_came_first(20)


@pytest.mark.parametrize(
    "settings, error, words",
    [
        (dict(cell="mlp"), ValueError, "^cell: "),
        (dict(cell=3), ValueError, "^cell: "),
        (dict(hidden_size=0), ValueError, "^hidden_size: "),
        (dict(num_layers=1.0), TypeError, "^num_layers: "),
        (dict(dropout=1), ValueError, "^dropout: "),
        (dict(bidirectional=1), TypeError, "^bidirec"),
        (dict(max_norm=0), ValueError, "^max_norm: "),
        (dict(max_norm="a"), TypeError, "^max_norm"),
        (dict(batch_size=0), ValueError, "^batch_size: "),
        (dict(tol=-1), ValueError, "^tol: "),
    ],
)
def test_wrong_settings(settings, error, words):
    with pytest.raises(error, match=words):
        quick(**settings).fit(X, Y)
    if "bidirectional" not in settings:
        with pytest.raises(error, match=words):
            forecaster(**settings).fit(wave())


@pytest.mark.parametrize(
    "x, y, error, words",
    [
        (X, Y[:5], ValueError, "^y: expected 20"),
        (X, None, ValueError, "^y: "),
        (X, np.full(20, "left"), ValueError, "^y: expected at least 2"),
        (X[:0], Y[:0], ValueError, "^X: "),
        (X[:, :0], Y, ValueError, "^X: "),
        (X * np.nan, Y, ValueError, "^X: .*finite"),
        (X[None], Y, ValueError, "."),
        ([], [], ValueError, "."),
        ([np.ones((2, 3)), np.ones((2, 2))], [0, 1], ValueError, r"^X\[1\]: "),
        ([np.ones((2, 3)), np.ones((0, 3))], [0, 1], ValueError, r"^X\[1\]: "),
        ([[1, 2], ["a"]], [0, 1], TypeError, r"^X\[1\]: "),
        ([[1, 2], [np.inf]], [0, 1], ValueError, r"^X\[1\]: "),
    ],
)
def test_wrong_sequences(x, y, error, words):
    with pytest.raises(error, match=words):
        quick().fit(x, y)


def test_wrong_features_and_no_fit():
    with pytest.raises(NotFittedError):
        quick().predict(X)
    with pytest.raises(NotFittedError):
        forecaster().predict(wave())
    model = quick(max_iter=1).fit(X, Y)
    with pytest.raises(ValueError, match="^X: expected sequences of 2 features"):
        model.predict(X[:, :, :1])


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(window=0), ValueError, "^window: "),
        (dict(window=2.0), TypeError, "^window: "),
        (dict(difference=1), TypeError, "^difference: "),
        (dict(window=200), ValueError, "^series: "),
    ],
)
def test_wrong_settings_of_forecasts(change, error, words):
    with pytest.raises(error, match=words):
        forecaster(**change).fit(wave(300))


@pytest.mark.parametrize(
    "series, error",
    [
        (np.ones((2, 90, 1)), ValueError),
        (np.ones(0), ValueError),
        (["a"] * 90, TypeError),
        (np.full(90, np.nan), ValueError),
        (3.0, ValueError),
        (np.ones((90, 0)), ValueError),
    ],
)
def test_wrong_series(series, error):
    with pytest.raises(error, match="^series: "):
        forecaster().fit(series)
    model = forecaster(max_iter=1).fit(wave(90))
    with pytest.raises(error, match="^series: "):
        model.predict(series)
    with pytest.raises(ValueError, match="^series: "):
        model.predict(wave(90)[:, None])
    for steps, error in [(0, ValueError), (1.5, TypeError)]:
        with pytest.raises(error, match="^steps: "):
            model.predict(wave(90), steps)
