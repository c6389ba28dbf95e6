"""Kernels as Numba compiles them for other processors: width of vectors, and right results."""

import os
import platform
import subprocess
import sys

import pytest

AVX512 = ",".join(
    "-avx512" + name
    for name in ("f bw cd dq vl ifma vbmi vbmi2 vnni bitalg vpopcntdq bf16 fp16".split())
)
SETTINGS = {  # CPU name, its features, bytes of a vector
    "haswell": ("haswell", "+avx2,+fma,+avx,+sse4.2,+bmi,+bmi2,+popcnt,+f16c," + AVX512, 32),
    "nehalem": ("nehalem", "+sse4.2,+popcnt,-avx,-avx2,-fma,-bmi,-bmi2,-f16c," + AVX512, 16),
    "generic": ("generic", None, 16),
}

RUN = """
import sys

import numpy as np
from numba import njit

from dlnotes.kernels import microkernels, tiled_attention
from dlnotes.kernels.recurrence import recurrence_backward, recurrence_forward
from dlnotes.kernels.recurrence import plain_backward, plain_forward
from dlnotes.kernels.convolution import tuned_conv2d, conv_plan

assert microkernels.VECTOR_BYTES == int(sys.argv[1]), microkernels.VECTOR_BYTES
rng = np.random.default_rng(0)


def floats(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


@njit
def dot(a, b):
    return microkernels.row_dot(a, b)


a = floats(2, 100)
assert abs(dot(*a) - np.dot(*a.astype(float))) < 1e-5
code = dot.inspect_asm(dot.signatures[0])
assert "zmm" not in code and ("ymm" in code) == (microkernels.VECTOR_BYTES == 32)
assert ("vfmadd" in code) == (microkernels.VECTOR_BYTES == 32)

if sys.argv[2] == "generic":  # the same width as nehalem's, and compiling takes its time
    print("right")
    sys.exit()

x, w, b = floats(2, 3, 6, 6), floats(5, 3, 3, 3), floats(5)
plan = conv_plan(x.shape, w.shape, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
seen = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
wanted = np.einsum("nchwij,ocij->nohw", seen, w) + b[:, None, None]
assert abs(tuned_conv2d(x, w, b, plan) - wanted).max() < 2e-5

n = 5
weights = [floats(*s) / 2 for s in ((4 * n, 3), (4 * n, n), (4 * n,), (4 * n,))]
x, grad, zeros = floats(2, 3, 3), floats(2, 3, n), (np.zeros((2, n), np.float32),) * 2
y, last, cache = recurrence_forward("lstm", x, zeros, weights)
plain, _, kept = plain_forward("lstm", x, zeros, weights)
assert abs(y - plain).max() < 1e-5
got = recurrence_backward(grad, zeros, cache, weights)
wanted = plain_backward(grad, zeros, kept, weights)
for ours, theirs in zip((got[0], *got[1], *got[2]), (wanted[0], *wanted[1], *wanted[2])):
    assert abs(ours - theirs).max() < 1e-4 and theirs.any()

q, k, v, g = floats(4, 1, 2, 20, 8)
z = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(8))
p = np.exp(z - z.max(-1, keepdims=True))
p /= p.sum(-1, keepdims=True)
dp = g @ v.swapaxes(-1, -2)
dz = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(np.float32(8))
wanted = p @ v, dz @ k, dz.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g
for tiled_attention._SMALL in (0, 4096):
    out, cache = tiled_attention.attention_forward(q, k, v)
    for ours, theirs in zip((out, *tiled_attention.attention_backward(g, cache)), wanted):
        assert abs(ours - theirs).max() < 2e-5
print("right")
"""


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 only")
@pytest.mark.parametrize("name", SETTINGS)
def test_kernels_for_another_processor(name):
    cpu, features, width = SETTINGS[name]
    if name == "haswell":
        import llvmlite.binding as llvm

        if not llvm.get_host_cpu_features().get("avx2"):
            pytest.skip("this processor has no AVX2")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CPU_FEATURES"}
    environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_DISABLE_JIT": "0"}
    if features is not None:
        environment["NUMBA_CPU_FEATURES"] = features
    out = subprocess.run(
        [sys.executable, "-c", RUN, str(width), name],
        env=environment,
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert (out.stdout, out.returncode) == ("right\n", 0), out.stderr
