"""The estimators beyond their appendix: scikit-learn's checks, bad input, copies, processes."""

import copy
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.neural_network import MLPRegressor as SklearnMLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from dlnotes.estimators.multilayer import MLPClassifier, MLPRegressor

BOTH = [MLPClassifier, MLPRegressor]
DTYPES = [np.float32, np.float64]
pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning"
)  # scikit-learn's checks train for long


def task(m=80, seed=0, dtype=np.float64):
    "Points in four dimensions; whether the first two agree in sign is a class and a number."
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, 4)).astype(dtype)
    return X, (X[:, 0] * X[:, 1] > 0).astype(int)


def quick(kind, **settings):
    return kind(
        **{
            "hidden_layer_sizes": (16,),
            "learning_rate_init": 0.02,
            "max_iter": 40,
            "random_state": 0,
            **settings,
        }
    )


# --- scikit-learn's own checks


@parametrize_with_checks(
    [
        MLPClassifier(random_state=0),
        MLPRegressor(random_state=0),
        MLPClassifier((8,), early_stopping=True, learning_rate_init=0.01, random_state=0),
        MLPRegressor(
            (8, 8), activation="gelu", early_stopping=True, learning_rate_init=0.01, random_state=0
        ),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", BOTH)
def test_no_check_is_skipped_or_failed(kind):
    results = check_estimator(kind(random_state=0), on_skip=None, on_fail=None)
    assert len(results) > 40
    for result in results:
        assert result["status"] == "passed", result


# --- learning


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", BOTH)
def test_it_learns_what_no_line_can_divide(kind, dtype):
    X, y = task(400, dtype=dtype)
    X_test, y_test = task(200, 1, dtype)
    model = quick(kind, max_iter=60).fit(X, y)
    assert model.score(X_test, y_test) > (0.9 if kind is MLPClassifier else 0.6)
    assert all(w.dtype == dtype for w in model.model_.params.values())
    assert len(model.loss_curve_) == model.n_iter_ <= 60
    assert model.loss_curve_[-1] < 0.5 * model.loss_curve_[0]
    answer = model.predict_proba(X) if kind is MLPClassifier else model.predict(X)
    assert answer.dtype == dtype


@pytest.mark.kernel
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "gelu", "identity"])
@pytest.mark.parametrize("sizes", [(), 5, (5,), [3, 4], np.array([4])])
def test_architectures(activation, sizes):
    X, y = task(30)
    for kind in BOTH:
        model = quick(kind, hidden_layer_sizes=sizes, activation=activation, max_iter=2).fit(X, y)
        hidden = [int(n) for n in np.atleast_1d(np.asarray(sizes, int))]
        widths = [4, *hidden, 2 if kind is MLPClassifier else 1]
        shapes = [w.shape for k, w in model.model_.params.items() if k.endswith("weight")]
        assert shapes == list(zip(widths[1:], widths))
        extra = 0 if activation == "identity" else len(hidden)
        assert len(model.model_) == len(hidden) + 1 + extra


@pytest.mark.kernel
def test_probabilities():
    X, y = task(60)
    model = quick(MLPClassifier).fit(X, np.array(["no", "yes"])[y])
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.log(p), model.predict_log_proba(X), rtol=1e-9)
    np.testing.assert_array_equal(model.classes_[p.argmax(axis=1)], model.predict(X))
    assert set(model.predict(X)) == {"no", "yes"}


@pytest.mark.kernel
def test_several_targets():
    X, y = make_regression(100, 4, n_targets=3, random_state=0)
    y = y / y.std(axis=0)
    model = quick(MLPRegressor, max_iter=80).fit(X, y)
    assert model.predict(X).shape == (100, 3) and model.score(X, y) > 0.9
    assert quick(MLPRegressor).fit(X, y[:, :1]).predict(X).shape == (100, 1)
    assert quick(MLPRegressor).fit(X, y[:, 0]).predict(X).shape == (100,)


def test_as_good_as_scikit_learns():
    digits, found = load_digits(), []
    X = digits.data / 16
    for seed in range(3):
        for kind in (MLPClassifier, SklearnMLPClassifier):
            model = kind((50,), batch_size=32, max_iter=60, random_state=seed)
            found.append(model.fit(X[::2], digits.target[::2]).score(X[1::2], digits.target[1::2]))
    assert np.mean(found[::2]) > np.mean(found[1::2]) - 0.01 and min(found[::2]) > 0.93
    X, y = make_regression(300, 5, noise=5, random_state=0)
    X, y = StandardScaler().fit_transform(X), y / y.std()
    same = dict(hidden_layer_sizes=(30,), learning_rate_init=0.01, batch_size=32, max_iter=60)
    ours, theirs = (
        kind(**same, random_state=0).fit(X[::2], y[::2]).score(X[1::2], y[1::2])
        for kind in (MLPRegressor, SklearnMLPRegressor)
    )
    assert ours > 0.95 and ours > theirs - 0.02


