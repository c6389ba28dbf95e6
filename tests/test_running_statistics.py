"""The running statistics of BatchNorm by their formulas, without PyTorch."""

import numpy as np
import pytest

from dlnotes.gradients import BatchNorm

pytestmark = pytest.mark.kernel
SHAPES = [(5, 3), (2, 3), (4, 3, 5), (3, 3, 4, 5)]  # 2 numbers a channel: n / (n - 1) is 2


def batches(shape, count=3):
    rng = np.random.default_rng(8)
    return [rng.normal(k, 1 + k, shape) for k in range(count)]


def moments(x):
    "Mean and unbiased variance of each channel."
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    return rows.mean(axis=0), rows.var(axis=0, ddof=1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", [0.1, 0.37, 1.0, 0.0])
def test_running_statistics_are_exponential_moving_averages(shape, momentum):
    layer, mean, var = BatchNorm(shape[1], momentum=momentum, dtype=np.float64), 0.0, 1.0
    for x in batches(shape):
        layer.forward(x)
        batch_mean, batch_var = moments(x)
        mean = (1 - momentum) * mean + momentum * batch_mean
        var = (1 - momentum) * var + momentum * batch_var
        np.testing.assert_allclose(layer.buffers["running_mean"], mean + 0 * batch_mean, atol=1e-12)
        np.testing.assert_allclose(layer.buffers["running_var"], var + 0 * batch_var, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_momentum_they_are_the_averages_over_all_batches(shape):
    layer, arrays = BatchNorm(shape[1], momentum=None, dtype=np.float64), batches(shape)
    for x in arrays:
        layer.forward(x)
    mean, var = (np.mean(values, axis=0) for values in zip(*map(moments, arrays)))
    np.testing.assert_allclose(layer.buffers["running_mean"], mean, atol=1e-12)
    np.testing.assert_allclose(layer.buffers["running_var"], var, rtol=1e-12)
    assert layer.buffers["num_batches_tracked"] == 3


def test_evaluation_uses_them():
    layer = BatchNorm(3, momentum=0.37, dtype=np.float64)
    x, other = batches((6, 3), 2)
    layer.forward(x)
    mean, var = layer.buffers["running_mean"].copy(), layer.buffers["running_var"].copy()
    y, _ = layer.eval().forward(other)
    np.testing.assert_allclose(y, (other - mean) / np.sqrt(var + layer.eps), rtol=1e-12)
    assert (layer.buffers["running_mean"] == mean).all()
