"""Layers, losses, optimisers and an epoch of training beside other programs: `make bench`.

Each case gives the same float32 arrays to dlnotes, to PyTorch, to JAX where it is installed, and
to plain NumPy, in one process and with as many threads for each as there are processors. Before
anything is timed, each result is compared with PyTorch's in float64.
"""

import os
import subprocess
import sys
import tempfile
import time
from itertools import count

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from bench.measure import contest, peak, write
from dlnotes import (
    GELU,
    SGD,
    AdamW,
    AvgPool2d,
    Conv2d,
    CrossEntropyLoss,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
    fit,
)

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("bench.layers compares with PyTorch, which is not installed: pip install torch")
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = jnp = None

REPEATS = 15
SHAPES = [(64, 3, 32, 16), (64, 16, 16, 32), (32, 3, 64, 32), (32, 32, 32, 64)]  # N, C, H = W, O
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


def tensors(*arrays, dtype=torch.float32):
    return [torch.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]


def timed(kind, case, contenders, wanted, tolerance, flops=None):
    "Check each contender's result against `wanted` (float64), time them in turn, print the row."
    for name, f in contenders.items():
        for got, reference in zip(f(), wanted):
            error = np.abs(np.asarray(got, np.float64) - reference).max()
            assert error <= tolerance * max(1, np.abs(reference).max()), (kind, case, name, error)
    row = {"kind": kind, "case": case, **contest(contenders, REPEATS)}
    if flops:
        row["peak"] = round(flops / row["ms"]["dlnotes"] / 1e6 / PEAK, 2)
    ratios = "  ".join(f"{k} {v:.2f}" for k, v in row["ratio"].items())
    print(f"{kind:22} {case:32} {row['ms']['dlnotes']:9.3f} ms   {ratios}", flush=True)
    return row


def both_ways(
    kind,
    case,
    layer,
    torch_f,
    x,
    params=(),
    jax_f=None,
    numpy_f=None,
    numpy_b=None,
    flops=None,
    tolerance=1e-4,
):
    "Rows for forward and backward of one layer."
    y, cache = layer.forward(x)
    grad = floats(*y.shape)
    wide = tensors(x, *params, dtype=torch.float64)
    wide_y = torch_f(*wide)
    wanted = [g.numpy() for g in torch.autograd.grad(wide_y, wide, torch.tensor(grad).double())]
    args = tensors(x, *params)
    answer, slope = torch_f(*args), torch.tensor(grad)

    def forward():
        with torch.no_grad():
            return [torch_f(*args)]

    def backward():
        dx, grads = layer.backward(grad, cache)
        return [dx, *grads.values()]

    ahead = {"dlnotes": lambda: [layer.forward(x)[0]], "PyTorch": forward}
    back = {
        "dlnotes": backward,
        "PyTorch": lambda: torch.autograd.grad(answer, args, slope, retain_graph=True),
    }
    if jax and jax_f:
        go, pull = jax.jit(jax_f), jax.jit(lambda g, *a: jax.vjp(jax_f, *a)[1](g))
        j = [jnp.asarray(a) for a in (x, *params)]
        ahead["JAX"] = lambda: [go(*j).block_until_ready()]
        back["JAX"] = lambda: jax.block_until_ready(pull(jnp.asarray(grad), *j))
    if numpy_f:
        ahead["NumPy"] = lambda: [numpy_f(x, *params)]
    if numpy_b:
        back["NumPy"] = lambda: numpy_b(grad, x, *params)
    return [
        timed(kind + ", forward", case, ahead, [wide_y.detach().numpy()], tolerance, flops),
        timed(kind + ", backward", case, back, wanted, tolerance, flops and 2 * flops),
    ]


def numpy_conv(x, weight, bias, p):
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (p, p), (p, p))), (3, 3), (2, 3))
    return (
        np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        + bias[:, None, None]
    )


def numpy_conv_backward(grad, x, weight, bias, p):
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (p, p), (p, p))), (3, 3), (2, 3))
    dw = np.tensordot(grad, windows, ((0, 2, 3), (0, 2, 3)))
    turned = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return (
        numpy_conv(grad, turned, np.zeros(len(turned), np.float32), 2 - p),
        dw,
        grad.sum((0, 2, 3)),
    )


