"""What checks the book and the package: `python -m tools.check`, `python -m tools.claims`."""

import hashlib
import os
from pathlib import Path

REPO = Path(__file__).parent.parent


def own_caches() -> None:
    """Numba's caches in a folder of their own for each state of the sources.

    Numba does not see that a kernel's callee in another file or cell has changed, and would run the
    old code. What a notebook compiles lies where XDG_CACHE_HOME says.
    """
    sources = sorted([*REPO.glob("dlnotes/**/*.py"), *REPO.glob("nbs/**/*.ipynb")])
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = REPO / ".cache" / state
    os.environ.setdefault("NUMBA_CACHE_DIR", str(folder / "numba"))
    os.environ.setdefault("XDG_CACHE_HOME", str(folder))
