"""`make claims`: failing assertions are named, environments are what their names say."""

import json
import os
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from tools import claims

DRAWS = """
import json, numpy as np
rng = np.random.default_rng(0)
assert np.random.default_rng(rng) is rng
print(json.dumps([rng.normal(3, 2, 50).tolist(), float(rng.standard_normal()),
                  rng.uniform(0, 1e-3, 50).tolist(), rng.random(5).tolist(),
                  rng.integers(9, size=5).tolist(), rng.spawn(1)[0].permutation(5).tolist()]))
"""


def draws(environment):
    variables = {**os.environ, **claims.variables(environment)}
    done = subprocess.run(
        [sys.executable, "-c", DRAWS],
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in variables.items() if value},
    )
    return json.loads(done.stdout)


def test_draws_are_disturbed_in_the_last_bit_and_reproducible():
    plain, first, again, second = map(draws, ("own", "disturbed-1", "disturbed-1", "disturbed-2"))
    assert first == again
    for i in (0, 2):
        a, b, c = np.array(plain[i]), np.array(first[i]), np.array(second[i])
        assert (a != b).mean() > 0.4 and (b != c).mean() > 0.4
        np.testing.assert_allclose(b, a, rtol=2.0**-22)
    assert abs(first[1] - plain[1]) <= 2.0**-22 * abs(plain[1])
    assert first[3:] == plain[3:]  # order and data drawn by number stay


def notebook(folder, *cells):
    path = folder / "page.ipynb"
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), path
    )
    return path


def test_failing_assertions_are_named_with_their_cell(tmp_path):
    path = notebook(tmp_path, "x = 1", "y = 2\nassert x == y, 'differ'", "print(x)", "1 / 0")
    result = claims.execute(path, claims.variables("own"), {})
    assert [f["cell"] for f in result["failures"]] == [1, 3]
    assert result["failures"][0]["line"] == "assert x == y, 'differ'"
    assert result["failures"][0]["error"] == "AssertionError: differ"
    assert result["failures"][1]["error"].startswith("ZeroDivisionError")


@pytest.mark.parametrize("name", ["own", "one-thread", "no-avx2", "disturbed-3"])
def test_environments_are_what_they_say(tmp_path, name):
    if claims.impossible(name):
        pytest.skip(f"this machine has no {name}: {claims.impossible(name)}")
    path, expected = notebook(tmp_path, "pass"), claims.ENVIRONMENTS[name].expected
    assert claims.execute(path, claims.variables(name), expected)["failures"] == []
    wrong = claims.execute(path, claims.variables("own"), {"threads": 77})["failures"]
    assert wrong[0]["cell"] == -1 and "77" in wrong[0]["line"]


def test_a_variable_set_from_outside_does_not_reach_the_others(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert claims.variables("own")["OPENBLAS_CORETYPE"] == ""
    assert claims.variables("one-thread")["NUMBA_CPU_NAME"] == ""


def test_the_stored_result_is_whole_and_nothing_failed_in_it():
    stored = json.loads(claims.RESULT.read_text(encoding="utf-8"))
    assert {*stored["environments"], *stored["left_out"]} == {*claims.ENVIRONMENTS}
    assert {*stored["failures"]} == {*claims.chapters()}
    assert not any(cells for chapter in stored["failures"].values() for cells in chapter.values())
