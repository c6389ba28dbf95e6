"""Settings that must stand before anything is imported, and no skips where all tests are wanted."""
import hashlib
import os
from pathlib import Path

from hypothesis import settings

REPO = Path(__file__).parent.parent

# Numba's cache does not see that a kernel's callee in another file or cell has changed, and would
# run the old code: each state of package and notebooks has a cache of its own (in a notebook it
# lies where XDG_CACHE_HOME says).
sources = sorted([*REPO.glob("dlnotes/*.py"), *REPO.glob("nbs/*.ipynb")])
state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
os.environ.setdefault("NUMBA_CACHE_DIR", str(REPO / ".cache" / state / "numba"))
os.environ.setdefault("XDG_CACHE_HOME", str(REPO / ".cache" / state))

# scikit-learn leaves out its own check of array inputs without this
os.environ.setdefault("SCIPY_ARRAY_API", "1")


# no test asserts a time
settings.register_profile("dlnotes", deadline=None)
settings.load_profile("dlnotes")


def pytest_configure(config):
    config.addinivalue_line("markers", "kernel: also run uncompiled and with bounds checks")


def pytest_sessionfinish(session):
    "With DLNOTES_ALL_TESTS set, as on CI, a test that was skipped is a failure."
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DLNOTES_ALL_TESTS") and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and DLNOTES_ALL_TESTS is set", red=True)
        session.exitstatus = 1
