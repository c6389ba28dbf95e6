"""Recurrent layers beside PyTorch, JAX where it is installed, and plain NumPy: `make bench`.

Forward, and forward with backpropagation through time (gradients by the input and all weights),
float32, as many threads for each as there are processors. Before anything is timed, each result is
compared with PyTorch's in float64.
"""

import numpy as np
import torch

from bench.layers import floats, jax, jnp, tensors, timed
from bench.measure import write
from dlnotes.kernels.recurrence import plain_backward, plain_forward
from dlnotes.lstm import GRU, LSTM
from dlnotes.rnn import RNN

SHAPES = [(100, 32, 64, 128), (28, 128, 28, 128), (256, 1, 64, 64)]  # time, batch, input, hidden
CELLS = {"RNN": (RNN, "tanh"), "GRU": (GRU, "gru"), "LSTM": (LSTM, "lstm")}


def in_torch(kind, model, inputs, hidden, x, grad, dtype=torch.float32):
    "Forward, and forward with gradients, by PyTorch."
    net = getattr(torch.nn, kind)(inputs, hidden, batch_first=True).to(dtype)
    net.load_state_dict({k: torch.tensor(v) for k, v in model.state_dict().items()})
    (x,), slope = tensors(x, dtype=dtype), torch.tensor(grad).to(dtype)
    leaves = [x, *net.parameters()]

    def forward():
        with torch.no_grad():
            return [net(x)[0]]

    def both():
        y = net(x)[0]
        return [y.detach(), *torch.autograd.grad(y, leaves, slope)]

    return forward, both


def in_numpy(cell, model, x, grad):
    "The definition that the kernels are checked against."
    weights = list(model.params.values())
    zeros = (np.zeros((len(x), weights[1].shape[1]), x.dtype),) * (2 if cell == "lstm" else 1)

    def forward():
        return [plain_forward(cell, x, zeros, weights)[0]]

    def both():
        y, _, cache = plain_forward(cell, x, zeros, weights)
        dx, _, grads = plain_backward(grad, [0 * s for s in zeros], cache, weights)
        return [y, dx, *grads]

    return forward, both


def step_in_jax(cell, state, a, b):
    if cell == "lstm":
        i, f, g, o = jnp.split(a + b, 4, axis=1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c
    if cell == "gru":
        (ar, az, an), (br, bz, bn) = jnp.split(a, 3, axis=1), jnp.split(b, 3, axis=1)
        z = jax.nn.sigmoid(az + bz)
        n = jnp.tanh(an + jax.nn.sigmoid(ar + br) * bn)
        return (n + z * (state[0] - n),)
    return (jnp.tanh(a + b),)


def in_jax(cell, model, x, grad):
    def run(x, w_ih, w_hh, b_ih, b_hh):
        def step(state, a):
            state = step_in_jax(cell, state, a, state[0] @ w_hh.T + b_hh)
            return state, state[0]

        sums = (x @ w_ih.T + b_ih).swapaxes(0, 1)
        zeros = jnp.zeros((len(x), w_hh.shape[1]), x.dtype)
        return jax.lax.scan(step, (zeros,) * (2 if cell == "lstm" else 1), sums)[1].swapaxes(0, 1)

    @jax.jit
    def both(grad, *args):
        y, pull = jax.vjp(run, *args)
        return y, *pull(grad)

    forward, args, slope = (
        jax.jit(run),
        [jnp.asarray(a) for a in (x, *model.params.values())],
        jnp.asarray(grad),
    )
    return (
        lambda: [forward(*args).block_until_ready()],
        lambda: jax.block_until_ready(both(slope, *args)),
    )


def rows(kinds=CELLS):
    for kind in kinds:
        layer, cell = CELLS[kind]
        for steps, batch, inputs, hidden in SHAPES:
            model, x = layer(inputs, hidden, rng=0), floats(batch, steps, inputs)
            grad = floats(batch, steps, hidden)

            def both(model=model, x=x, grad=grad):
                (y, _), cache = model.forward(x)
                (dx, _), grads = model.backward((grad, None), cache)
                return [y, dx, *grads.values()]

            args = kind, model, inputs, hidden, x, grad
            contenders = {
                "dlnotes": (lambda model=model, x=x: [model(x)[0]], both),
                "PyTorch": in_torch(*args),
                "NumPy": in_numpy(cell, model, x, grad),
            }
            if jax:
                contenders["JAX"] = in_jax(cell, model, x, grad)
            wanted = in_torch(*args, dtype=torch.float64)
            case = f"{batch} × {steps} steps, {inputs} → {hidden}"
            for k, way in enumerate(["forward", "forward and backward"]):
                yield timed(
                    f"{kind}, {way}",
                    case,
                    {n: c[k] for n, c in contenders.items()},
                    [a.numpy() for a in wanted[k]()],
                    1e-4,
                )


def main():
    write(
        "recurrent",
        list(rows()),
        ["torch"] + ["jax"] * (jax is not None),
        threads=torch.get_num_threads(),
    )


if __name__ == "__main__":
    main()
