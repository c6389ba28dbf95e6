"""The embedded renderer, on a small book of every construct that it knows and one of mistakes."""

import base64
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("pypandoc", reason="the embedded renderer needs pypandoc_binary")
pytest.importorskip("nbdev", reason="the notebook filter needs nbdev")

REPO = Path(__file__).parent.parent

from render.book import pandoc  # noqa: E402
from render.config import read_config  # noqa: E402
from render.nbfilter import (  # noqa: E402
    link_names,
    public_names,
    source_label,
    summary_lines,
)

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
PLAYER = "<my-player id='p1'><img alt='x' src='data:image/png;base64,AA'></my-player>"
SETTINGS = """[DEFAULT]
lib_name = toy
lib_path = toy
nbs_path = nbs
user = toy
skip_procs = FrontmatterProc,add_show_docs,exec_show_docs,add_fold,mv_exports,add_links
"""
INDEX = {
    "settings": {},
    "syms": {
        "toy.neuron": {
            "toy.neuron.step": ("", ""),
            "toy.neuron.Neuron": ("", ""),
            "toy.neuron.Neuron.fit": ("", ""),
            "toy.neuron._kernel": ("", ""),
        }
    },
}
BIB = """@article{rosenblatt1958, title={The perceptron}, author={Rosenblatt, Frank},
journal={Psychological Review}, year={1958}}
@book{same2009a, title={B}, author={Same, Ann}, publisher={P}, year={2009}}
@book{same2009b, title={A}, author={Same, Ann}, publisher={P}, year={2009}}
"""
PREFACE = """# Preface {.unnumbered}

See @sec-neuron, @fig-line and [the rule](nbs/neuron.ipynb#sec-rule).
"""
WORKS = "# References {.unnumbered}\n\n::: {#refs}\n:::\n"


def shows(**data):
    """An output that displays: `png=...` stands for image/png, and so on."""
    mimes = {
        "plain": "text/plain",
        "html": "text/html",
        "md": "text/markdown",
        "png": "image/png",
        "svg": "image/svg+xml",
    }
    data = {mimes[name]: value.splitlines(True) for name, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def prints(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text.splitlines(True)}


def fails(name):
    return {"output_type": "error", "ename": name, "evalue": "", "traceback": []}


def notebook(*cells):
    """A notebook of markdown cells (strings) and code cells (tuples of source and outputs)."""

    def cell(number, content):
        source, *outputs = content if isinstance(content, tuple) else (content,)
        base = {"id": f"c{number}", "metadata": {}, "source": source.splitlines(True)}
        if isinstance(content, str):
            return {"cell_type": "markdown", **base}
        return {"cell_type": "code", "execution_count": 1, "outputs": outputs, **base}

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps(
        {
            "cells": [cell(*item) for item in enumerate(cells)],
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"kernelspec": kernel},
        }
    )


def write_book(root, chapters, appendices=None):
    """Write a project whose chapters are given as {name: cells}, in one part."""
    listed = "".join(f"        - nbs/{name}.ipynb\n" for name in chapters)
    after = "".join(f"    - nbs/{name}.ipynb\n" for name in appendices or ())
    files = {
        "_quarto.yml": "project:\n  type: book\n  output-dir: _book\nbook:\n  title: A toy\n"
        "  author: Nobody\n  description: Tested.\n  chapters:\n"
        f"    - index.qmd\n    - part: One\n      chapters:\n{listed}"
        f"    - references.qmd\n  appendices:\n{after}"
        f"bibliography: references.bib\ncss: render/shared.css\n",
        "settings.ini": SETTINGS,
        "references.bib": BIB,
        "references.qmd": WORKS,
        "index.qmd": PREFACE,
        "toy/_modidx.py": f"d = {INDEX!r}\n",
        "toy/__init__.py": "",
        "render/shared.css": (REPO / "render/shared.css").read_text(),
        "render/fonts/STIXTwoMath-Regular.woff2": "",
        **{
            f"nbs/{name}.ipynb": notebook(*cells)
            for name, cells in {**chapters, **(appendices or {})}.items()
        },
    }
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content, encoding="utf-8")
    (root / "nbs/dot.png").write_bytes(base64.b64decode(PNG))


def render(root):
    """Run `python -m render` at `root`."""
    path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "render"],
        check=False,
        cwd=root,
        text=True,
        encoding="utf-8",
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
    )


