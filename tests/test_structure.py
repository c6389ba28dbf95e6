"""Which folder may import which, and that what is private to a module stays there."""

import ast
import json
import math
from pathlib import Path

import nbformat
import pytest

from dlnotes.core import execution
from tools import claims

REPO = Path(__file__).parent.parent
MODULES = {
    path.relative_to(REPO / "dlnotes").with_suffix("").as_posix().replace("/", "."): path
    for path in sorted((REPO / "dlnotes").rglob("*.py"))
    if not path.stem.startswith("_")
}
CHAPTERS = list(claims.chapters())


def imports(module):
    "Module of this package -> names that are imported from it."
    tree, found = ast.parse(MODULES[module].read_text(encoding="utf-8")), {}
    here = ["dlnotes", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            if source.startswith("dlnotes."):
                found.setdefault(source.removeprefix("dlnotes."), []).extend(
                    alias.name for alias in node.names
                )
    return found


def room(module):
    return module.partition(".")[0] if "." in module else "chapter"


MAY_IMPORT = {
    "core": {"core"},
    "kernels": {"kernels", "core"},
    "chapter": {"chapter", "kernels", "core"},
    "estimators": {"estimators", "chapter", "core"},
    "datasets": {"datasets", "chapter", "core"},
}


def test_every_module_has_a_place():
    assert {m for m in MODULES if room(m) == "chapter"} == set(CHAPTERS)
    assert {room(m) for m in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    for source in imports(module):
        assert room(source) in MAY_IMPORT[room(module)], source
        if room(module) == room(source) == "chapter":
            assert CHAPTERS.index(source) < CHAPTERS.index(module), source


def test_folders_have_an_order_without_circles():
    "Within core, kernels, estimators and datasets, too."
    done, waiting = set(), {m: set(imports(m)) for m in MODULES}
    while ready := {m for m, sources in waiting.items() if sources <= done}:
        done |= ready
        waiting = {m: sources for m, sources in waiting.items() if m not in ready}
    assert not waiting


@pytest.mark.parametrize("module", MODULES)
def test_kernels_are_kept_until_a_module_below_them_changes(module):
    below, new = set(), {module}
    while new := new - below:
        below |= new
        new = {source for m in new for source in imports(m)}
    assert execution._modules(MODULES[module]) == {MODULES[m] for m in below}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_private_name_of_another(module):
    for source, names in imports(module).items():
        assert not [name for name in names if name.startswith("_")], source


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) != "kernels"])
def test_functions_have_few_arguments(module):
    "Eight by position at most; constructors have those that PyTorch's have."
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            assert len(node.args.posonlyargs + node.args.args) <= 8, node.name


def test_pages_beside_the_chapters_are_few():
    pages = [m for m in MODULES if room(m) != "chapter"]
    assert len(pages) <= 20
    assert len({m.rpartition(".")[2] for m in MODULES}) == len(MODULES)


@pytest.mark.parametrize("notebook", sorted((REPO / "nbs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_committed_executed(notebook):
    "A cell that has an output when it is run has one here: at least every figure and every print."
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    for cell in cells:
        assert all(out.output_type != "error" for out in cell.outputs), cell.source
        draws = "#| label: fig-" in cell.source or "#| label: tbl-" in cell.source
        prints = any(line.startswith("print(") for line in cell.source.splitlines())
        assert cell.outputs or not (draws or prints), cell.source


def test_a_tuned_kernel_is_worth_its_page():
    "At least 1.3 times as fast as the chapter's, both directions together, in the stored result."
    stored = json.loads((REPO / "bench/results/kernels.json").read_text(encoding="utf-8"))
    gains = {}
    for row in stored["rows"]:
        formula = row["name"].partition(",")[0]
        gains.setdefault(formula, []).append(row["ms"]["jitted"] / row["ms"]["tuned"])
    assert all(math.prod(of) ** (1 / len(of)) >= 1.3 for of in gains.values()), gains