def convolutions():
    for batch in (None, 1):
        for n, c, h, o in SHAPES:
            for p in (0, 1):
                n = batch or n
                layer, x = Conv2d(c, o, 3, padding=p, rng=0), floats(n, c, h, h)
                params = layer.params["weight"], layer.params["bias"]

                def in_jax(x, w, b, p=p):
                    y = jax.lax.conv_general_dilated(x, w, (1, 1), [(p, p), (p, p)])
                    return y + b[:, None, None]

                side = h + 2 * p - 2
                yield from both_ways(
                    "conv2d",
                    f"{n} × {c}×{h}×{h} → {o}, padding {p}",
                    layer,
                    lambda x, w, b, p=p: F.conv2d(x, w, b, padding=p),
                    x,
                    params,
                    in_jax,
                    lambda x, w, b, p=p: numpy_conv(x, w, b, p),
                    lambda g, x, w, b, p=p: numpy_conv_backward(g, x, w, b, p),
                    flops=2 * n * o * c * 9 * side**2,
                )


def pools():
    def jax_pool(start, combine, scale):
        return lambda x: (
            jax.lax.reduce_window(x, start, combine, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") * scale
        )

    def quarters(x):
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2)

    for n, _, h, c in SHAPES + [(1, *shape[1:]) for shape in SHAPES]:
        x, case = floats(n, c, h, h), f"{n} × {c}×{h}×{h}"
        yield from both_ways(
            "max_pool2d",
            case,
            MaxPool2d(2),
            lambda x: F.max_pool2d(x, 2),
            x,
            jax_f=jax and jax_pool(-jnp.inf, jax.lax.max, 1),
            numpy_f=lambda x: quarters(x).max((3, 5)),
        )
        yield from both_ways(
            "avg_pool2d",
            case,
            AvgPool2d(2),
            lambda x: F.avg_pool2d(x, 2),
            x,
            jax_f=jax and jax_pool(0.0, jax.lax.add, 0.25),
            numpy_f=lambda x: quarters(x).mean((3, 5)),
        )


def activations():
    x = floats(64, 16, 32, 32)
    for name, layer, in_torch, in_jax in [
        ("relu", ReLU(), torch.relu, lambda x: jnp.maximum(x, 0)),
        ("sigmoid", Sigmoid(), torch.sigmoid, lambda x: jax.nn.sigmoid(x)),
        ("tanh", Tanh(), torch.tanh, lambda x: jnp.tanh(x)),
        ("gelu", GELU(), F.gelu, lambda x: jax.nn.gelu(x, approximate=False)),
    ]:
        yield from both_ways(name, "64 × 16×32×32", layer, in_torch, x, jax_f=in_jax)


def losses():
    for n, k in [(64, 10), (64, 1000), (4096, 1000)]:
        yield classifier_loss(n, k)


def classifier_loss(n, k):
    "Softmax with cross-entropy, forward and backward."
    loss, z, y = CrossEntropyLoss(), 3 * floats(n, k), RNG.integers(0, k, n)
    labels = torch.tensor(y)

    def ours():
        value, cache = loss.forward(z, y)
        return value, loss.backward(cache)

    def in_torch(t):
        value = F.cross_entropy(t, labels)
        return value.detach(), *torch.autograd.grad(value, t)

    def in_numpy():
        e = np.exp(z - z.max(1, keepdims=True))
        p, rows = e / e.sum(1, keepdims=True), np.arange(n)
        value = -np.log(p[rows, y]).mean()
        p[rows, y] -= 1
        return value, p / n

    t, wide = tensors(z)[0], tensors(z, dtype=torch.float64)[0]
    contenders = {"dlnotes": ours, "PyTorch": lambda: in_torch(t), "NumPy": in_numpy}
    if jax:
        both = jax.jit(
            jax.value_and_grad(
                lambda z: (
                    -jnp.take_along_axis(jax.nn.log_softmax(z), jnp.asarray(y)[:, None], 1).mean()
                )
            )
        )
        jz = jnp.asarray(z)
        contenders["JAX"] = lambda: jax.block_until_ready(both(jz))
    return timed(
        "softmax, cross-entropy",
        f"{n} × {k}, both ways",
        contenders,
        [a.numpy() for a in in_torch(wide)],
        1e-5,
    )


def optimizers():
    small = {k: v.shape for k, v in network(0).params.items()}
    for size, shapes in [("digits network", small), ("4 million", {"w": (2048, 2048)})]:
        yield optimizer("SGD, momentum 0.9", size, shapes, SGD, torch.optim.SGD, momentum=0.9)
        yield optimizer("AdamW", size, shapes, AdamW, torch.optim.AdamW)


