"""The perceptron beyond its chapter: shapes, dtypes, bad input, other programs, threads, seeds."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Perceptron as SklearnPerceptron
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from dlnotes.core.checking import numerical_grad
from dlnotes.kernels.perceptron_epoch import unrolled_epoch
from dlnotes.perceptron import (
    Perceptron,
    _shuffle,
    epoch_kernel,
    heaviside,
    margin,
    mistake_bound,
    perceptron_epoch,
    perceptron_forward,
    perceptron_grad,
    perceptron_loss,
    perceptron_update,
    weighted_sum,
)

DTYPES = [np.float32, np.float64]


def whole_numbers(m, n, seed, dtype=np.float64):
    "A task in small whole numbers, on which every sum is exact in any order."
    rng = np.random.default_rng(seed)
    return rng.integers(-3, 4, size=(m, n)).astype(dtype), rng.integers(0, 2, size=m)


def plain_epoch(x, y, weight, bias, lr, order):
    "The definition: one example after the other."
    mistakes = 0
    for i in order:
        mistakes += int(perceptron_forward(x[i], weight, bias) != y[i])
        weight, bias = perceptron_update(x[i], y[i], weight, bias, lr)
    return weight, bias, mistakes


# --- kernels against their definitions


@pytest.mark.kernel
@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 23),
    n=st.integers(0, 19),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from(DTYPES),
    lr=st.sampled_from([1.0, 0.5]),
    data=st.data(),
)
def test_epoch_is_the_rule_applied_in_turn(m, n, seed, dtype, lr, data):
    x, y = whole_numbers(m, n, seed, dtype)
    order = data.draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=40))
    start = whole_numbers(1, n, seed + 1)[0][0]
    expected = plain_epoch(x, y, start, -1.0, lr, order)
    weight, bias, mistakes = perceptron_epoch(x, y, start, -1.0, lr, order)
    assert weight.dtype == bias.dtype == dtype
    assert (weight == expected[0]).all() and bias == expected[1] and mistakes == expected[2]


@pytest.mark.kernel
@pytest.mark.parametrize("kernel", [epoch_kernel, unrolled_epoch])
@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 9),
    n=st.integers(0, 7),
    seed=st.integers(0, 2**20),
    has_bias=st.booleans(),
    data=st.data(),
)
def test_kernels_sum_up_the_changes_for_the_average(kernel, m, n, seed, has_bias, data):
    x, y = whole_numbers(m, n, seed, np.float64)
    order = data.draw(st.lists(st.integers(0, m - 1), max_size=20))
    weight, bias = whole_numbers(1, n, seed + 1)[0][0], -1.0 if has_bias else 0.0
    w, a, one = np.append(weight, bias), np.zeros(n + 1), float(has_bias)
    late, expected = np.zeros(n + 1), 0
    for k, i in enumerate(order):
        before = np.append(weight, bias)
        expected += int(perceptron_forward(x[i], weight, bias) != y[i])
        weight, bias = perceptron_update(x[i], y[i], weight, bias, 0.5)
        bias *= one
        late += (7 + k) * (np.append(weight, bias) - before)
    rows = np.array(order, np.int32)
    mistakes = kernel(x, y == 1, rows, w, a, 0.5, one, 7)
    assert mistakes == expected
    assert (w == np.append(weight, bias)).all() and (a == late).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 3, 4, 5, 64])
def test_average_is_the_mean_of_all_weights(m, dtype):
    x, y = whole_numbers(m, 6, m, dtype)
    model = Perceptron(average=True, shuffle=False, fit_intercept=m % 2 == 0)
    weight, bias, total = np.zeros(6, dtype), 0.0, np.zeros(7)
    for _ in range(3):
        model.partial_fit(x, y, classes=[0, 1])
        for xi, yi in zip(x, y):
            z = xi @ weight + bias
            step = yi - (z >= 0)
            weight = weight + step * xi
            bias = bias + step * model.fit_intercept
            total += np.append(weight, bias)
    mean = total / (3 * m)
    assert model.coef_.dtype == model.intercept_.dtype == dtype
    np.testing.assert_allclose(model.coef_[0], mean[:-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.intercept_[0], mean[-1], rtol=1e-6, atol=1e-6)


@pytest.mark.kernel
@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 70),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from(DTYPES),
    power=st.integers(0, 8),
    yes=st.booleans(),
)
def test_answers_are_right_from_the_error_bound_of_a_sum_on(n, seed, dtype, power, yes):
    "In any order, the sum is within (n + 1) eps sum(|x w|), the bias included."
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(2, n + 1)) * 10.0 ** rng.integers(-power, power + 1, (2, n + 1))
    x, w = x.astype(dtype), w.astype(dtype)
    x[n] = 1
    products = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x[:n], w[:n])]
    size = float(sum(map(abs, products)))
    bound = 2 * (n + 1) * float(np.finfo(dtype).eps) * size
    w[n] = -float(sum(products)) + (2 if yes else -2) * bound  # z is just beyond its bound
    z = sum(products) + Fraction(float(w[n]))
    assert (z > 0) == yes and abs(z) > (n + 1) * float(np.finfo(dtype).eps) * (size + abs(w[n]))
    for label in (False, True):
        mistakes = unrolled_epoch(
            x[None, :n],
            np.array([label]),
            np.zeros(1, np.int32),
            w.copy(),
            np.zeros(n + 1),
            dtype(1),
            dtype(1),
            0,
        )
        assert mistakes == (label != yes)


@pytest.mark.kernel
def test_shuffle_is_a_permutation_and_changes_with_the_bits():
    rng = np.random.default_rng(0)
    for m in (1, 2, 7, 100):
        order = np.arange(m, dtype=np.int32)
        _shuffle(order, rng.integers(0, 2**32, m, dtype=np.uint32))
        assert sorted(order) == list(range(m))
    assert (order != np.arange(100)).any()


@pytest.mark.kernel
@pytest.mark.parametrize("bias, one", [(0.0, 1.0), (-5.0, 0.0)])  # one = 0: there is no bias
def test_a_sum_of_zero_says_yes_in_each_place_of_four(bias, one):
    w, rows = np.array([0.0, bias]), np.arange(8, dtype=np.int32)
    x, y = np.zeros((8, 1)), np.ones(8, bool)
    assert unrolled_epoch(x, y, rows, w, np.zeros(2), 1.0, one, 0) == 0
    assert w.tolist() == [0, bias]


@pytest.mark.kernel
def test_epoch_of_no_rows_changes_nothing():
    w, u = np.ones(3), np.zeros(3)
    rows = np.zeros(0, np.int32)
    assert unrolled_epoch(np.ones((4, 2)), np.ones(4, bool), rows, w, u, 1.0, 1.0, 0) == 0
    assert (w == 1).all() and (u == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_of_the_examples_is_kept(dtype):
    x, y = whole_numbers(10, 3, 0, dtype)
    for result in (
        weighted_sum(x, [1, 2, 3], 1),
        heaviside(x),
        perceptron_forward(x, [1, 2, 3]),
        *perceptron_update(x[0], 1, [1, 2, 3]),
        *perceptron_grad(x, y, [1, 2, 3]),
        *perceptron_epoch(x, y, [1, 2, 3])[:2],
    ):
        assert result.dtype == dtype


def test_nothing_passed_in_is_changed():
    x, y = whole_numbers(20, 3, 1)
    weight, kept = np.ones(3), (x.copy(), y.copy())
    perceptron_epoch(x, y, weight, 0.0)
    perceptron_update(x[0], y[0], weight, 0.0)
    Perceptron(random_state=0, max_iter=1).partial_fit(x, y, [0, 1])
    assert (weight == 1).all() and (x == kept[0]).all() and (y == kept[1]).all()


def test_gradient_by_finite_differences_on_random_tasks():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y, wb = rng.normal(size=(9, 4)), rng.integers(0, 2, 9), rng.normal(size=5)
        measured = numerical_grad(lambda v: perceptron_loss(x, y, v[:4], v[4]), wb)  # noqa: B023
        ours = np.append(*perceptron_grad(x, y, wb[:4], wb[4]))
        np.testing.assert_allclose(ours, measured, atol=1e-8)


# --- bad input

BAD_EXAMPLES = {
    "x: expected shape (any, any), got (3,)": dict(x=[1, 2, 3]),
    "x: expected at least one example": dict(x=np.zeros((0, 2)), y=[]),
    "x: expected finite numbers": dict(x=[[1, np.nan], [3, 4]]),
    "x: expected real numbers, got dtype complex128": dict(x=[[1, 2j], [3, 4]]),
    "x: expected an array, got rows of unequal length": dict(x=[[1, 2], [3]]),
    "y: expected shape (2), got (3,)": dict(y=[0, 1, 1]),
    "y: expected 0 to 1, got 2": dict(y=[0, 2]),
    "y: expected 0 to 1, got 0.5": dict(y=[0, 0.5]),
    "y: expected real numbers": dict(y=["a", "b"]),
    "weight: expected shape (2), got (3,)": dict(weight=[1, 2, 3]),
    "weight: expected finite numbers": dict(weight=[1, np.inf]),
    "bias: expected shape (), got (1,)": dict(bias=[1]),
    "bias: expected real numbers": dict(bias=None),
}


@pytest.mark.parametrize(
    "function", [perceptron_epoch, perceptron_loss, perceptron_grad, margin, mistake_bound]
)
@pytest.mark.parametrize("message", BAD_EXAMPLES)
def test_bad_examples_are_named(function, message):
    good = dict(x=[[1, 2], [3, 4]], y=[0, 1], weight=[1, 2], bias=0)
    with pytest.raises((TypeError, ValueError)) as caught:
        function(**good | BAD_EXAMPLES[message])
    assert message in str(caught.value)


@pytest.mark.parametrize("order", [[2], [-1], [0.5], [[0, 1]], [[0], [0, 1]], ["a"], np.nan])
def test_rows_outside_are_refused(order):
    with pytest.raises((TypeError, ValueError), match="^order: "):
        perceptron_epoch([[1, 2], [3, 4]], [0, 1], [1, 2], order=order)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: weighted_sum(1.0, [1]), "x"),
        (lambda: weighted_sum([1, 2], [1]), "weight"),
        (lambda: weighted_sum([1, 2], [1, 2], [0, 0]), "bias"),
        (lambda: heaviside("a"), "z"),
        (lambda: heaviside(np.nan), "z"),
        (lambda: perceptron_update([[1, 2]], 1, [1, 2]), "x"),
        (lambda: perceptron_update([1, 2], 3, [1, 2]), "y"),
        (lambda: perceptron_update([1, 2], 1, [1, 2], lr=np.nan), "lr"),
        (lambda: perceptron_epoch([[1, 2]], [1], [1, 2], lr=[1, 2]), "lr"),
        (lambda: margin([[1]], [1], [0]), "weight"),
    ],
)
def test_the_argument_at_fault_is_named(call, name):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
        call()


def test_no_bound_without_a_separating_neuron():
    assert mistake_bound([[1.0], [-1.0]], [0, 1], [1.0]) == np.inf


# --- the classifier


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "settings", [{}, {"average": True}, {"fit_intercept": False}, {"shuffle": False}], ids=str
)
def test_scikit_learns_own_checks_with_nothing_excused(settings):
    check_estimator(Perceptron(random_state=0, **settings))  # a skipped check is an error too


@pytest.mark.parametrize(
    "setting",
    [
        dict(eta0=0),
        dict(eta0=-1),
        dict(eta0=np.nan),
        dict(eta0=np.inf),
        dict(eta0="1"),
        dict(max_iter=0),
        dict(max_iter=1.5),
        dict(max_iter=None),
    ],
)
def test_settings_out_of_range_are_refused(setting):
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"^{name}: "):
        Perceptron(**setting).fit([[0.0], [1.0]], [0, 1])


def test_partial_fit_refuses_classes_that_change():
    x, y = load_iris(return_X_y=True)
    model = Perceptron(random_state=0)
    with pytest.raises(ValueError, match="^classes: "):
        model.partial_fit(x, y)
    model.partial_fit(x, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="^classes: "):
        model.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="^y: "):
        model.partial_fit(x, y + 1)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("load", [load_breast_cancer, load_digits, load_iris])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_same_as_scikit_learn_where_the_rule_is_the_same(load, fit_intercept):
    x, y = load(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    # From zeros the first example is a tie. Both count it as a mistake only for a 0, so one class
    # after the other is told from the rest, beginning with an example of the rest.
    for c in np.unique(y):
        target = (y == c).astype(int)
        order = np.random.default_rng(int(c)).permutation(len(y))
        first = target[order].argmin()
        order[[0, first]] = order[[first, 0]]
        settings = dict(shuffle=False, fit_intercept=fit_intercept, max_iter=5)
        ours = Perceptron(**settings).fit(x[order], target[order])
        theirs = SklearnPerceptron(**settings, tol=None).fit(x[order], target[order])
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-9, atol=1e-9)
        assert (ours.predict(x) == theirs.predict(x)).all()


def test_many_classes_are_one_neuron_each():
    x, y = load_digits(return_X_y=True)
    several = Perceptron(shuffle=False, max_iter=20)
    with pytest.warns(ConvergenceWarning, match="mistakes after 20 epochs"):
        several.fit(x, y)
    for c in (0, 7):
        single = Perceptron(shuffle=False, max_iter=20)
        for _ in range(20):
            single.partial_fit(x, y == c, classes=[False, True])
        np.testing.assert_array_equal(several.coef_[c], single.coef_[0])
    assert (several.predict(x) == several.decision_function(x).argmax(axis=1)).all()


def test_it_stops_when_an_epoch_had_no_mistake():
    x, y = load_iris(return_X_y=True)
    model = Perceptron(random_state=0).fit(x[:100], y[:100])
    assert model.n_iter_ < 100 and model.n_iter_ == len(model.mistakes_)
    assert model.mistakes_[-1] == 0 and (model.mistakes_[:-1] > 0).all()
    assert model.score(x[:100], y[:100]) == 1


def test_a_seed_gives_the_same_weights_and_another_seed_others():
    x, y = load_digits(return_X_y=True)

    def weights(seed):
        return Perceptron(random_state=seed).partial_fit(x, y, range(10)).coef_

    assert (weights(3) == weights(3)).all() and (weights(3) != weights(4)).any()
    assert (weights(np.random.default_rng(3)) == weights(np.random.default_rng(3))).all()
    assert (weights(np.random.RandomState(3)) == weights(np.random.RandomState(3))).all()


def test_labels_of_any_kind():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor"])[y[:100]]
    model = Perceptron(random_state=0).fit(x[:100], names)
    assert (model.predict(x[:100]) == names).all()
    assert list(model.classes_) == ["setosa", "versicolor"]


def test_it_can_be_copied_pickled_searched_and_put_in_a_pipeline():
    x, y = load_breast_cancer(return_X_y=True)
    pipe = make_pipeline(StandardScaler(), Perceptron(random_state=0, max_iter=5, average=True))
    grid = {"perceptron__average": [True], "perceptron__fit_intercept": [True, False]}
    with pytest.warns(ConvergenceWarning):
        search = GridSearchCV(pipe, grid, cv=3).fit(x, y)
    assert search.best_score_ > 0.95
    for twin in (copy.deepcopy(search), pickle.loads(pickle.dumps(search))):
        assert (twin.predict(x) == search.predict(x)).all()


def test_several_threads_learn_at_once():
    x, y = load_digits(return_X_y=True)

    def learn(seed):
        return Perceptron(random_state=seed).partial_fit(x, y, range(10)).coef_

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(learn, range(8)))
    assert all((learn(seed) == coef).all() for seed, coef in enumerate(together))


# --- PyTorch


@settings(deadline=None, max_examples=30)
@given(m=st.integers(1, 12), n=st.integers(1, 9), seed=st.integers(0, 2**20))
def test_parity_with_pytorch(m, n, seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(m, n)), rng.integers(0, 2, m)
    weight, bias = rng.normal(size=n), rng.normal()
    tx, ty = torch.tensor(x), torch.tensor(2.0 * y - 1)
    tw = torch.tensor(weight, requires_grad=True)
    tb = torch.tensor(bias, requires_grad=True, dtype=torch.float64)
    z = torch.nn.functional.linear(tx, tw[None], tb[None])[:, 0]
    loss = torch.relu(-ty * z).mean()
    loss.backward()
    np.testing.assert_allclose(weighted_sum(x, weight, bias), z.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(perceptron_loss(x, y, weight, bias), loss.item(), atol=1e-10)
    grad_w, grad_b = perceptron_grad(x, y, weight, bias)
    np.testing.assert_allclose(grad_w, tw.grad.numpy(), atol=1e-10)
    np.testing.assert_allclose(grad_b, tb.grad.item(), atol=1e-10)
    np.testing.assert_array_equal(
        heaviside(z.detach().numpy()),
        torch.heaviside(z.detach(), torch.ones((), dtype=torch.float64)).numpy(),
    )


# --- what a review found: each of these once went wrong


@pytest.mark.kernel
def test_a_fit_that_fails_leaves_nothing_to_go_on_from():
    rng, y = np.random.default_rng(0), np.arange(30) % 2
    model = Perceptron(max_iter=1, random_state=0).partial_fit(rng.normal(size=(30, 5)), y, [0, 1])
    wide = rng.normal(size=(30, 50))
    with pytest.raises(ValueError, match="1 class"):
        model.fit(wide, np.ones(30))
    with pytest.raises(NotFittedError):
        model.predict(wide)
    with pytest.raises(ValueError, match="^classes: "):
        model.partial_fit(wide, y)
    assert model.partial_fit(wide, y, [0, 1]).coef_.shape == (1, 50)


def test_a_first_partial_fit_that_fails_starts_nothing():
    model = Perceptron()
    with pytest.raises(ValueError, match="^y: expected classes"):
        model.partial_fit(np.ones((3, 2)), np.full(3, 7), classes=[0, 1])
    with pytest.raises(NotFittedError):
        model.predict(np.ones((3, 2)))
    with pytest.raises(ValueError, match="^classes: expected at least 2"):
        model.partial_fit(np.ones((3, 2)), np.zeros(3), classes=[0])


@pytest.mark.parametrize("name", ["fit_intercept", "shuffle", "average"])
def test_switches_are_true_or_false(name):
    for wrong in (2, None, "no", [1]):
        with pytest.raises(ValueError, match=f"^{name}: expected True or False"):
            Perceptron(**{name: wrong}).fit([[0.0], [1.0]], [0, 1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_overflow_are_an_error():
    with pytest.raises(ValueError, match="^X: expected smaller numbers"):
        Perceptron(eta0=1e30).fit(np.float32([[1e30, 0], [0, 1e30]]), [0, 1])
    with pytest.raises(ValueError, match="^weighted sum of x: "):
        perceptron_forward([[1e308, 1e308]], [10, 10])
    with pytest.raises(ValueError, match="^lr: "):
        perceptron_epoch(np.ones((1, 1), np.float32), [0], [1], lr=1e300)


def test_a_mask_is_no_order():
    with pytest.raises(TypeError, match="^order: expected row numbers, got a mask"):
        perceptron_epoch([[1.0], [2], [3]], [0, 1, 1], [0], order=np.array([False, True, False]))


@pytest.mark.parametrize("scale", [1e-200, 1e-23, 1.0, 1e20, 1e200])
def test_the_margin_does_not_depend_on_the_size_of_the_weights(scale):
    assert margin(np.array([[1.0, 0]]), [1], [scale, 0]) == 1
    assert mistake_bound([[1.0, 0]], [1], [scale, 0]) == pytest.approx(2)


def test_the_bound_of_large_examples():
    assert mistake_bound([[1e200, 0]], [1], [1, 0]) == pytest.approx(1)
