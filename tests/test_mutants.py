"""`make mutants`: faults are where they should be, and the checks' answers are told apart."""

import ast
import json

from tools import mutants

TEXT = """
def plain(x):
    return x + 1


@compiled()
def kernel(x, y):
    "Adds 1 + 1."
    for i in range(x.size):
        if x[i] < 0:
            raise ValueError(f"{x[i] - 1}")
        y[i] = -x[i] * 2 + max(x[i], 3)


def layer_backward(grad):
    return (grad * 0.5,
            grad)
"""


def test_faults_are_in_kernels_and_gradients_only():
    faults = mutants.candidates("page", TEXT)
    changed = {(fault.old, fault.new) for fault in faults}
    assert {
        ("x[i] < 0", "x[i] <= 0"),
        ("-x[i]", "x[i]"),
        ("2", "4"),
        ("0", "1"),
        ("x[i]", "x[i + 1]"),
        ("-x[i] * 2 + max(x[i], 3)", "(-x[i] * 2 - max(x[i], 3))"),
        ("y[i]", "y[i - 1]"),
        ("max(x[i], 3)", "min(x[i], 3)"),
        ("grad * 0.5", "(grad / 0.5)"),
    } <= changed
    assert not any("x + 1" in f.old or "1 + 1" in f.old or "x[i] - 1" in f.old for f in faults)
    for fault in faults:
        assert TEXT[fault.start : fault.end] == fault.old
        ast.parse(TEXT[: fault.start] + fault.new + TEXT[fault.end :])


def test_the_choice_is_seeded_and_spread():
    first = mutants.chosen(60, 0, None)
    assert first == mutants.chosen(60, 0, None) != mutants.chosen(60, 1, None)
    modules = [fault.module for fault in first]
    assert max(map(modules.count, modules)) <= 3
    assert {f.module for f in mutants.chosen(5, 0, "pooling")} == {"pooling"}


def test_reasons_belong_to_lines_that_exist():
    for where, _ in mutants.EQUIVALENT:
        module, _, line = where.partition(": ")
        text = (mutants.REPO / mutants.places(module)[0]).read_text(encoding="utf-8")
        assert line in map(str.strip, text.splitlines()), where


def test_a_fault_is_planted_in_module_and_notebook(tmp_path):
    (fault,) = mutants.chosen(1, 0, "pooling")
    places = mutants.places(fault.module)
    for path in places:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((mutants.REPO / path).read_bytes())
    before = (mutants.REPO / places[1]).read_text(encoding="utf-8")
    mutants.planted(fault, tmp_path)
    module = (tmp_path / places[0]).read_text(encoding="utf-8")
    book = json.loads((tmp_path / places[1]).read_text(encoding="utf-8"))
    assert module[fault.start :].startswith(fault.new)
    old = ["".join(cell["source"]) for cell in json.loads(before)["cells"]]
    new = ["".join(cell["source"]) for cell in book["cells"]]
    ((a, b),) = [(a, b) for a, b in zip(old, new) if a != b]
    assert b.partition("\n")[2] in module
    assert len(b) - len(a) == len(fault.new) - len(fault.old)


def test_the_stored_result_is_good_enough():
    "Nine of ten faults were found, and whatever survived has a reason that still stands."
    result = json.loads(mutants.RESULT.read_text(encoding="utf-8"))
    assert result["planted"] >= 200 and result["found"] >= 0.9 * result["planted"]
    assert result["planted"] - result["found"] == len(result["survivors"])
    for survivor in result["survivors"]:
        module, change = survivor["fault"].split(": ", 1)
        key = f"{module}: {survivor['code']}", change
        assert survivor["reason"] == mutants.EQUIVALENT[key]
