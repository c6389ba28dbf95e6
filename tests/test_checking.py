"""What is refused, and that what is accepted comes back as promised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlnotes.core.arguments import as_float, as_labels, check_array, check_input
from dlnotes.core.checking import numerical_grad

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from(["f2", "f4", ">f4", "f8", ">f8", "i1", "i8", "u2", "?"])


@given(a=hnp.arrays(NUMBERS, SHAPES, elements=dict(allow_nan=False, allow_infinity=False)))
def test_real_numbers_are_accepted_whatever_their_layout(a):
    for given_array in (a, a.T, a[..., ::-1] if a.ndim else a):
        out = as_float(given_array, "a")
        assert out.flags.c_contiguous and out.dtype.isnative and (out == given_array).all()
        assert out.dtype == (np.float32 if a.dtype.newbyteorder("=") == np.float32 else np.float64)


@given(
    a=hnp.arrays(
        st.sampled_from(["f4", "f8"]),
        SHAPES.filter(lambda s: 0 not in s),
        elements=dict(allow_nan=True, allow_infinity=True),
    )
)
def test_what_is_not_finite_is_refused(a):
    if np.isfinite(a).all():
        assert (as_float(a, "a") == a).all()
    else:
        with pytest.raises(ValueError, match="^a: expected finite numbers"):
            as_float(a, "a")


@given(shape=SHAPES, wanted=st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=3))
def test_a_shape_fits_or_is_refused(shape, wanted):
    fits = len(shape) == len(wanted) and all(w is None or w == n for n, w in zip(shape, wanted))
    if fits:
        assert as_float(np.zeros(shape), "a", tuple(wanted)).shape == shape
    else:
        with pytest.raises(ValueError, match="^a: expected shape"):
            as_float(np.zeros(shape), "a", tuple(wanted))


@pytest.mark.parametrize("bad", ["a", None, [1j], [object()], [b"1"], np.array(["2020"], "M8[Y]")])
def test_what_is_not_a_real_number_is_a_type_error(bad):
    with pytest.raises(TypeError, match="^a: expected real numbers"):
        as_float(bad, "a")


@given(y=hnp.arrays("f8", 4, elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0])))
def test_labels_are_whole_and_in_range(y):
    if set(y) <= {0, 1, 2}:
        assert (as_labels(y, "y", 4, 3) == y).all()
    else:
        with pytest.raises(ValueError, match="^y: expected 0 to 2"):
            as_labels(y, "y", 4, 3)


def test_numerical_grad_leaves_its_argument_alone():
    x = np.arange(6.0).reshape(2, 3)
    kept = x.copy()
    np.testing.assert_allclose(numerical_grad(lambda v: (v * v).sum(), x), 2 * x, atol=1e-8)
    assert (x == kept).all()


def test_numerical_grad_of_large_numbers_and_of_functions_that_write():
    def squares(v):
        np.multiply(v, v, out=v)
        return v.sum()

    x = np.array([1e8, 1.0, -1e12])
    np.testing.assert_allclose(numerical_grad(lambda v: v[0] ** 2, [1e8]), [2e8], rtol=1e-6)
    np.testing.assert_allclose(
        numerical_grad(squares, x[:2] / 1e6), 2 * x[:2] / 1e6, rtol=1e-6, atol=1e-6
    )
    for bad in (dict(x=None), dict(x=[np.nan]), dict(x=[1j]), dict(x=[1.0], h=0)):
        with pytest.raises((TypeError, ValueError), match=f"^{list(bad)[-1]}: expected"):
            numerical_grad(lambda v: v.sum(), **bad)


def test_masked_values_and_overflow_are_refused():
    with pytest.raises(TypeError, match="^a: expected no masked values"):
        as_float(np.ma.masked_array([1, 99], [0, 1]), "a")
    with pytest.raises(ValueError, match="^a: expected finite"):
        as_float([1e300], "a", dtype=np.float32)


@pytest.mark.parametrize(
    "x, came",
    [
        (np.zeros(2, "f2"), "float16"),
        (np.zeros(2, int), "int64"),
        ([1.0], "list"),
        (2, "int"),
        (np.zeros(2), "float64"),
    ],
)
def test_an_input_of_another_dtype_is_called_what_it_was(x, came):
    with pytest.raises(TypeError, match=f"^x: expected dtype float32, .* got {came}$"):
        check_input(x, like=np.zeros(1, np.float32))


def test_a_long_list_is_shortened_in_the_message():
    with pytest.raises(TypeError, match="^grad: expected an array, got .{60}$"):
        check_array([0.0] * 1000, (1000,), np.dtype(float))