# --- when it ends


@pytest.mark.filterwarnings("error")
def test_warned_only_if_it_was_not_done():
    X, y = task(60)
    for kind in BOTH:
        with pytest.warns(ConvergenceWarning, match="^the loss was still falling after max_iter=3"):
            quick(kind, max_iter=3).fit(X, y)
        done = quick(kind, max_iter=2000, tol=1e-3).fit(X, y)
        assert done.n_iter_ < 2000
        quick(kind, max_iter=2000, early_stopping=True).fit(X, y)
        quick(kind).partial_fit(X, y, **({"classes": [0, 1]} if kind is MLPClassifier else {}))


@pytest.mark.kernel
def test_early_stopping_uses_data_set_aside():
    X, y = task(200)
    for kind in BOTH:
        model = quick(kind, max_iter=500, early_stopping=True, n_iter_no_change=3).fit(X, y)
        curve = model.validation_loss_curve_
        assert len(curve) == model.n_iter_ == int(np.argmin(curve)) + 1 + 3 < 500


@pytest.mark.kernel
def test_early_stopping_with_few_of_a_class():
    X, y = task(30)
    y[0] = 2  # once only: no split can have it on both sides
    model = quick(MLPClassifier, early_stopping=True, max_iter=5).fit(X, y)
    assert model.predict_proba(X).shape == (30, 3)


@pytest.mark.kernel
def test_partial_fit_goes_on():
    X, y = task(64)
    for kind in BOTH:
        model, first = quick(kind, shuffle=False), {}
        if kind is MLPClassifier:
            first = {"classes": [0, 1]}
        for _ in range(5):
            model.partial_fit(X, y, **first)
            first = {}
        whole = quick(kind, shuffle=False, max_iter=5).fit(X, y)
        assert model.n_iter_ == 5 and len(model.loss_curve_) == 5
        np.testing.assert_array_equal(model.predict(X), whole.predict(X))
        model.fit(X, y)  # begins anew
        assert model.n_iter_ == len(model.loss_curve_) <= 40


# --- seeds, copies, threads, processes


def weights(model):
    return np.concatenate([w.ravel() for w in model.model_.params.values()])


@pytest.mark.kernel
@pytest.mark.parametrize("kind", BOTH)
def test_the_same_seed_gives_the_same_weights(kind):
    X, y = task(40)

    def trained(seed, **settings):
        return weights(quick(kind, max_iter=3, random_state=seed, **settings).fit(X, y))

    for settings in ({}, {"early_stopping": True}):
        np.testing.assert_array_equal(trained(1, **settings), trained(1, **settings))
        assert (trained(1, **settings) != trained(2, **settings)).any()
    np.testing.assert_array_equal(
        trained(np.random.default_rng(1)), trained(np.random.default_rng(1))
    )
    np.testing.assert_array_equal(trained(np.random.RandomState(1)), trained(1))
    assert (trained(None) != trained(None)).any()


@pytest.mark.kernel
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_answers_and_goes_on_alike(kind, copied):
    X, y = task(40)
    model = quick(kind, max_iter=3).fit(X, y)
    other = copied(model)
    np.testing.assert_array_equal(model.predict(X), other.predict(X))
    for m in (model, other):
        m.partial_fit(X, y)
    np.testing.assert_array_equal(weights(model), weights(other))
    before = weights(model)
    other.partial_fit(X, y)
    np.testing.assert_array_equal(weights(model), before)
    assert not hasattr(clone(model), "model_")


def predictions(model, X):
    return model.predict(X)


