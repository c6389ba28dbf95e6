"""Reads `_quarto.yml`: the pages of the book in order, and the few settings that matter here."""
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

# The settings that are understood.
KNOWN = {
    "": "bibliography book css format lang project",
    "project": "output-dir type",
    "book": "appendices author chapters description subtitle title",
    "format": "html",
    "html": "code-fold code-summary css number-sections toc-depth",
}
# Those that only Quarto heeds, for its looks and its ways.
PASSED_OVER = {
    "": "execute ipynb-filters",
    "project": "preview render",
    "book": "back-to-top-navigation cover-image cover-image-alt date downloads favicon page-footer "
            "page-navigation reader-mode repo-actions repo-branch repo-url search sharing sidebar "
            "site-url",
    "format": "epub",
    "html": "anchor-sections citations-hover code-copy code-overflow crossrefs-hover fig-align "
            "footnotes-hover highlight-style html-math-method lightbox link-external-newwindow "
            "mainfont smooth-scroll theme toc toc-title",
}


class ConfigError(Exception):
    """Something in `_quarto.yml` that this renderer cannot do."""


@dataclass
class Page:
    """A page of the book: a notebook or a .qmd, and what becomes of it on the way."""
    source: str                 # its path from the root
    part: str = ""              # the part that it belongs to: a title, or the part's own page
    appendix: bool = False
    number: str = ""            # "1", "A", or "" when it is not numbered
    title: list = field(default_factory=list)
    id: str = ""                # of its title
    blocks: list = field(default_factory=list)
    ids: set = field(default_factory=set)       # what can be linked to
    tex: dict = field(default_factory=dict)     # each formula, and the cell that it is in

    @property
    def href(self):
        return str(PurePosixPath(self.source).with_suffix(".html"))

    @property
    def is_home(self):
        return self.source == "index.qmd"

    @property
    def is_part(self):
        return self.source == self.part


@dataclass
class Config:
    """What `_quarto.yml` says."""
    root: Path
    output: Path
    book: dict
    html: dict
    pages: list
    css: list
    bibliography: list
    lang: str


def listed(value):
    """`value` as a list: nothing, one thing or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def section(data, name):
    """The settings called `name`, none of which may be unknown."""
    value = (data.get(name) if name else data) or {}
    value = value if isinstance(value, dict) else {}        # such as `html: default`
    known = KNOWN[name].split() + PASSED_OVER[name].split()
    if unknown := sorted(set(value) - set(known)):
        raise ConfigError(f"unknown in {name or 'it'}: {', '.join(unknown)}")
    return value


def chapters(entries, part="", appendix=False):
    """The pages that a list of chapters stands for, those of its parts included."""
    for entry in listed(entries):
        if isinstance(entry, str) and entry.endswith((".ipynb", ".qmd")):
            yield Page(entry, part, appendix)
        elif isinstance(entry, dict) and set(entry) == {"part", "chapters"} and not part:
            if entry["part"].endswith(".qmd"):
                yield Page(entry["part"], entry["part"])
            yield from chapters(entry["chapters"], entry["part"])
        else:
            raise ConfigError(f"a chapter that is not understood: {entry}")


def read_config(root):
    """The configuration of the book at `root`."""
    top = section(yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8")), "")
    project, book = section(top, "project"), section(top, "book")
    html = section(section(top, "format"), "html")
    if project.get("type") != "book":
        raise ConfigError("project.type is not book")
    if html.get("number-sections") is False:
        raise ConfigError("number-sections cannot be false")
    pages = [*chapters(book.get("chapters")), *chapters(book.get("appendices"), "Appendices", True)]
    if not pages or not pages[0].is_home:
        raise ConfigError("the first chapter is not index.qmd")
    for page in pages:
        if not (root / page.source).exists():
            raise ConfigError(f"no such file: {page.source}")
    return Config(root, root / project.get("output-dir", "_book"), book, html, pages,
                  listed(top.get("css")) + listed(html.get("css")),
                  listed(top.get("bibliography")), top.get("lang", "en"))
