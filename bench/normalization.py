"""Batch and layer normalisation beside PyTorch's, and JAX's and NumPy's: `make bench`.

Both in training, forward and backward, float32, with as many threads as there are processors; batch
normalisation with its running statistics. Before anything is timed, each result is compared with
PyTorch's in float64.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bench.layers import both_ways, floats, jax, jnp
from bench.measure import write
from dlnotes.gradients import BatchNorm, LayerNorm

BATCHES = [(64, 32, 32, 32), (32, 64, 16, 16), (64, 64, 8, 8), (128, 256), (64, 128)]
LAYERS = [(32, 100, 256), (4096, 512), (64, 128)]
EPS = 1e-5


def normed(xp, x, axes):
    "The definition, by `xp`: NumPy or JAX."
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / xp.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + np.float32(EPS))


def batch_norms():
    for shape in BATCHES:
        channels, axes = shape[1], (0, *range(2, len(shape)))
        column = (-1, *[1] * (len(shape) - 2))
        layer, x = BatchNorm(channels), floats(*shape)
        running = {
            dtype: (torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype))
            for dtype in (torch.float32, torch.float64)
        }

        def in_torch(x, w, b, running=running):
            return F.batch_norm(x, *running[x.dtype], w, b, training=True, eps=EPS)

        def plain(x, w, b, xp=np, axes=axes, column=column):
            return normed(xp, x, axes) * w.reshape(column) + b.reshape(column)

        yield from both_ways(
            "batch norm",
            " × ".join(map(str, shape)),
            layer,
            in_torch,
            x,
            (layer.params["weight"], layer.params["bias"]),
            jax and (lambda *a, plain=plain: plain(*a, xp=jnp)),
            plain,
        )


def layer_norms():
    for shape in LAYERS:
        layer, x = LayerNorm(shape[-1]), floats(*shape)

        def plain(x, w, b, xp=np):
            return normed(xp, x, -1) * w + b

        yield from both_ways(
            "layer norm",
            " × ".join(map(str, shape)),
            layer,
            lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, EPS),
            x,
            (layer.params["weight"], layer.params["bias"]),
            jax and (lambda *a, plain=plain: plain(*a, xp=jnp)),
            plain,
        )


def main():
    packages = ["torch"] + ["jax"] * (jax is not None)
    write(
        "normalization", [*batch_norms(), *layer_norms()], packages, threads=torch.get_num_threads()
    )


if __name__ == "__main__":
    main()
