"""Makes the book: each page through pandoc, page.py between pandoc's reading and its writing."""

import html
import itertools
import json
import re
import shutil
import string
import subprocess
import tempfile
from pathlib import Path

import pypandoc

from .cells import CELL, read_notebook
from .config import listed
from .page import Page, el

HERE = Path(__file__).parent
WARNINGS = {"UnclosedDiv": "a ::: or <div> that is opened and not closed"}
# Quarto's markdown in pandoc's words: a callout's title="..." and a theorem's name="...", which are
# markdown, become a heading; a labelled equation becomes a span.
TITLE = re.compile(
    r"^(:::+ *\{(?=[^}]*(?:\.callout|#\w+-))[^}]*?) (?:title|name)="
    r'"((?:[^"\\]|\\.)*)"([^}\n]*\})',
    re.MULTILINE,
)
EQUATION = re.compile(r"(\$\$(?:(?!\$\$).)+\$\$) *(\{#eq-[^ }]+\})", re.DOTALL)
SECTION = re.compile(r'<section id="([^"]*)"[^>]*>\s*(?:<(h\d)[^>]*>(.*?)</\2>)?', re.DOTALL)
# What of HTML is not text: formulas, scripts, drawings and tags.
MARKUP = re.compile(r"<(math|script|style|svg)\b.*?</\1>|<[^>]*>", re.DOTALL)


def pandoc(data, *arguments):
    """Pandoc's output for `data`, and the warnings that it logged."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        done = subprocess.run(
            [pypandoc.get_pandoc_path(), *arguments, f"--log={log}"],
            check=False,
            input=data.encode(),
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"pandoc: {done.stderr.decode()}")
        entries = json.loads(log.read_text(encoding="utf-8"))
    return done.stdout.decode(), [entry for entry in entries if entry["verbosity"] == "WARNING"]


def document(blocks):
    """Pandoc's JSON for a document."""
    return json.dumps({"pandoc-api-version": [1, 23], "meta": {}, "blocks": blocks})


def text_of(markup):
    return " ".join(html.unescape(MARKUP.sub("", markup)).split())


