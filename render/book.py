"""Makes the pages: notebooks and .qmd files through pandoc, in three passes over the book."""
import itertools
import json
import re
import shutil
import string
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pypandoc
import yaml

from .cells import CELL, Notebook
from .config import listed
from .document import Links, Structure, el, plain_text, relative

HERE = Path(__file__).parent
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# A callout's title="..." and a theorem's name="..." are markdown: write them as its heading.
TITLE = re.compile(r'^(:::+ *\{(?=[^}]*(?:\.callout|#\w+-))[^}]*?) (?:title|name)='
                   r'"((?:[^"\\]|\\.)*)"([^}\n]*\})', re.MULTILINE)
CSS_URL = re.compile(r"""url\(["']?([^"')]+)["']?\)""")


def pandoc(arguments, data):
    """Pandoc's output for `data`, and the warnings that it logged."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        command = [pypandoc.get_pandoc_path(), *arguments, f"--log={log}"]
        done = subprocess.run(command, check=False, input=data.encode(), capture_output=True)
        if done.returncode:
            raise RuntimeError(f"pandoc: {done.stderr.decode()}")
        entries = json.loads(log.read_text(encoding="utf-8"))
    return done.stdout.decode(), [entry for entry in entries if entry["verbosity"] == "WARNING"]


def told(warning):
    """One of pandoc's warnings in words."""
    what = {"UnclosedDiv": "a ::: that is opened and not closed",
            "CouldNotConvertTeXMath": "TeX that cannot be set"}
    about = str(warning.get("contents") or warning.get("message", "")).strip()
    return f"{what.get(warning['type'], warning['type'])}: {about}".strip(": ")


def cell_at(markdown, line):
    """The number of the cell that a line of a page's markdown belongs to."""
    before = "".join(markdown.splitlines(True)[:line])
    return int((CELL.findall(before) or ["0"])[-1])


def meta(value):
    """Python data as pandoc's metadata; a list of elements stands for text."""
    if isinstance(value, dict):
        return el("MetaMap", {name: meta(part) for name, part in value.items()})
    if isinstance(value, list) and value and isinstance(value[0], dict) and "t" in value[0]:
        return {"t": "MetaInlines", "c": value}
    if isinstance(value, list):
        return {"t": "MetaList", "c": list(map(meta, value))}
    return el("MetaBool" if isinstance(value, bool) else "MetaString", value)


def document(blocks, variables):
    """Pandoc's JSON for a document."""
    return json.dumps({"pandoc-api-version": [1, 23], "meta": meta(variables)["c"],
                       "blocks": blocks})


def flattened(blocks):
    """The blocks, those inside divs too."""
    for block in blocks:
        if block["t"] == "Div":
            yield from flattened(block["c"][1])
        else:
            yield block


