"""The chapters' kernels beside plain Python, tuned kernels, PyTorch: `python -m bench.kernels`.

Each row is one formula at one size: the kernel of the chapter as plain Python, the same compiled,
what the package runs, and PyTorch, each with one thread, in float32. Medians over the repeats, in
turn; plain Python is timed by itself, with fewer repeats.
"""

from collections.abc import Callable

import numpy as np
import torch

from bench.measure import contest, interleaved, write
from dlnotes import attention as scores
from dlnotes import cnn, gradients, lstm, mlp, perceptron, rnn, set_num_threads, transformer
from dlnotes.kernels.perceptron_epoch import unrolled_epoch

REPEATS, PLAIN_REPEATS = 9, 3
F = torch.nn.functional


def tensors(*arrays):
    return [torch.from_numpy(a).requires_grad_(a.dtype.kind == "f") for a in arrays]


def forward_only(f: Callable, *arrays: np.ndarray) -> Callable:
    "PyTorch's function of these arrays, without a graph."
    inputs = [torch.from_numpy(a) for a in arrays]

    def run():
        with torch.no_grad():
            return f(*inputs)

    return run


def backward_only(f: Callable, grad: np.ndarray, *arrays: np.ndarray) -> Callable:
    "The backward pass of PyTorch's function, its forward pass done before."
    inputs, grad = tensors(*arrays), torch.from_numpy(grad)
    output = f(*inputs)
    return lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)


def neuron(rng):
    x = rng.standard_normal((2000, 20), np.float32)
    y = x @ rng.standard_normal(20) + rng.normal(scale=0.5, size=2000) >= 0
    one, rows, a = np.float32(1), np.arange(2000, dtype=np.int32), np.zeros(21)
    w = np.zeros(21, np.float32)
    arguments = (x, y, rows, w, a, one, one, 0)
    yield (
        "perceptron, one epoch",
        "2,000 examples of 20 numbers",
        (perceptron.epoch_kernel, arguments),
        lambda: unrolled_epoch(*arguments),
        None,
    )


def layers(rng):
    x, weight = (rng.standard_normal(s, np.float32) for s in ((64, 64), (32, 64)))
    bias, y, grad = (np.zeros(s, np.float32) for s in (32, (64, 32), (64, 32)))
    grad += rng.standard_normal(grad.shape, np.float32)
    into = (np.zeros_like(x), np.zeros_like(weight), np.zeros_like(bias))
    layer, size = mlp.Linear(64, 32, rng=0), "64 examples, 64 inputs, 32 outputs"
    _, cache = layer.forward(x)
    yield (
        "dense layer, forward",
        size,
        (mlp.linear_kernel, (x, weight, bias, y)),
        lambda: layer(x),
        forward_only(F.linear, x, weight, bias),
    )
    yield (
        "dense layer, backward",
        size,
        (mlp.linear_backward_kernel, (grad, x, weight, *into)),
        lambda: layer.backward(grad, cache),
        backward_only(F.linear, grad, x, weight, bias),
    )
    z, target = rng.standard_normal((256, 100), np.float32), rng.integers(0, 100, 256)
    p, losses, softmax = np.empty_like(z), np.empty(256, np.float32), mlp.Softmax()
    yield (
        "softmax",
        "256 examples, 100 classes",
        (mlp.softmax_loop, (z, p)),
        lambda: softmax(z),
        forward_only(lambda z: F.softmax(z, 1), z),
    )
    loss, classes = mlp.CrossEntropyLoss(), torch.from_numpy(target)
    logits = torch.from_numpy(z).requires_grad_()
    yield (
        "cross-entropy and its gradient",
        "256 examples, 100 classes",
        (mlp.cross_entropy_loop, (z, target, losses, p)),
        lambda: loss.forward(z, target),
        lambda: torch.autograd.grad(F.cross_entropy(logits, classes), logits),
    )


def alignment(rng):
    s, states = (rng.standard_normal(n, np.float32) for n in ((11, 64), (30, 64)))
    e, alpha = np.empty((2, 11, 30), np.float32)
    c, size = np.empty((11, 64), np.float32), "11 steps, 30 states of 64 numbers"
    general, additive = (scores.Attention(kind, 64, 64, rng=0) for kind in ("general", "additive"))
    w, p = general.params["weight"], list(additive.params.values())

    def run_of(score, *arguments):
        def of(kernel):
            context = scores.context_kernel
            context = context if kernel is score else context.py_func

            def run():
                kernel(*arguments, e)
                context(e, states, alpha, c)

            return run

        return of

    query, memory = torch.from_numpy(s[None]), torch.from_numpy(states[None])
    weight, (wq, wk, bias, v) = torch.from_numpy(w), map(torch.from_numpy, p)

    def attend(e):
        return torch.softmax(e, -1) @ memory

    def general_pytorch():
        with torch.no_grad():
            return attend(query @ weight @ memory.transpose(1, 2))

    def additive_pytorch():
        with torch.no_grad():
            both = (query @ wq.T)[:, :, None] + (memory @ wk.T)[:, None] + bias
            return attend(torch.tanh(both) @ v)

    yield (
        "general score and context",
        size,
        (scores.general_scores_kernel, run_of(scores.general_scores_kernel, s, w, states)),
        lambda: general(s[None], states[None]),
        general_pytorch,
    )
    yield (
        "additive score and context",
        size,
        (
            scores.additive_scores_kernel,
            run_of(scores.additive_scores_kernel, s, states, *p),
        ),
        lambda: additive(s[None], states[None]),
        additive_pytorch,
    )


