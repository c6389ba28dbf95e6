"""The notebook filter of both renderers: nbdev's processors, links to the API, source labels.

Quarto runs this file (`ipynb-filters` in _quarto.yml) with a notebook's JSON on stdin and reads
JSON from stdout; the embedded renderer calls `filter_notebook`.
"""

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
API = "nbs/reference/api.ipynb"  # from the root of the book, for pages in any folder
# A backticked name, unless it stands in a code block, heading, formula, div's attributes or link.
NAMES = re.compile(
    r"""^[ ]*(?P<fence>`{3,}|~{3,}).*?^[ ]*(?P=fence)[`~]*[ ]*$ | ^\#.*?$ | ^:::.*?$
    | \$\$.*?\$\$ | ``.+?`` | !?\[(?:[^][]|\[[^][]*\])*\]\([^)]*\)
    | `(?P<name>[A-Za-z_][\w.]*)(?:\(\))?`(?!\{)""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
EXPORTS = re.compile(r"^#\|\s*exports\b", re.MULTILINE)
LABEL = re.compile(r"^#\|\s*label:", re.MULTILINE)


def public_names(index):
    """The names in nbdev's index file, in full and without their module, and each one's anchor."""
    names = {}
    for module, symbols in runpy.run_path(str(index))["d"]["syms"].items():
        if ".kernels." in module:  # not on the API page
            continue
        for full in symbols:
            name = full.removeprefix(module + ".")
            if not re.search(r"(^|\.)_|_(kernel|loop)$", name):
                names[name] = names[full] = name
    return names


def link_names(text, names):
    """`text` with each backticked public name linked to its place on the API page."""

    def link(match):
        anchor = names.get(match["name"])
        return f"[{match[0]}](/{API}#{anchor})" if anchor else match[0]

    return NAMES.sub(link, text)


def source_label(source):
    """The label of a cell that exports: `src-` and the first public name that it defines.

    In small letters, as Quarto makes them; a class is told from a function by its ending.
    """
    with contextlib.suppress(SyntaxError):
        for node in ast.parse(source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
                ending = "-class" if isinstance(node, ast.ClassDef) else ""
                return f"src-{node.name.lower()}{ending}"
    return None


def summary_lines(source):
    """`source` with each docstring cut to its first line; the API page has the rest."""
    lines = source.splitlines(keepends=True)
    with contextlib.suppress(SyntaxError):
        for node in ast.walk(ast.parse(source)):
            kinds = (ast.FunctionDef, ast.ClassDef)
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and "\n" in text:
                first, last = node.body[0].lineno - 1, node.body[0].end_lineno
                lines[first] = lines[first].rstrip() + '"""\n'
                lines[first + 1 : last] = [""] * (last - first - 1)
    return "".join(lines)


def as_markdown(output):
    """Have HTML displayed by way of markdown: for a bare one, Quarto fetches scripts from afar."""
    data = output.get("data", {})
    if html := "".join(data.pop("text/html", "")):
        data["text/markdown"] = f"\n```{{=html}}\n{html}\n```\n"


def filter_notebook(notebook):
    """The notebook (as a dict) that is rendered in place of the one that is stored."""
    from execnb.nbio import dict2nb, nb2str
    from nbdev.config import get_config
    from nbdev.processors import FilterDefaults

    for cell in notebook["cells"]:
        source = cell["source"] = "".join(cell["source"])
        exported = cell["cell_type"] == "code" and EXPORTS.search(source)  # nbdev drops this line
        if exported and not LABEL.search(source) and (label := source_label(source)):
            cell["source"] = f"#| label: {label}\n{source}"
        if exported:
            cell["source"] = summary_lines(cell["source"])
        for output in cell.get("outputs", []):
            as_markdown(output)
    nb = dict2nb(notebook)
    with contextlib.redirect_stdout(io.StringIO()):  # stdout belongs to the notebook
        FilterDefaults()(nb)
    index = get_config().lib_path / "_modidx.py"
    names = public_names(index) if index.exists() else {}
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = link_names(cell.source, names)
    return json.loads(nb2str(nb))


def main():
    """Filter stdin to stdout, with the project's own Python where this one has no nbdev."""
    if not importlib.util.find_spec("nbdev"):
        python = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if python.exists() and Path(sys.prefix) != ROOT / ".venv":
            sys.exit(subprocess.run([python, __file__], check=False).returncode)
        sys.stdin.read()  # or Quarto complains of a broken pipe and not of what is wrong
        sys.exit("render/nbfilter.py needs nbdev: run `make book`, or activate .venv")
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    json.dump(filter_notebook(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
