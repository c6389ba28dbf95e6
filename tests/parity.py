"""PyTorch, and the mark of the tests that cannot do without it."""

import pytest

try:
    import torch
except ImportError:
    torch = None

parity = pytest.mark.skipif(torch is None, reason="torch is not installed")
