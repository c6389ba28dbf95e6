"""Notebooks, package and stored outputs in step; the norms of design that a machine can check."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from render.nbfilter import summary_lines

REPO = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPO / "nbs").rglob("*.ipynb"))
TIMES = re.compile(r" *-?[\d.,]+ *(?:µs|us|ms|s|x|times)\b")  # numbers that differ from run to run
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])%?")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    "A copy of what nbdev works on, exported and cleaned afresh."
    folder = tmp_path_factory.mktemp("twin")
    for name in ("nbs", "dlnotes"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "settings.ini", folder)
    for step in ("doclinks import nbdev_export", "clean import nbdev_clean"):
        code = f"import sys; sys.argv = ['']; from nbdev.{step} as step; step()"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
    return folder


def test_the_package_is_what_the_notebooks_export(twin):
    ours, fresh = (
        {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for path in (root / "dlnotes").rglob("*.py")
        }
        for root in (REPO, twin)
    )
    assert ours == fresh, "run nbdev_export"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean(notebook, twin):
    cleaned = twin / notebook.relative_to(REPO)
    assert notebook.read_bytes() == cleaned.read_bytes(), "run nbdev_clean"


def told(cell):
    """What a cell's outputs say in words: streams and plain text, without times and addresses.

    Nothing where the cell says `#| output-varies: true`: other machines give other outputs.
    """
    if "#| output-varies: true" in cell["source"]:
        return ""
    texts = []
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        kind = next((k for k in ("text/markdown", "text/plain") if k in data), None)
        if out["output_type"] == "stream" and out["name"] == "stdout":
            texts.append(out["text"])
        elif kind and not any(k.startswith(("image/", "text/html")) for k in data):
            texts.append(data[kind])
    return TIMES.sub("#", re.sub(r"0x[0-9a-f]+", "0x", "".join(texts)))


def unit(number):
    "The value of the last digit of a number as it is printed."
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def same(before, after):
    "Whether two texts have the same words, and numbers that differ in the last digit at most."
    if NUMBER.sub("#", before) != NUMBER.sub("#", after):
        return False
    return all(map(close, NUMBER.findall(before), NUMBER.findall(after)))


def close(a, b):
    "Whether two printed numbers are the same but for rounding; counts have to be the same."
    if a == b or not re.search("[.e%]", a) or (a[-1] == "%") != (b[-1] == "%"):
        return a == b
    a, b = (number.replace(",", "").rstrip("%") for number in (a, b))
    return abs(float(a) - float(b)) <= max(1.01 * min(unit(a), unit(b)), 1e-6 * abs(float(a)))


@pytest.mark.parametrize(
    "before, after, like",
    [
        ("loss 0.123, accuracy 97%", "loss 0.124, accuracy 97%", True),
        ("loss 0.123, accuracy 97%", "loss 0.125, accuracy 97%", False),
        ("accuracy 97%", "accuracy 98%", True),
        ("accuracy 97%", "accuracy 99%", False),
        ("97 of 100", "98 of 100", False),
        ("97%", "97.4%", False),
        ("loss 0.123", "lost 0.123", False),
        ("1.0 2.0", "1.0", False),
        ("conv1", "conv2", False),
        ("1234.56789012", "1234.56789999", True),
        ("1234.56789012", "1234.57", False),
        ("-1.5e-07", "-1.6e-07", True),
        ("-1.5e-07", "1.5e-07", False),
        ("2e-16", "3e-16", True),
        ("1,234.5", "1,234.6", True),
        ("1,234", "1,235", False),
        ("[1. 2.]", "[1. 3.]", False),
        ("x=3", "x=4", False),
        ("nan", "0.1", False),
    ],
)
def test_the_comparison_tells_words_from_last_digits(before, after, like):
    assert same(before, after) is like


def test_a_marked_cell_is_left_out_of_the_comparison():
    cell = {
        "source": "#| output-varies: true\nprint(1)",
        "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}],
    }
    assert told(cell) == "" and told({**cell, "source": "print(1)"}) == "1"


def shown(cell):
    "The kinds of pictures that a cell shows."
    return [
        sorted(k for k in out.get("data", {}) if k.startswith(("image/", "text/html")))
        for out in cell.get("outputs", [])
        if out["output_type"] != "stream"
    ]


def executed(notebook):
    client = NotebookClient(
        nbformat.read(notebook, as_version=4),
        timeout=300,
        resources={"metadata": {"path": notebook.parent}},
    )
    return client.execute()


@pytest.fixture(scope="module")
def fresh(request):
    "Notebook -> its execution under way, of those that are tested; two at a time."
    wanted = {
        item.callspec.params["notebook"]
        for item in request.session.items
        if getattr(item, "originalname", "").startswith("test_stored_outputs")
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield {notebook: pool.submit(executed, notebook) for notebook in sorted(wanted)}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_are_what_the_code_gives(notebook, fresh):
    stored, fresh = nbformat.read(notebook, as_version=4), fresh[notebook].result()
    for number, (before, after) in enumerate(zip(stored.cells, fresh.cells), 1):
        if not same(told(before), told(after)):
            assert told(before) == told(after), f"cell {number}: run make outputs"
        assert shown(before) == shown(after), f"cell {number}: run make outputs"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short_lines_fit_and_figures_are_described(notebook):
    sizes, columns = [], 100 if notebook.parent.name == "reference" else 79
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        source = summary_lines(cell.source)  # as the page shows it
        lines = [line for line in source.split("\n") if line and not line.startswith("#|")]
        assert all(len(line) <= columns for line in lines), cell.source
        assert "import *" not in cell.source
        if not re.search(r"^#\| (hide|export)$", cell.source, re.MULTILINE):
            sizes.append(len(lines))
        figure = any(k.startswith("image/") for out in cell.outputs for k in out.get("data", {}))
        assert not figure or "#| fig-alt:" in cell.source, cell.source
    sizes.sort()
    if notebook.parent.name == "nbs":  # other pages may show a whole set of kernels in one cell
        assert sizes[len(sizes) // 2] <= 5 and sizes[int(0.9 * (len(sizes) - 1))] <= 15
