"""Settings that must stand before anything is imported, and no skips where all tests are wanted."""
import hashlib
import os
from pathlib import Path

REPO = Path(__file__).parent.parent

# Numba's cache does not see that a kernel's callee in another file has changed, and would run the
# old code: each state of the package has a cache of its own.
if "NUMBA_CACHE_DIR" not in os.environ:
    sources = b"".join(p.read_bytes() for p in sorted((REPO / "dlnotes").glob("*.py")))
    state = hashlib.sha256(sources).hexdigest()[:12]
    os.environ["NUMBA_CACHE_DIR"] = str(REPO / ".cache" / f"numba-{state}")

# scikit-learn leaves out its own check of array inputs without this
os.environ.setdefault("SCIPY_ARRAY_API", "1")


def pytest_configure(config):
    config.addinivalue_line("markers", "kernel: also run uncompiled and with bounds checks")


def pytest_sessionfinish(session):
    "With DLNOTES_ALL_TESTS set, as on CI, a test that was skipped is a failure."
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DLNOTES_ALL_TESTS") and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and DLNOTES_ALL_TESTS is set", red=True)
        session.exitstatus = 1