def convolution(rng):
    x, w = (rng.standard_normal(s, np.float32) for s in ((4, 8, 14, 14), (8, 8, 3, 3)))
    bias, z = np.zeros(8, np.float32), np.empty((4, 8, 12, 12), np.float32)
    grad, dx, dw = rng.standard_normal(z.shape, np.float32), np.zeros_like(x), np.zeros_like(w)
    layer = cnn.Conv2d(8, 8, 3, rng=0)
    _, cache = layer.forward(x)
    yield (
        "convolution, forward",
        "4 images, 8 x 14 x 14, 8 filters of 3 x 3",
        (cnn.conv2d_kernel, (x, w, bias, 1, 1, 1, z)),
        lambda: layer(x),
        forward_only(F.conv2d, x, w, bias),
    )
    yield (
        "convolution, backward",
        "4 images, 8 x 14 x 14, 8 filters of 3 x 3",
        (cnn.conv2d_backward_kernel, (grad, x, w, 1, 1, 1, dx, dw)),
        lambda: layer.backward(grad, cache),
        backward_only(F.conv2d, grad, x, w, bias),
    )


def pooling(rng):
    x = rng.standard_normal((8, 8, 32, 32), np.float32)
    z, where = np.empty((8, 8, 16, 16), np.float32), np.empty((8, 8, 16, 16), np.int64)
    grad, layer = rng.standard_normal(z.shape, np.float32), cnn.MaxPool2d(2)
    _, cache = layer.forward(x)
    cnn.max_pool2d_kernel(x, 2, 2, z, where)
    yield (
        "max pooling, forward",
        "8 images, 8 x 32 x 32, windows of 2",
        (cnn.max_pool2d_kernel, (x, 2, 2, z, where)),
        lambda: layer(x),
        forward_only(lambda x: F.max_pool2d(x, 2), x),
    )
    yield (
        "max pooling, backward",
        "8 images, 8 x 32 x 32, windows of 2",
        (cnn.max_pool2d_backward_kernel, (grad, where, 2, 2, np.zeros_like(x))),
        lambda: layer.backward(grad, cache),
        backward_only(lambda x: F.max_pool2d(x, 2), grad, x),
    )


def recurrence(rng):
    m, steps, n, d = 16, 50, 32, 64
    x, grad = (rng.standard_normal((m, steps, k), np.float32) for k in (n, d))
    layer, torch_layer = rnn.RNN(n, d, rng=0), torch.nn.RNN(n, d, batch_first=True)
    weight_ih, weight_hh, bias_ih, bias_hh = layer.params.values()
    h, by_z = np.empty((m, steps, d), np.float32), np.empty((m, steps, d), np.float32)
    _, cache = layer.forward(x)

    def steps_of(kernel):
        def run():
            kernel(x @ weight_ih.T + (bias_ih + bias_hh), weight_hh, h)

        return run

    def back_of(kernel):
        def run():
            kernel(grad, h, weight_hh, by_z)
            flat = by_z.reshape(-1, d)
            before = np.zeros_like(h)
            before[:, 1:] = h[:, :-1]
            flat.T @ x.reshape(-1, n), flat.T @ before.reshape(-1, d), flat @ weight_ih
            flat.sum(axis=0)

        return run

    size = f"{m} sequences, {steps} steps, {n} inputs, {d} units"
    yield (
        "RNN, forward",
        size,
        (rnn.rnn_kernel, steps_of),
        lambda: layer(x),
        forward_only(lambda x: torch_layer(x)[0], x),
    )
    yield (
        "RNN, backward",
        size,
        (rnn.rnn_backward_kernel, back_of),
        lambda: layer.backward((grad, None), cache),
        backward_only(lambda x, *_: torch_layer(x)[0], grad, x),
    )