def test_several_processes_and_threads():
    X, y = task(60)
    model = quick(MLPClassifier, max_iter=5).fit(X, y)
    expected = model.predict(X)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for answer in pool.map(predictions, [model] * 2, [X] * 2):
            np.testing.assert_array_equal(answer, expected)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(predictions, [model] * 8, [X] * 8):
            np.testing.assert_array_equal(answer, expected)
        fitted = list(
            pool.map(
                lambda seed: weights(quick(MLPClassifier, max_iter=5, random_state=seed).fit(X, y)),
                [0, 1, 0, 1],
            )
        )
    np.testing.assert_allclose(fitted[0], fitted[2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        fitted[1],
        weights(quick(MLPClassifier, max_iter=5, random_state=1).fit(X, y)),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_pipelines_and_grid_searches(jobs):
    cancer = load_breast_cancer()
    pipeline = make_pipeline(
        StandardScaler(), MLPClassifier(max_iter=40, learning_rate_init=0.01, random_state=0)
    )
    grid = {
        "mlpclassifier__hidden_layer_sizes": [(4,), (8, 8)],
        "mlpclassifier__activation": ["relu", "tanh"],
    }
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=jobs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's, of processes
        search.fit(cancer.data, cancer.target)
        scores = cross_val_score(search.best_estimator_, cancer.data, cancer.target, n_jobs=jobs)
    assert search.best_score_ > 0.95 and scores.mean() > 0.95


# --- what is refused


@pytest.mark.kernel
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "settings, error, words",
    [
        (dict(hidden_layer_sizes=0), ValueError, "^hidden_layer_sizes: expected 1 or more, got 0"),
        (dict(hidden_layer_sizes=(3, -1)), ValueError, "^hidden_layer_sizes: "),
        (
            dict(hidden_layer_sizes=(2.5,)),
            TypeError,
            "^hidden_layer_sizes: expected a whole number",
        ),
        (dict(hidden_layer_sizes="64"), TypeError, "^hidden_layer_sizes: "),
        (dict(hidden_layer_sizes=None), TypeError, "^hidden_layer_sizes: "),
        (
            dict(hidden_layer_sizes=[[3, 4]]),
            ValueError,
            "^hidden_layer_sizes: expected a number or",
        ),
        (dict(activation="swish"), ValueError, "^activation: expected one of .*, got 'swish'"),
        (dict(activation=["relu"]), ValueError, "^activation: "),
        (dict(learning_rate_init=-1), ValueError, "^learning_rate_init: "),
        (dict(learning_rate_init="x"), TypeError, "^learning_rate_init: "),
        (dict(weight_decay=-1), ValueError, "^weight_decay: "),
        (dict(batch_size=0), ValueError, "^batch_size: "),
        (dict(batch_size="auto"), TypeError, "^batch_size: "),
        (dict(max_iter=0), ValueError, "^max_iter: "),
        (dict(max_iter=1.5), TypeError, "^max_iter: "),
        (dict(tol=-1e-3), ValueError, "^tol: "),
        (dict(n_iter_no_change=0), ValueError, "^n_iter_no_change: "),
        (dict(shuffle=1), TypeError, "^shuffle: expected True or False"),
        (dict(early_stopping="yes"), TypeError, "^early_stopping: "),
        (dict(verbose=None), TypeError, "^verbose: "),
        (dict(validation_fraction=0), ValueError, "^validation_fraction: "),
        (dict(validation_fraction=1.0), ValueError, "^validation_fraction: "),
        (dict(random_state="a"), ValueError, "seed"),
    ],
)
def test_wrong_settings(kind, settings, error, words):
    X, y = task(10)
    with pytest.raises(error, match=words):
        kind(**settings).fit(X, y)
    with pytest.raises(error, match=words):
        kind(**settings).partial_fit(X, y, **({"classes": [0, 1]} if kind is MLPClassifier else {}))


@pytest.mark.kernel
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "change",
    [
        lambda X, y: (X[:0], y[:0]),
        lambda X, y: (X, y[:5]),
        lambda X, y: (X * np.nan, y),
        lambda X, y: (X * np.inf, y),
        lambda X, y: (X[0], y),
        lambda X, y: (X[None], y),
        lambda X, y: (X.astype(complex), y),
        lambda X, y: (X, y * np.nan),
        lambda X, y: (X, None),
        lambda X, y: (X[:, :0], y),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_wrong_data(kind, change):
    with pytest.raises(ValueError):
        kind(max_iter=2).fit(*change(*task(10)))


@pytest.mark.kernel
def test_wrong_classes():
    X, y = task(10)
    with pytest.raises(ValueError, match="^y: expected at least 2 classes, got 1 class"):
        MLPClassifier().fit(X, np.ones(10))
    with pytest.raises(ValueError, match="^classes: must be given"):
        MLPClassifier().partial_fit(X, y)
    with pytest.raises(ValueError, match="^y: expected classes"):
        MLPClassifier().partial_fit(X, y, classes=[0, 2])
    with pytest.raises(ValueError, match="^classes: expected at least 2"):
        MLPClassifier().partial_fit(X, 0 * y, classes=[0])
    model = MLPClassifier().partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=r"^classes: expected \[0 1\] again"):
        model.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :2], y)
    assert model.partial_fit(X, y).n_iter_ == 2
    with pytest.raises(ValueError, match="^y: expected as many dimensions"):
        MLPRegressor().partial_fit(X, y).partial_fit(X, np.c_[y, y])
    with pytest.raises(ValueError, match="^y: expected shape .*10, 2"):
        MLPRegressor().partial_fit(X, np.c_[y, y]).partial_fit(X, np.c_[y, y, y])


@pytest.mark.kernel
@pytest.mark.parametrize("kind", BOTH)
def test_a_fit_that_fails_leaves_nothing_to_go_on_from(kind):
    X, y = task(20)
    model = quick(kind, max_iter=2).fit(X, y)
    with pytest.raises(ValueError):
        model.fit(X * np.nan, y)
    with pytest.raises(NotFittedError):
        model.predict(X)
    model = quick(kind, learning_rate_init=1e29, max_iter=9).set_params(weight_decay=0.0)
    with pytest.raises(FloatingPointError, match="lr"):
        model.fit(X.astype(np.float32), y)
    with pytest.raises(NotFittedError):
        model.predict(X)
