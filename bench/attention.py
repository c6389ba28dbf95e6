"""Softmax attention, forward and backward, beside other programs: part of `make bench`.

Each case gives the same float32 arrays to dlnotes, to PyTorch, and, where the table of weights
is small enough for them, to JAX if it is installed and to plain NumPy, in one process and with as
many threads for each as there are processors. Before anything is timed, each result is compared
with PyTorch's in float64. Memory is measured in a process of its own for each program, as what is
in use at most during a call beyond what was before it; the answers themselves count.

`python -m bench.attention 0 3` measures only those cases anew and keeps the other rows.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from bench.measure import RESULTS, contest, peak, write
from dlnotes.kernels.tiled_attention import attention_backward, attention_forward

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("bench.attention compares with PyTorch, which is not installed: pip install torch")
try:
    import jax
    import jax.numpy as jnp
except ImportError:
    jax = jnp = None

# batch, heads, queries and keys, features of each, mask
CASES = [(8, 8, t, 64, mask) for t in (128, 256, 512, 1024) for mask in ("", "causal")] + [
    (8, 8, 256, 64, "padding"),
    (1, 8, 4096, 64, ""),
    (32, 4, 30, 32, "padding"),
    (32, 4, 10, 16, ""),
]
MEMORY = [(1, 8, t, 64, "") for t in (1024, 2048, 4096)]
TABLE = 20_000_000  # weights; with more of them JAX and NumPy are left out


def arrays(batch, heads, length, features, mask):
    "Queries, keys, values and the gradient of the answers; the mask, bool or None."
    rng = np.random.default_rng(0)
    data = rng.standard_normal((4, batch, heads, length, features), dtype=np.float32)
    seen = None
    if mask == "padding":
        lengths = rng.integers(length // 2, length + 1, batch)
        seen = np.arange(length) < lengths[:, None, None, None]
    return data, seen


def in_torch(data, seen, is_causal, dtype=torch.float32):
    "Functions for the answers, and for the gradients."
    q, k, v = (torch.tensor(a, dtype=dtype, requires_grad=True) for a in data[:3])
    grad = torch.tensor(data[3], dtype=dtype)
    seen = None if seen is None else torch.tensor(seen)

    def attend():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=is_causal)

    def forward():
        with torch.no_grad():
            return [attend()]

    answer = attend()
    return forward, lambda: torch.autograd.grad(answer, (q, k, v), grad, retain_graph=True)


def in_dlnotes(data, seen, is_causal):
    q, k, v, grad = data
    cache = attention_forward(q, k, v, seen, is_causal)[1]
    return (
        lambda: [attention_forward(q, k, v, seen, is_causal)[0]],
        lambda: attention_backward(grad, cache),
    )


def in_numpy(data, seen, is_causal):
    q, k, v, grad = data
    root = np.sqrt(np.float32(q.shape[-1]))
    if is_causal:
        seen = np.tri(q.shape[2], dtype=bool)

    def weights():
        p = q @ k.swapaxes(-1, -2)
        p /= root
        if seen is not None:
            p = np.where(seen, p, np.float32(-np.inf))
        p -= p.max(-1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(-1, keepdims=True)
        return p

    kept = weights()

    def backward():
        dz = grad @ v.swapaxes(-1, -2)
        dz -= (dz * kept).sum(-1, keepdims=True)
        dz *= kept
        dz /= root
        return dz @ k, dz.swapaxes(-1, -2) @ q, kept.swapaxes(-1, -2) @ grad

    return lambda: [weights() @ v], backward


def in_jax(data, seen, is_causal):
    if is_causal:
        seen = np.tri(data.shape[3], dtype=bool)

    def attend(q, k, v):
        z = jnp.einsum("nhld,nhsd->nhls", q, k) / np.sqrt(np.float32(q.shape[-1]))
        if seen is not None:
            z = jnp.where(seen, z, -jnp.inf)
        return jnp.einsum("nhls,nhsd->nhld", jax.nn.softmax(z), v)

    q, k, v, grad = (jnp.asarray(a) for a in data)
    go = jax.jit(attend)
    pull = jax.jit(lambda g, *a: jax.vjp(attend, *a)[1](g))
    return (
        lambda: [go(q, k, v).block_until_ready()],
        lambda: jax.block_until_ready(pull(grad, q, k, v)),
    )


PROGRAMS = {"dlnotes": in_dlnotes, "PyTorch": in_torch, "NumPy": in_numpy, "JAX": in_jax}


def rows(case):
    "Forward and backward of one case."
    batch, heads, length, features, mask = case
    data, seen = arrays(*case)
    small = batch * heads * length**2 <= TABLE
    names = ["dlnotes", "PyTorch", *["NumPy"] * small, *["JAX"] * (small and jax is not None)]
    ways = {name: PROGRAMS[name](data, seen, mask == "causal") for name in names}
    exact = in_torch(data, seen, mask == "causal", torch.float64)
    for way, flops in enumerate((4, 10)):
        wanted = [a.numpy() for a in exact[way]()]
        for name, functions in ways.items():
            for got, reference in zip(functions[way](), wanted):
                error = np.abs(np.asarray(got, np.float64) - reference).max()
                assert error <= 1e-5 * max(1, np.abs(reference).max()), (case, way, name, error)
        row = {
            "kind": "attention, " + ("forward", "backward")[way],
            "case": f"{batch} × {heads} × {length}×{features}" + (mask and f", {mask}"),
            **contest({name: f[way] for name, f in ways.items()}, 5 if length > 500 else 11),
        }
        if not mask:
            work = flops * batch * heads * length**2 * features
            row["peak"] = round(work / row["ms"]["dlnotes"] / 1e6 / PEAK, 2)
        ratios = "  ".join(f"{k} {v:.2f}" for k, v in row["ratio"].items())
        print(
            f"{row['kind']:20} {row['case']:26} {row['ms']['dlnotes']:9.3f} ms   {ratios}",
            flush=True,
        )
        yield row


def resident(field):
    "Megabytes of this process, now (VmRSS) or at most (VmHWM)."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def most_memory(name, i):
    "Megabytes that a first forward and backward pass add at most; everything is compiled before."
    data, seen = arrays(*MEMORY[i])
    small = np.ascontiguousarray(data[:, :, :, :32])

    def both(data):  # the answer's function is not called again: making it does that
        for f in PROGRAMS[name](data, seen, False)[1:]:
            f()

    both(small)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    thread = threading.Thread(target=both, args=(data,))
    thread.start()
    thread.join()
    print(round(resident("VmHWM") - before, 1))


def memory():
    "Megabytes for each of MEMORY and each program; nothing where the system does not tell."
    table = []
    for i, case in enumerate(MEMORY if Path("/proc/self/clear_refs").exists() else []):
        names = ["dlnotes", "PyTorch", "NumPy", *["JAX"] * (jax is not None)]
        found = {
            name: float(
                subprocess.run(
                    [sys.executable, "-m", "bench.attention", "memory", name, str(i)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for name in names
        }
        table.append({"case": "{} × {} × {}×{}".format(*case), "mb": found})
        print("memory", table[-1], flush=True)
    return table


def main(chosen):
    file = RESULTS / "attention.json"
    old = json.loads(file.read_text()) if chosen and file.exists() else {"rows": [], "memory": []}
    kept = {(row["kind"], row["case"]): row for row in old["rows"]}
    measured = [
        row for i, case in enumerate(CASES) if not chosen or i in chosen for row in rows(case)
    ]
    kept.update(((row["kind"], row["case"]), row) for row in measured)
    packages = ["torch"] + ["jax"] * (jax is not None)
    write(
        "attention",
        list(kept.values()),
        packages,
        peak_gflops=round(PEAK, 1),
        threads=torch.get_num_threads(),
        memory=memory() if not chosen or len(CASES) in chosen else old["memory"],
    )


PEAK = 0.0
if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        most_memory(sys.argv[2], int(sys.argv[3]))
    else:
        PEAK = peak()
        main([int(a) for a in sys.argv[1:]])