def put(path, content):
    """Write `content`: text, bytes, or the path of a file to copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


class Book:
    """A book on its way from `_quarto.yml` to HTML; what is wrong with it is in `problems`."""

    def __init__(self, config):
        self.config, self.pages = config, config.pages
        self.problems = []
        self.labels = {}          # label: its page, and the words of a reference to it
        self.citations = []       # page, cell and content of each citation
        self.references = None    # the page that lists the works cited ...
        self.works = None         # ... and the div in which it does
        self.files = {}           # path in the book: the file to copy, or its content

    def complain(self, page, cell, message):
        where = f"{page.source}, cell {cell}" if cell else page.source
        if (problem := f"{where}: {message}") not in self.problems:
            self.problems.append(problem)

    def build(self, output):
        """Write the book into the folder `output`, unless there are problems."""
        with ThreadPoolExecutor(2) as pool:
            trees = list(pool.map(self.parse, self.pages, list(map(self.read, self.pages))))
            self.number_pages(trees)
            for page, tree in zip(self.pages, trees, strict=True):
                page.blocks = Structure(self, page).page_blocks(tree)
            self.cite()
            for page in self.pages:
                page.blocks = Links(self, page).walk(page.blocks)
            for page, html in zip(self.pages, pool.map(self.write, self.pages), strict=True):
                self.files[page.href] = html
                print(f"[{self.pages.index(page) + 1}/{len(self.pages)}] {page.source}", flush=True)
        self.files["search.js"] = f"window.searchIndex = {json.dumps(self.search_index())};"
        self.collect_assets()
        if not self.problems:
            for path, content in self.files.items():
                put(output / path, content)

    def read(self, page):
        """The page's markdown."""
        path, folder = self.config.root / page.source, Path(page.source).parent
        if path.suffix == ".ipynb":
            notebook = Notebook(path, lambda *problem: self.complain(page, *problem))
            for name, content in notebook.images.items():
                self.files[(folder / name).as_posix()] = content
            text = notebook.markdown
        else:
            text = path.read_text(encoding="utf-8")
            if front := FRONT_MATTER.match(text):
                data = yaml.safe_load(front[1]) or {}
                if set(data) != {"title"}:
                    self.complain(page, 0, f"front matter other than a title: {', '.join(data)}")
                text = f"# {data.get('title')}\n\n{text[front.end():]}"
        return TITLE.sub(r"\1\3\n\n###### \2\n", text)

    def parse(self, page, markdown):
        """The blocks of pandoc's tree of a page."""
        tree, warnings = pandoc(["-f", "markdown", "-t", "json"], markdown)
        for warning in warnings:
            place = warning.get("openpos") or warning.get("pos") or {}
            if warning["type"] != "DuplicateIdentifier":    # noted with the labels
                self.complain(page, cell_at(markdown, place.get("line", 0)), told(warning))
        return json.loads(tree)["blocks"]

    def number_pages(self, trees):
        """Number chapters 1, 2, ... and appendices A, B, ..."""
        chapters, appendices = itertools.count(1), iter(string.ascii_uppercase)
        for page, tree in zip(self.pages, trees, strict=True):
            classes = next((block["c"][1][1] for block in tree if block["t"] == "Header"), [])
            # {.unnumbered} is for .qmd pages only: Quarto ignores it in a notebook
            if not (page.is_part or "unnumbered" in classes and page.source.endswith(".qmd")):
                page.number = str(next(appendices if page.appendix else chapters))

    def cite(self):
        """Put the text into all citations, and the works cited onto the references page."""
        if not self.citations:
            return
        files = [f"--bibliography={self.config.root / file}" for file in self.config.bibliography]
        cites = [el("Para", [el("Cite", *content)]) for _, _, content in self.citations]
        tree, warnings = pandoc(["-f", "json", "-t", "json", "--citeproc", *files], document(
            cites, {"link-citations": True, "lang": self.config.lang}))
        blocks = json.loads(tree)["blocks"]
        cites, works = blocks[:len(cites)], blocks[len(cites):]
        missing = {warning.get("message") for warning in warnings}
        for (page, cell, content), cite in zip(self.citations, cites, strict=True):
            content[1] = cite["c"][0]["c"][1]
            for key in (citation["citationId"] for citation in content[0]):
                if f"citation {key} not found" in missing:
                    self.complain(page, cell, f"@{key} is not in the bibliography")
                elif not self.references:
                    self.complain(page, cell, f"@{key}, but no page has a ::: {{#refs}}")
        if self.references and works:
            self.works["c"] = works[0]["c"]
            self.references.ids.update(work["c"][0][0] for work in self.works["c"][1])

    def write(self, page):
        """The page as HTML."""
        html, warnings = pandoc(
            ["-f", "json", "-t", "html5", "--mathml", "--wrap=none", "--section-divs", "--toc",
             f"--toc-depth={self.config.html.get('toc-depth', 3)}",
             f"--template={HERE / 'template.html'}"], document(page.blocks, self.variables(page)))
        for warning in warnings:
            cell = page.tex.get(warning["contents"], 0) if "TeX" in warning["type"] else 0
            self.complain(page, cell, told(warning))
        return html

    def variables(self, page):
        """What the template says around the page."""
        def link(other):
            return {"title": other.title or "?", "number": other.number,
                    "href": relative(page, other.href), "current": other is page}

        groups = []
        for part, pages in itertools.groupby(self.pages, key=lambda other: other.part):
            pages = list(pages)
            opening = link(pages.pop(0)) if pages[0].is_part else ""
            groups.append({"part": part, "opening": opening, "pages": list(map(link, pages))})
        index = self.pages.index(page)
        names = ("title", "subtitle", "description")
        book = {name: self.config.book.get(name, "") for name in names}
        number = f"Appendix {page.number} —" if page.appendix else page.number
        title = f"{number} {plain_text(page.title)} – {book['title']}".strip()
        return {
            "lang": self.config.lang, "book": book, "home": page.is_home, "groups": groups,
            "author": ", ".join(map(str, listed(self.config.book.get("author")))),
            "pagetitle": book["title"] if page.is_home else title, "title": page.title or "?",
            "title-id": page.id, "number": number, "root": relative(page, ".") + "/",
            "css": [relative(page, path) for path in [*self.config.css, "render/style.css"]],
            "previous": link(self.pages[index - 1]) if index else "",
            "next": link(self.pages[index + 1]) if index + 1 < len(self.pages) else ""}

    def search_index(self):
        """For every section of the book: its page, its address, its title and its text."""
        index = []
        for page in self.pages:
            name = f"{page.number} {plain_text(page.title)}".strip()
            index.append([name, page.href, "", ""])
            for block in flattened(page.blocks):
                if block["t"] == "Header":
                    address = f"{page.href}#{block['c'][1][0]}"
                    index.append([name, address, plain_text(block["c"][2]).strip(), ""])
                else:
                    index[-1][3] += plain_text(block)
        return [[*entry[:3], " ".join(entry[3].split())] for entry in index]

    def collect_assets(self):
        """The style sheets with what they refer to, and the script."""
        for name in ("style.css", "script.js"):
            self.files[f"render/{name}"] = HERE / name
        for sheet in self.config.css:
            path = self.config.root / sheet
            self.files[sheet] = path
            for url in CSS_URL.findall(path.read_text(encoding="utf-8")):
                if not url.startswith("data:"):
                    self.files[(Path(sheet).parent / url).as_posix()] = path.parent / url