def gates(rng):
    m, steps, n, d = 16, 50, 32, 64
    x = rng.standard_normal((m, steps, n), np.float32)
    for name, kernel, layer, torch_layer in (
        ("LSTM", lstm.lstm_step_kernel, lstm.LSTM(n, d, rng=0), torch.nn.LSTM),
        ("GRU", lstm.gru_step_kernel, lstm.GRU(n, d, rng=0), torch.nn.GRU),
    ):
        weight_ih, weight_hh, bias_ih, bias_hh = layer.params.values()
        pytorch, size = torch_layer(n, d, batch_first=True), len(bias_ih)

        def steps_of(kernel, name=name, w=(weight_ih, weight_hh, bias_ih, bias_hh), size=size):
            def run():
                a = x @ w[0].T + w[2]
                h, c = np.zeros((m, d), np.float32), np.zeros((m, d), np.float32)
                gates = np.empty((m, size), np.float32)
                for t in range(steps):
                    p = h @ w[1].T + w[3]
                    after, cell = np.empty_like(h), np.empty_like(c)
                    if name == "LSTM":
                        kernel(a[:, t] + p, c, gates, cell, after)
                    else:
                        kernel(a[:, t], p, h, gates, after)
                    h, c = after, cell

            return run

        yield (
            f"{name}, forward",
            f"{m} sequences, {steps} steps, {n} inputs, {d} units",
            (kernel, steps_of),
            lambda layer=layer: layer(x),
            forward_only(lambda x, pytorch=pytorch: pytorch(x)[0], x),
        )


def norms(rng):
    x, grad = rng.standard_normal((2, 256, 64), np.float32)
    gamma, beta = np.ones(64, np.float32), np.zeros(64, np.float32)
    y, dx, dgamma, dbeta = np.empty_like(x), np.empty_like(x), *np.empty((2, 64), np.float32)
    size = "256 examples of 64 numbers"
    batch, layer = gradients.BatchNorm(64), gradients.LayerNorm(64)
    for name, f, kernel, back, ours, width in (
        (
            "batch normalization",
            lambda x, a, b: F.batch_norm(x, None, None, a, b, True),
            gradients.batch_norm_kernel,
            gradients.batch_norm_backward_kernel,
            batch,
            64,
        ),
        (
            "layer normalization",
            lambda x, a, b: F.layer_norm(x, (64,), a, b),
            gradients.layer_norm_kernel,
            gradients.layer_norm_backward_kernel,
            layer,
            256,
        ),
    ):
        mean, rstd = np.empty((2, width), np.float32)
        kernel(x, gamma, beta, np.float32(1e-5), y, mean, rstd)
        _, cache = ours.forward(x)
        yield (
            f"{name}, forward",
            size,
            (kernel, (x, gamma, beta, np.float32(1e-5), y, mean, rstd)),
            lambda ours=ours: ours(x),
            forward_only(f, x, gamma, beta),
        )
        yield (
            f"{name}, backward",
            size,
            (back, (grad, x, gamma, mean, rstd, dx, dgamma, dbeta)),
            lambda ours=ours, cache=cache: ours.backward(grad, cache),
            backward_only(f, grad, x, gamma, beta),
        )


def attention(rng):
    t, s, d = 64, 64, 32
    q, k, v = (rng.standard_normal((n, d), np.float32) for n in (t, s, s))
    grad, scale = rng.standard_normal((t, d), np.float32), np.float32(d**-0.5)
    p, y = np.empty((t, s), np.float32), np.empty((t, d), np.float32)
    transformer.attention_kernel(q, k, v, scale, p, y)
    size, sdpa = f"{t} queries, {s} keys of {d} numbers", F.scaled_dot_product_attention
    tensors4 = [a[None, None] for a in (q, k, v)]
    yield (
        "attention, forward",
        size,
        (transformer.attention_kernel, (q, k, v, scale, p, y)),
        lambda: transformer.scaled_dot_product_attention(q, k, v),
        forward_only(sdpa, *tensors4),
    )
    yield (
        "attention, online softmax",
        size,
        (transformer.online_attention_kernel, (q, k, v, scale, y)),
        lambda: transformer.scaled_dot_product_attention(q, k, v),
        forward_only(sdpa, *tensors4),
    )
    yield (
        "attention, backward",
        size,
        (
            transformer.attention_backward_kernel,
            (grad, q, k, v, scale, p, tuple(np.zeros_like(a) for a in (q, k, v))),
        ),
        lambda: transformer.scaled_dot_product_attention_backward(grad, q, k, v),
        backward_only(sdpa, grad[None, None], *tensors4),
    )


CASES = (neuron, layers, convolution, pooling, recurrence, gates, norms, alignment, attention)


def row(name, size, kernel, tuned, pytorch):
    "Median milliseconds of plain Python, jitted, tuned and PyTorch."
    jitted, arguments = kernel
    if callable(arguments):
        run, plain = arguments(jitted), arguments(jitted.py_func)
    else:
        run, plain = lambda: jitted(*arguments), lambda: jitted.py_func(*arguments)
    contenders = {"jitted": run, "tuned": tuned} | ({"PyTorch": pytorch} if pytorch else {})
    slow = 1e3 * np.median(interleaved([plain], PLAIN_REPEATS))
    ms = {"plain Python": float(f"{slow:.3g}"), **contest(contenders, REPEATS)["ms"]}
    print(f"{name:32}", *(f"{label} {value:g} ms" for label, value in ms.items()), flush=True)
    return {"name": name, "size": size, "ms": ms}


def main():
    set_num_threads(1)
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(0), []
    for cases in CASES:
        rows += [row(*case) for case in cases(rng)]
    write("kernels", rows, ["torch"])


if __name__ == "__main__":
    main()
