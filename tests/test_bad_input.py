"""Every public function of the perceptron, given arrays of every kind: right, or refused by name.

Also run with Numba's bounds checks on (`make test`), so that what is accepted is known to be safe.
"""

import warnings

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from dlnotes.perceptron import (
    Perceptron,
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

pytestmark = pytest.mark.kernel

TABLE = np.array([[1, 2, 0], [0, 1, 3], [2, 0, 1], [1, 1, 1], [3, 0, 0]])
LABELS = np.array([0, 1, 0, 1, 1])
WEIGHT = np.array([1, -2, 1])

FUNCTIONS = {
    "weighted_sum": lambda x, y, weight, bias: weighted_sum(x, weight, bias),
    "perceptron_forward": lambda x, y, weight, bias: perceptron_forward(x, weight, bias),
    "heaviside": lambda x, y, weight, bias: heaviside(x),
    "perceptron_update": lambda x, y, weight, bias: perceptron_update(x[0], y[0], weight, bias),
    "perceptron_epoch": perceptron_epoch,
    "perceptron_loss": perceptron_loss,
    "perceptron_grad": perceptron_grad,
    "margin": margin,
    "mistake_bound": mistake_bound,
}


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def spaced(a):
    "The same numbers in every second place of a larger array."
    larger = np.full([2 * n for n in a.shape], 7, a.dtype)
    larger[tuple(slice(None, None, 2) for _ in a.shape)] = a
    return larger[tuple(slice(None, None, 2) for _ in a.shape)]


LAYOUTS = {
    "as it is": np.asarray,
    "list": np.ndarray.tolist,
    "Fortran": np.asfortranarray,
    "read-only": read_only,
    "not contiguous": spaced,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}
DTYPES = ["f2", "f4", "f8", "g", "i1", "i8", "u1", "u8"]


def unsigned(a):
    return np.abs(a)


def numbers(result):
    return np.concatenate(
        [np.ravel(part) for part in (result if isinstance(result, tuple) else (result,))]
    )


@settings(deadline=None)
@given(name=st.sampled_from(list(FUNCTIONS)), dtype=st.sampled_from(DTYPES), data=st.data())
def test_layout_and_dtype_change_nothing(name, dtype, data):
    arrays = [unsigned(a) if dtype[0] == "u" else a for a in (TABLE, LABELS, WEIGHT)]
    expected = FUNCTIONS[name](*(a.astype(float) for a in arrays), 1.0)
    layouts = [LAYOUTS[data.draw(st.sampled_from(list(LAYOUTS)))] for _ in arrays]
    got = FUNCTIONS[name](*(lay(a.astype(dtype)) for lay, a in zip(layouts, arrays)), 1)
    np.testing.assert_allclose(numbers(got), numbers(expected), rtol=1e-6)  # float32 at worst


WRONG = {  # what is put in place of an argument, and the argument that the error has to name
    "x": [
        TABLE[:, :2],
        TABLE[None, :, :2],
        3.0,
        np.where(TABLE == 2, np.nan, TABLE),
        np.where(TABLE == 2, np.inf, TABLE),
        TABLE.astype(str),
        TABLE.astype(complex),
        TABLE.astype(object).tolist() + [[1]],
        TABLE.astype("M8[s]"),
        None,
        "text",
        scipy.sparse.csr_array(TABLE),
        np.zeros((5, 0)),
    ],
    "y": [
        LABELS[:3],
        LABELS[:, None],
        LABELS + 1,
        LABELS - 1,
        LABELS / 2,
        LABELS.astype(str),
        np.full(5, np.nan),
        None,
        1,
    ],
    "weight": [WEIGHT[:2], WEIGHT[None], 1.0, WEIGHT * np.nan, WEIGHT.astype(str), None],
    "bias": [[1.0, 2.0], np.inf, "1", None, 1j],
}
USES = {
    "x": list(FUNCTIONS),
    "y": list(FUNCTIONS)[3:],
    "weight": ["weighted_sum", "margin"],
    "bias": ["perceptron_forward", "perceptron_epoch"],
}
CASES = [
    (name, argument, k)
    for argument, values in WRONG.items()
    for k in range(len(values))
    for name in USES[argument]
]


@pytest.mark.parametrize(("name", "argument", "k"), CASES)
def test_what_cannot_be_used_is_refused_by_name(name, argument, k):
    wrong = WRONG[argument][k]
    if (
        name == "heaviside"
        and isinstance(wrong, (float, np.ndarray))
        and np.asarray(wrong).dtype.kind in "if"
        and np.isfinite(wrong).all()
    ):
        return  # a step is taken of any shape
    if name == "perceptron_update" and not (isinstance(wrong, np.ndarray) and wrong.ndim == 2):
        return  # takes one example; its own cases are in test_perceptron.py
    if name == "perceptron_update" and argument == "y":
        return
    good = dict(x=TABLE, y=LABELS, weight=WEIGHT, bias=1.0) | {argument: wrong}
    with pytest.raises((TypeError, ValueError)) as caught:
        FUNCTIONS[name](**good)
    named = str(caught.value).partition(":")[0]
    assert named == {"heaviside": "z"}.get(name, argument) or (argument, named) == ("x", "weight")
    assert "expected" in str(caught.value)


@settings(deadline=None)
@given(dtype=st.sampled_from(DTYPES), layout=st.sampled_from(list(LAYOUTS)))
def test_the_classifier_takes_any_layout_and_dtype(dtype, layout):
    table = unsigned(TABLE) if dtype[0] == "u" else TABLE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of not having converged
        expected = Perceptron(shuffle=False, max_iter=5).fit(table.astype(float), LABELS)
        got = Perceptron(shuffle=False, max_iter=5).fit(
            LAYOUTS[layout](table.astype(dtype)), LABELS
        )
    np.testing.assert_allclose(got.coef_, expected.coef_)
    assert got.coef_.dtype == (
        np.float32 if dtype == "f4" and layout not in ("list", "big-endian") else np.float64
    )


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (scipy.sparse.csr_array(TABLE), LABELS, "Sparse data was passed for X"),
        (np.where(TABLE == 2, np.nan, TABLE), LABELS, "Input X contains NaN"),
        (np.where(TABLE == 2, np.inf, TABLE), LABELS, "Input X contains infinity"),
        (TABLE[:0], LABELS[:0], "Found array with 0 sample"),
        (TABLE[:, :0], LABELS, "Found array with 0 feature"),
        (TABLE[0], LABELS[:1], "Expected 2D array, got 1D array"),
        (TABLE, LABELS[:3], "inconsistent numbers of samples"),
        (TABLE, LABELS / 2 + 0.1, "Unknown label type"),
        (TABLE, np.ones(5), "y: expected at least 2 classes, got 1 class"),
        (TABLE, LABELS + 1j, "Complex data not supported"),
        (TABLE.astype(str).astype(object) + "a", LABELS, "could not convert string to float"),
    ],
)
def test_the_classifier_refuses_the_rest(X, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Perceptron().fit(X, y)


def test_labels_may_be_strings():
    names = np.array(["no", "yes"])[LABELS]
    model = Perceptron(random_state=0).fit(TABLE[1:3], names[1:3])
    assert (model.predict(TABLE[1:3]) == names[1:3]).all()