class Book:
    """A book on its way from `_quarto.yml` to the folder `output`."""

    def __init__(self, root, config, output):
        self.root, self.config, self.output = root, config, output
        self.lang = config.get("lang", "en")
        self.problems = {}  # sentences, each once and in order
        self.labels = {}  # label: its page, and the kind and number that a reference reads
        self.links = []  # page, cell and content of each link and reference
        self.missing = set()  # keys that are cited and not in the bibliography
        self.references = None  # the page that lists the works cited
        self.numbers = itertools.count(1), iter(string.ascii_uppercase)  # chapters, appendices
        self.pages = [Page(self, source, part) for source, part in config["pages"]]
        self.paths = {path: page for page in self.pages for path in (page.source, page.href)}

    def build(self):
        """Write the book, and return what is wrong with it: one sentence each."""
        for page, blocks in zip(self.pages, self.cited(list(map(self.parse, self.pages)))):
            page.structure(blocks)
        for page, page.cell, link in self.links:
            page.finish(link)
        titles, _ = pandoc(
            document([el("Plain", page.title) for page in self.pages]),
            "-f",
            "json",
            "-t",
            "html5",
            "--mathml",
            "--wrap=none",
        )
        self.titles, index = titles.splitlines(), []
        for count, page in enumerate(self.pages, 1):
            markup = self.write(page)
            self.put(page.href, markup.encode())
            index += self.search_entries(page, markup)
            print(f"[{count}/{len(self.pages)}] {page.source}", flush=True)
        self.put("search.js", f"window.searchIndex = {json.dumps(index)};".encode())
        shutil.copytree(
            HERE,
            self.output / "render",
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.py", "__pycache__", "template.html"),
        )
        return self.problems

    def put(self, path, content):
        """Write a file of the book."""
        (self.output / path).parent.mkdir(parents=True, exist_ok=True)
        (self.output / path).write_bytes(content)

    def parse(self, page):
        """Pandoc's tree of a page."""
        path = self.root / page.source
        try:
            markdown = path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":
                markdown = read_notebook(page, json.loads(markdown))
        except (ValueError, KeyError, TypeError) as error:
            page.complain(f"cannot be read: {type(error).__name__} {error}")
            return []
        markdown = EQUATION.sub(r"[\1]\2", TITLE.sub(r"\1\3\n\n###### \2\n", markdown))
        tree, warnings = pandoc(markdown, "-f", "markdown", "-t", "json")
        for warning in warnings:
            if warning["type"] != "DuplicateIdentifier":  # the page complains, knowing the cell
                place = warning.get("openpos") or warning.get("pos") or {}
                before = "".join(markdown.splitlines(True)[: place.get("line", 0)])
                page.cell = int((CELL.findall(before) or ["0"])[-1])
                page.complain(WARNINGS.get(warning["type"], str(warning)))
        return json.loads(tree)["blocks"]

    def cited(self, pages):
        """The pages' trees with all citations, and the works cited; in one run, because years such
        as 2009a and the list of works depend on all pages."""
        files = listed(self.config.get("bibliography"))
        try:
            tree, warnings = pandoc(
                document([el("Div", ["", [], []], blocks) for blocks in pages]),
                "-f",
                "json",
                "-t",
                "json",
                "--citeproc",
                "-M",
                "link-citations",
                "-M",
                f"lang={self.lang}",
                *(f"--bibliography={self.root / file}" for file in files),
            )
        except RuntimeError as error:
            self.problems[f"{', '.join(files)}: {error}"] = None
            return pages
        self.missing = {
            warning.get("message", "").removeprefix("citation ").removesuffix(" not found")
            for warning in warnings
        }
        return [block["c"][1] for block in json.loads(tree)["blocks"][: len(pages)]]

    def write(self, page):
        """The page as HTML."""
        variables = (f"-V{name}={value}" for name, value in self.variables(page).items() if value)
        markup, warnings = pandoc(
            document(page.blocks),
            "-f",
            "json",
            "-t",
            "html5",
            "--mathml",
            "--wrap=none",
            "--section-divs",
            "--toc",
            f"--toc-depth={self.config.get('toc-depth', 3)}",
            f"--template={HERE / 'template.html'}",
            *variables,
        )
        for warning in warnings:
            tex = warning.get("contents", str(warning))
            page.cell = page.tex.get(tex, 0)
            page.complain(f"TeX that cannot be set: {tex}")
        return markup

    def variables(self, page):
        """What the template says around the page, in HTML."""

        def link(at, attribute):
            other = self.pages[at]
            return (
                f'<a href="{page.relative(other.href)}" {attribute}>'
                f"<span>{other.number}</span> {self.titles[at]}</a>"
            )

        here, chapters = self.pages.index(page), ""
        for part, places in itertools.groupby(
            range(len(self.pages)), key=lambda at: self.pages[at].part
        ):
            places = list(places)
            items = (f"<li>{link(at, 'aria-current=page' * (at == here))}</li>" for at in places)
            group = f"<ul>{''.join(items)}</ul>"
            if part:  # folded, unless the reader is in it or at the beginning
                state = " open" * (here == 0 or here in places)
                group = f"<details{state}><summary>{part}</summary>{group}</details>"
            chapters += group
        names = ("title", "author", "description")
        return {name: html.escape(self.config.get(name, "")) for name in names} | {
            "home": here == 0,
            "id": page.id,
            "lang": self.lang,
            "root": page.relative("."),
            "heading": self.titles[here],
            "pagetitle": text_of(self.titles[here]),
            "number": f"Appendix {page.number} —" if page.is_appendix else page.number,
            "chapters": chapters,
            "previous": link(here - 1, "rel=prev") if here else "",
            "next": link(here + 1, "rel=next") if page is not self.pages[-1] else "",
        }

    def search_entries(self, page, markup):
        """For each section of a page: the page's name, its address, its title and its text."""
        text = markup.partition("</h1>")[2].partition('<nav class="turn"')[0]
        name = text_of(re.search("<title>(.*?) – [^–]*</title>", markup)[1])
        before, *sections = SECTION.split(text)
        return [[name, page.href, "", text_of(before)]] + [
            [name, f"{page.href}#{id}", text_of(title or ""), text_of(text)]
            for id, title, text in zip(sections[::4], sections[2::4], sections[3::4])
        ]