NEURON = [
    "# Neuron {#sec-neuron}\n\nBy @rosenblatt1958; see [@same2009a, p. 3] and [@same2009b].",
    ("#| default_exp neuron",),
    ("#| hide\nimport secret",),
    (
        "## Rule {#sec-rule}\n\n`step` and `Neuron.fit()` but not `_kernel`. A note.[^1]\n\n"
        "[^1]: In the note.\n\n$$\nz = \\sum_i w_i x_i\n$$ {#eq-net}\n\n@eq-net, [-@eq-net], "
        "[eq. @eq-net], @sec-rule, @sec-neuron, [@fig-line; @tbl-and], @exr-and, @thm-stop, "
        "@sec-shapes, @eq-app, @tbl-run, [a file](dot.png)."
    ),
    ("#| exports\ndef step(z):\n    return z >= 0",),
    ("step(1)  # shown", shows(plain="array([1])")),
    (
        '#| label: fig-line\n#| fig-cap: "A *line* in $x$"\n#| fig-alt: "It rises"\nplot()',
        shows(svg="<svg xmlns='http://www.w3.org/2000/svg'/>", plain="<Figure>"),
    ),
    ('#| echo: false\n#| fig-alt: "the \\"two\\""\nplots()', shows(png=PNG), shows(png=PNG)),
    ('#| fig-cap: "Not numbered"\n#| fig-alt: "A dot"\ndot()', shows(png=PNG)),
    ('#| label: fig-moving\n#| fig-cap: "It moves"\nmove()', shows(html=PLAYER)),
    (
        "### Tables\n\n| a | b |\n|--:|---|\n| 1 | 2 |\n\n: The *AND* {#tbl-and}\n\n"
        "| plain | table |\n|---|---|\n| 3 | 4 |"
    ),
    (
        '#| label: tbl-run\n#| tbl-cap: "A run"\ndf',
        shows(html="<table><tr><td>7</td></tr></table>"),
    ),
    ('#| label: tbl-md\n#| tbl-cap: "Too"\ndf', shows(md="| q |\n|---|\n| 8 |")),
    ("#| code-fold: true\n#| code-summary: Look\nfolded()",),
    ("#| code-fold: show\nopened()",),
    ("#| include: false\nnot_included()", prints("nor this")),
    ("#| output: false\nno_output()", prints("withheld")),
    ("#| warning: false\nquiet()", prints("some stderr", "stderr"), prints("\x1b[31mred\x1b[0m")),
    ("#| output: asis\n#| echo: false\nprint()", prints("**strong** as @fig-line")),
    (
        "::: {.callout-note}\nPlain.\n:::\n\n"
        '::: {.callout-tip title="A *titled* tip"}\nBody.\n:::\n\n'
        '::: {.callout-warning collapse="true"}\n## Closed\n\nInside.\n:::\n\n'
        '::: {.callout-caution collapse="false"}\nOpen.\n:::'
    ),
    '::: {.callout-tip collapse="true" title="Solution of $x$"}\n',
    ("solve()", prints("solved")),
    "Done.\n:::\n",
    "::: {.panel-tabset}\n## Loops\n\nSlow.\n",
    ("loop()",),
    "## NumPy\n\nFast.\n:::",
    (
        "## Loss {.unnumbered}\n\n::: {#thm-stop}\n## Convergence\n\nIt stops.\n:::\n\n"
        "::: {#exr-and}\n## AND\n\nTry.\n:::\n\n"
        "::: {#def-m}\nA margin.\n:::\n\n## After\n\n"
        '![A dot](dot.png){#fig-dot fig-alt="one dot"}\n\nAnd ![inline](dot.png) here.\n\n'
        '::: {#fig-div}\n![](dot.png){fig-alt="in a div"}\n\nBy a div\n:::\n\n'
        "Term\n:   Meaning.\n\n```\n:::{.no} {{< code >}}\n```\n\n"
        "A [site](https://example.org) and [home](../index.qmd) and [api](reference/api.ipynb)."
    ),
]
SHAPES = ["# Shapes {#sec-shapes}\n\n$$x$$ {#eq-app}\n\n## Sub\n\n@fig-line @sec-neuron"]
API = [
    (
        "# API\n\n## `step` {#step}\n\n[source](/nbs/neuron.ipynb#src-step)\n\n"
        "## Neuron {#Neuron}\n\n### `Neuron.fit` {#Neuron.fit}\n\nText."
    )
]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("book")
    write_book(
        root,
        {"neuron": NEURON, "layer": ["# Layer\n\n$$y$$ {#eq-y}\n\n@eq-y"]},
        {"shapes": SHAPES, "reference/api": API},
    )
    done = render(root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (root / "_book/index.html").as_uri()
    assert "nbs/neuron.ipynb" in done.stdout
    return root / "_book"


def text_of(page):
    """A page's text as a reader sees it, runs of white space as one blank."""
    body = re.sub(r"(?s)<head>.*?</head>|<annotation.*?</annotation>", "", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="session")
def page(site):
    return (site / "nbs/neuron.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def text(page):
    return re.sub(r" (?=[,.):;])|(?<=\() ", "", text_of(page))


def test_numbers_and_references(page, text, site):
    for words in ("1 Neuron", "1.1 Rule", "1.1.1 Tables", "1.2 After"):
        assert words in text
    assert 'id="loss" class="level2 unnumbered"' in page
    assert (
        "Equation 1.1, 1.1, eq. 1.1, Section 1.1, Chapter 1, Figure 1.1, Table 1.1, "
        "Exercise 1.1, Theorem 1.1, Appendix A, Equation A.1, Table 1.2" in text
    )
    assert 'href="shapes.html#eq-app"' in page
    other = (site / "nbs/shapes.html").read_text(encoding="utf-8")
    assert "Appendix A — Shapes" in text_of(other) and "A.1 Sub" in text_of(other)
    assert "(A.1)" in other and 'href="neuron.html#fig-line"' in other
    assert "(2.1)" in (site / "nbs/layer.html").read_text(encoding="utf-8")


def test_home_page_and_navigation(page, site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert "Chapter\u00a01" in home and "Figure\u00a01.1" in home
    assert 'href="nbs/neuron.html#sec-rule"' in home
    for words in ("A toy", "Nobody", "Tested.", "Preface"):
        assert words in text_of(home)
    assert re.search(r'href="neuron.html" aria-current=page', page)
    assert re.search(r'href="../index.html" rel=prev', page)
    assert re.search(r'href="layer.html" rel=next', page)
    assert "<summary>One</summary>" in page and "<summary>Appendices</summary>" in page
    assert '<a href="#sec-rule"' in page and "Skip to content" in page


def test_figures(page, text, site):
    assert "Figure 1.1: A line in" in text and "Figure 1.2: It moves" in text
    assert "Figure 1.3: A dot" in text and "Figure 1.4: By a div" in text
    assert re.search(r'<figure id="fig-line".*?<em>line</em>', page, re.DOTALL)
    assert 'src="neuron_files/fig-line-1.svg" alt="It rises"' in page
    assert page.count('alt="the &quot;two&quot;"') == 2
    assert "<figcaption>Not numbered</figcaption>" in page
    assert PLAYER in page
    assert (site / "nbs/neuron_files/fig-line-1.svg").read_text().startswith("<svg")
    assert (site / "nbs/dot.png").exists()


def test_tables_and_formulas(page, text):
    assert "Table 1.1: The AND" in text and "Table 1.2: A run" in text and "Table 1.3: Too" in text
    assert "<caption>" not in page
    assert re.search(
        r'(?s)<span id="eq-net" class="equation">.*?<math display="block".*?\(1\.1\)', page
    )


def test_cell_options(page, text):
    for words in (
        "secret",
        "default_exp",
        "not_included",
        "nor this",
        "withheld",
        "some stderr",
        "plots()",
        "\x1b",
        "#|",
    ):
        assert words not in text
    assert re.search(r'<details class="fold"><summary>\s*Look\s*</summary>', page)
    assert re.search(r'<details class="fold" open><summary>\s*Code', page)
    assert "array([1])" in page and "red" in text
    assert "<strong>strong</strong> as <a" in page
    assert '<div id="src-step" class="cell">' in page


def test_callouts_and_tabs(page):
    callouts = re.findall(
        r'(?s)callout callout-(\w+)" role="note" aria-label="(\w+)">\s*'
        r"<(div|details|details open)\b[^>]*>(.*?)</div>",
        page,
    )
    assert [found[:3] for found in callouts] == [
        ("note", "Note", "div"),
        ("tip", "Tip", "div"),
        ("warning", "Warning", "details"),
        ("caution", "Caution", "details"),
        ("tip", "Tip", "details"),
    ]
    assert "A <em>titled</em> tip" in callouts[1][3] and "Closed" in callouts[2][3]
    assert 'aria-label="Caution">\n<details open>' in page
    solution = re.search(r"(?s)<details><summary>\s*Solution of <math.*?</details>", page)[0]
    assert "solve" in solution and "solved" in solution
    assert page.count('<details name="tabs-1"') == 2
    assert re.search(
        r'(?s)<details name="tabs-1" open><summary>\s*Loops.*?name="tabs-1"><summary>'
        r"\s*NumPy",
        page,
    )


def test_theorems_notes_and_lists(page, text):
    for words in (
        "Theorem 1.1 (Convergence) It stops.",
        "Exercise 1.1 (AND) Try.",
        "Definition 1.1 A margin.",
        "In the note.",
    ):
        assert words in text
    assert "<dt>Term</dt>" in page and "{{&lt; code &gt;}}" in page


def test_citations(page, text, site):
    assert "Rosenblatt (1958)" in text and "(Same 2009b, 3)" in text and "(Same 2009a)" in text
    assert 'href="../references.html#ref-rosenblatt1958"' in page
    works = (site / "references.html").read_text(encoding="utf-8")
    assert works.count('class="csl-entry"') == 3 and 'id="ref-same2009a"' in works


def test_links_to_the_api(page):
    assert '<a href="reference/api.html#step"><code>step</code></a>' in page
    assert '<a href="reference/api.html#Neuron.fit"><code>Neuron.fit()</code></a>' in page
    assert "<code>_kernel</code>" in page and "#_kernel" not in page


class Pointers(HTMLParser):
    """Collects the ids of a page, what it links to and what it loads."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.loads = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        url = attributes.get("href") or attributes.get("src")
        if url:
            (self.links if tag == "a" else self.loads).append(url)


def test_every_link_leads_somewhere(site):
    pages = {path: Pointers(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) == 6
    for path, found in pages.items():
        assert len(found.ids) == len(set(found.ids)), f"duplicate ids in {path}"
        assert not [url for url in found.loads if re.match(r"https?:|//", url)]
        for url in found.links + found.loads:
            if not re.match(r"[a-z]+:", url):
                name, _, anchor = url.partition("#")
                target = (path.parent / unquote(name)).resolve() if name else path
                assert target.exists(), f"{path}: {url}"
                assert not anchor or anchor in pages[target].ids, f"{path}: {url}"
    assert (site / "render/fonts/STIXTwoMath-Regular.woff2").exists()


def test_search_index(site):
    script = (site / "search.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("window.searchIndex = ").removesuffix(";"))
    found = {(title, url): text for _, url, title, text in index}
    assert "array([1])" in found["1.1 Rule", "nbs/neuron.html#sec-rule"]
    assert "def step" in found["1.1 Rule", "nbs/neuron.html#sec-rule"]
    assert ("B.2.1 Neuron.fit", "nbs/reference/api.html#Neuron.fit") in found


# What is wrong, the cells of a chapter that has it, and what is said of which cell.
MISTAKES = {
    "callout": (["# T", "::: {.callout-hint}\nx\n:::"], "cell 2: an unknown div: callout-hint"),
    "class": (["# T", "::: {.zebra}\nx\n:::"], "cell 2: an unknown div: zebra"),
    "shortcode": (["# T", "{{< video x.mp4 >}}"], "cell 2: a shortcode"),
    "unclosed": (["# T", "::: {.callout-tip}\nx", "y"], "cell 2: a ::: or <div> that is"),
    "footnote": (["# T", "x[^none]"], "cell 2: a footnote that is not defined"),
    "target": (["# T", "[x][none]"], "cell 2: a link whose target is not defined"),
    "directive": (["# T", ("#| hidee\nx",)], "cell 2: unknown cell option hidee"),
    "empty": (["# T", ("#| fig-alt:\nx",)], "cell 2: cell option fig-alt is not one value"),
    "leftover": (["# T", "x\n\n:::"], "cell 2: a ::: that opens or closes nothing"),
    "fence": (["# T", "```python\nx = 1", ("y = 2",), "z"], "cell 2: a code fence"),
    "reference": (["# T", ("1",), "see @fig-none"], "cell 3: @fig-none refers to nothing"),
    "label": (["# T", "$$x$$ {#eq-dup}", "$$x$$ {#eq-dup}"], "cell 3: duplicate label eq-dup"),
    "label2": (["# T", "x", "$$x$$ {#eq-dup}"], "cell 3: duplicate label eq-dup"),
    "cells": (
        ["# T", ("#| label: src-net\nx",), ("#| label: src-Net\ny",)],
        "cell 3: duplicate label src-Net: Quarto makes all its letters small",
    ),
    "stray": (["# T", "x {#eq-stray}"], "cell 2: a label that labels nothing: {#eq-stray}"),
    "citation": (["# T", "[@nobody1900]"], "cell 2: @nobody1900 is not in the bibliography"),
    "alt": (["# T", "![A caption](dot.png)"], "cell 2: an image without alt text"),
    "bare": (["# T", "![](dot.png)"], "cell 2: an image without alt text"),
    "plotalt": (["# T", ("plot()", shows(png=PNG))], "cell 2: an image without alt text"),
    "rawalt": (["# T", "<p><img src='dot.png'></p>"], "cell 2: an image without alt text"),
    "tex": (["# T", "x $\\nonsense{y}$"], "cell 2: TeX that cannot be set: \\nonsense{y}"),
    "display": (["# T", "$$\n\\nonsense{y}\n$$ {#eq-n}"], "cell 2: TeX that cannot be set"),
    "formula": (["# T", "$$\nx\n\ny\n$$"], "cell 2: a formula that is not closed"),
    "early": (["Text first.", "# T"], "the page does not begin with its title"),
    "titleless": (["Text only."], "the page does not begin with its title"),
    "titles": (["# T", "# U"], "cell 2: a second heading of the first level"),
    "error": (["# T", ("1 / 0", fails("ZeroDivisionError"))], "cell 2: a stored error: Zero"),
    "option": (["# T", ("#| fig-width: 3\nx",)], "cell 2: unknown cell option fig-width"),
    "yaml": (["# T", ('#| fig-cap: "x\nx',)], "cell 2: cell options that are not YAML"),
    "mime": (["# T", ("x", {**shows(), "data": {"video/mp4": ""}})], "cell 2: an output of a kind"),
    "two": (
        ["# T", ("#| label: fig-two\n#| fig-alt: x\nx", shows(png=PNG), shows(png=PNG))],
        "cell 2: fig-two has 2 outputs",
    ),
    "page": (["# T", "[x](nowhere.ipynb)"], "cell 2: no such file: nowhere.ipynb"),
    "anchor": (["# T", "[x](#nothing)"], "cell 2: a link to nbs/anchor.ipynb#nothing"),
    "file": (["# T", "![x](missing.png)"], "cell 2: no such file: missing.png"),
    "webimage": (["# T", "![x](https://example.org/x.png)"], "cell 2: an image that is fetched"),
    "webscript": (
        ["# T", ("x", shows(html="<script src='//example.org/x.js'></script>"))],
        "cell 2: HTML that fetches something",
    ),
    "run": (["# T", "```{python}\nx\n```"], "cell 2: a code block that is to be run"),
    "latex": (["# T", "\\begin{align}x\\end{align}"], "cell 2: raw tex"),
    "folds": (
        ["# T", '::: {.callout-tip collapse="true" title="As @exr-x"}\nx\n:::'],
        "cell 2: a link or reference in a title that folds",
    ),
    "captions": (["# T", ("#| fig-cap: [a, b]\nx",)], "cell 2: cell option fig-cap is not one"),
    "tabs": (["# T", "::: {.panel-tabset}\nx\n:::"], "cell 2: a tabset that does not begin"),
}


@pytest.fixture(scope="session")
def mistakes(tmp_path_factory):
    root = tmp_path_factory.mktemp("mistakes")
    write_book(root, {name: cells for name, (cells, _) in MISTAKES.items()})
    (root / "index.qmd").write_text("# Home {.unnumbered}\n\nSee @sec-lost.\n")
    done = render(root)
    assert done.returncode == 1 and not (root / "_book").exists()
    return done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_file_and_cell(mistakes, name):
    said = [line for line in mistakes.splitlines() if line.startswith(f"nbs/{name}.ipynb")]
    assert any(MISTAKES[name][1] in line for line in said), said


def test_mistakes_in_qmd_pages(mistakes):
    assert "index.qmd: @sec-lost refers to nothing" in mistakes


def test_a_failed_build_leaves_the_old_book(tmp_path):
    write_book(tmp_path, {"neuron": ["# One {#sec-neuron}\n\n## R {#sec-rule}\n\n$$x$$ {#eq-x}"]})
    (tmp_path / "index.qmd").write_text("# Home\n")
    assert render(tmp_path).returncode == 0
    (tmp_path / "index.qmd").write_text("# Home\n\n@fig-x")
    before = (tmp_path / "_book/index.html").read_bytes()
    assert render(tmp_path).returncode == 1
    assert (tmp_path / "_book/index.html").read_bytes() == before


def test_a_folder_that_is_no_book_is_not_replaced(tmp_path):
    write_book(tmp_path, {"one": ["# One"]})
    (tmp_path / "_book").mkdir()
    (tmp_path / "_book/mine.txt").write_text("mine")
    done = render(tmp_path)
    assert done.returncode == 1 and "not a book" in done.stderr
    assert (tmp_path / "_book/mine.txt").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("nbs/one.ipynb", "<<<<<<< HEAD", "nbs/one.ipynb: cannot be read: JSONDecodeError"),
        ("nbs/one.ipynb", "{}", "nbs/one.ipynb: cannot be read: KeyError 'cells'"),
        ("index.qmd", b"\xff\xfe", "index.qmd: cannot be read: UnicodeDecodeError"),
        ("_quarto.yml", "book: [", "_quarto.yml: while parsing"),
        ("references.bib", "@article{x, title = {", "references.bib: pandoc: "),
        ("nbs/two.ipynb", "{}", "_quarto.yml: a notebook in no chapter: nbs/two.ipynb"),
    ],
)
def test_files_that_are_broken_are_named(tmp_path, file, content, message):
    write_book(tmp_path, {"one": ["# One"]})
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = render(tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and message in done.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        (("book:", "book:\n  margin: 3"), "unknown: margin"),
        (("css:", "filters: [x.lua]\ncss:"), "unknown: filters"),
        (("    - references.qmd", "    - gone.qmd"), "no such file: gone.qmd"),
        (("    - references.qmd", "    - {file: references.qmd, text: R}"), "not understood"),
        (("type: book", "type: website"), "type is not book"),
    ],
)
def test_settings_that_are_not_understood(tmp_path, change, message):
    write_book(tmp_path, {"one": ["# One"]})
    settings = (tmp_path / "_quarto.yml").read_text()
    (tmp_path / "_quarto.yml").write_text(settings.replace(*change))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_config(tmp_path)


def test_names_are_linked_where_they_should_be(tmp_path):
    (tmp_path / "_modidx.py").write_text(f"d = {INDEX!r}")
    names = public_names(tmp_path / "_modidx.py")
    linked = "[`step`](/nbs/reference/api.ipynb#step)"
    assert link_names("use `step` (`toy.neuron.Neuron()`)", names) == (
        f"use {linked} ([`toy.neuron.Neuron()`](/nbs/reference/api.ipynb#Neuron))"
    )
    for text in (
        "# About `step`",
        "```\n`step`\n```",
        "[see `step`](x.ipynb)",
        "`` `step` ``",
        "$$`step`$$",
        "`step`{.python}",
        "`_kernel`",
        "`unknown`",
        '::: {title="`step`"}',
    ):
        assert link_names(text, names) == text
    assert link_names("```\n`step`\n```\n`step`", names) == f"```\n`step`\n```\n{linked}"


def test_bold_letters_are_upright():
    "As pandoc sets them up to 3.8; from 3.9 on they are in italics too."
    markup, warnings = pandoc(r"$\mathbf{x}$", "-f", "markdown", "-t", "html5", "--mathml")
    assert "<mi>\U0001d431</mi>" in markup and not warnings


def test_source_labels():
    assert source_label("@njit\ndef Step(z): pass") == "src-step"
    assert source_label("def _hidden(): pass\nclass Net: pass") == "src-net-class"
    assert source_label("x = 1") is None and source_label("%magic") is None


def test_an_appendix_beyond_z_is_told(tmp_path):
    write_book(tmp_path, {"one": ["# One"]}, {f"a{k}": [f"# A{k}"] for k in range(27)})
    done = render(tmp_path)
    assert done.returncode == 1
    assert "nbs/a26.ipynb, cell 1: an appendix for which no letter is left" in done.stderr


def test_a_page_shows_the_first_line_of_a_docstring():
    shown = summary_lines(
        '#| exports\nclass A:\n    r"""First.\n\n    - More.\n    """\n    x = """1\n2"""\n'
        '    def f(self):\n        "Short."\n        return 1\n'
    )
    assert shown == (
        '#| exports\nclass A:\n    r"""First."""\n    x = """1\n2"""\n'
        '    def f(self):\n        "Short."\n        return 1\n'
    )
    assert summary_lines("a multi-line\nthing that is no Python") == (
        "a multi-line\nthing that is no Python"
    )