def optimizer(kind, size, shapes, ours, theirs, **settings):
    "One step; the results compared are those of the first, from the same start."
    start, grads = ({k: floats(*s) for k, s in shapes.items()} for _ in range(2))

    def in_torch(dtype=torch.float32, **options):
        params = tensors(*start.values(), dtype=dtype)
        for p, g in zip(params, grads.values()):
            p.grad = torch.tensor(g, dtype=dtype)
        method = theirs(params, 1e-3, **settings, **options)

        def step():
            method.step()
            return [p.detach().numpy() for p in params]

        return step

    mine = {k: v.copy() for k, v in start.items()}
    method = ours(mine, 1e-3, **settings)

    def step():
        method.step(grads)
        return list(mine.values())

    return timed(
        kind,
        size,
        {"dlnotes": step, "PyTorch": in_torch(), "PyTorch, fused": in_torch(fused=True)},
        in_torch(torch.float64)(),
        1e-6,
    )


def network(seed):
    "The digits network of the chapter on images: C14's form for 8x8 images."
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(1, 16, 3, padding=1, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Conv2d(16, 32, 3, padding=1, rng=rng),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(128, 10, rng=rng),
    )


def torch_network(model):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    net.load_state_dict({k: torch.tensor(v) for k, v in model.state_dict().items()})
    return net


def epochs():
    """One epoch over the digits, batches of 32 in the given order, AdamW.

    Each contender goes on training its own network from epoch to epoch; what is compared is the
    loss after the first.
    """
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)[:1792]
    y = y[:1792]
    loss, model = CrossEntropyLoss(), network(0)
    optimizer = AdamW(model.params, 1e-3)

    def ours():
        fit(model, loss, optimizer, x, y, epochs=1, batch_size=32, shuffle=False, progress=False)

    def in_torch(dtype=torch.float32, **options):
        net = torch_network(network(0)).to(dtype)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, **options)
        t, labels = torch.tensor(x, dtype=dtype), torch.tensor(y)

        def epoch():
            for i in range(0, len(x), 32):
                optimizer.zero_grad()
                F.cross_entropy(net(t[i : i + 32]), labels[i : i + 32]).backward()
                optimizer.step()

        def value():
            with torch.no_grad():
                return float(F.cross_entropy(net(t[:256]), labels[:256]))

        return epoch, value

    contenders = {
        "dlnotes": (ours, lambda: loss(model(x[:256]), y[:256])),
        "PyTorch": in_torch(),
        "PyTorch, fused": in_torch(fused=True),
    }
    if jax:
        contenders["JAX"] = jax_epoch(x, y)
    epoch, value = in_torch(torch.float64)
    epoch()
    return timed(
        "training",
        "one epoch of the digits",
        {name: once(*c) for name, c in contenders.items()},
        [value()],
        1e-3,
    )


def once(f, value):
    "`f`, which returns the value after its first call only."
    values = [value]

    def call():
        f()
        return [values.pop()()] if values else []

    return call


def jax_epoch(x, y):
    def layer(x, w, b):
        x = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME") + b[:, None, None]
        return jax.lax.reduce_window(
            jnp.maximum(x, 0), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
        )

    def loss(p, x, y):
        h = layer(layer(x, p["0.weight"], p["0.bias"]), p["3.weight"], p["3.bias"])
        z = h.reshape(len(h), -1) @ p["7.weight"].T + p["7.bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1).mean()

    @jax.jit
    def step(p, m, v, t, x, y):
        g = jax.grad(loss)(p, x, y)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        down, root = 1e-3 / (1 - 0.9**t), 1 / (1 - 0.999**t)
        p = jax.tree.map(
            lambda p, m, v: p * (1 - 1e-5) - down * m / (jnp.sqrt(v * root) + 1e-8), p, m, v
        )
        return p, m, v

    p = {k: jnp.asarray(a) for k, a in network(0).state_dict().items()}
    m = v = jax.tree.map(jnp.zeros_like, p)
    state, t = [p, m, v], count(1)

    def epoch():
        for i in range(0, len(x), 32):
            state[:] = step(*state, float(next(t)), x[i : i + 32], y[i : i + 32])
        jax.block_until_ready(state)

    return epoch, lambda: float(loss(state[0], x[:256], y[:256]))


def first_step():
    "Seconds from Python's start to the end of a first training step: cold cache, then warm."
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "NUMBA_CACHE_DIR": cache}
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "bench.first_step"], env=env, check=True)
            seconds.append(time.perf_counter() - start)
    row = {"cold_s": round(seconds[0], 2), "warm_s": round(sorted(seconds[1:])[1], 2)}
    print("first training step", row)
    return row


def main():
    rows = []
    for cases in (convolutions, pools, activations, losses, optimizers):
        rows += cases()
    rows.append(epochs())
    packages = ["torch"] + ["jax"] * (jax is not None)
    write(
        "layers",
        rows,
        packages,
        peak_gflops=round(PEAK, 1),
        threads=torch.get_num_threads(),
        first_step=first_step(),
    )


PEAK = 0.0
if __name__ == "__main__":
    PEAK = peak()
    main()
