"""Settings that must stand before anything is imported, and no skips where all tests are wanted."""

import os
import re
from collections import Counter

from hypothesis import Phase, settings

from tools import own_caches

own_caches()

# scikit-learn leaves out its own check of array inputs without this
os.environ.setdefault("SCIPY_ARRAY_API", "1")


# no test asserts a time
settings.register_profile("dlnotes", deadline=None)
settings.register_profile("mutants", deadline=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("dlnotes")


def pytest_configure(config):
    config.addinivalue_line("markers", "kernel: also run uncompiled")


KINDS = {"torch is not installed": "parity test", "there is no Chromium": "page test"}


def counted(reasons):
    "What was skipped, as words: `2 parity tests (torch is not installed), 1 test (no fork here)`."
    named = Counter(
        re.sub(
            r"could not import .*No module named '(\w+).*",
            r"\1 is not installed",
            reason.removeprefix("Skipped: "),
        )
        for reason in reasons
    )
    return ", ".join(
        f"{n} {KINDS.get(why, 'test')}{'s' * (n > 1)} ({why})" for why, n in named.most_common()
    )


def pytest_terminal_summary(terminalreporter):
    "One line that says what was skipped, and why."
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_line(f"skipped: {counted(report.longrepr[2] for report in skipped)}")


def pytest_sessionfinish(session):
    "With DLNOTES_ALL_TESTS set, as on CI, a test that was skipped is a failure."
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # only the process that all others report to has one
    if os.environ.get("DLNOTES_ALL_TESTS") and reporter and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and DLNOTES_ALL_TESTS is set", red=True)
        session.exitstatus = 1
