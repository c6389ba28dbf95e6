"""Reads `_quarto.yml`: the pages of the book in order, and the few settings that matter here."""

import yaml

GROUPS = {"project", "book", "format", "html"}  # their settings are taken as one, see below
KNOWN = set(
    """appendices author bibliography chapters description lang number-sections output-dir
    title toc-depth type""".split()
)
# Those that only Quarto heeds, for its looks and its ways.
KNOWN |= set(
    """code-copy css date downloads execute favicon html-math-method ipynb-filters
    link-external-newwindow page-footer page-navigation preview render repo-actions repo-url
    respect-user-color-scheme search sidebar site-url theme toc""".split()
)


def flattened(settings):
    """The settings in one dict, those of groups in groups too."""
    flat = {}
    for name, value in settings.items():
        flat |= flattened(value) if name in GROUPS else {name: value}
    return flat


def listed(value):
    """`value` as a list: nothing, one thing or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def chapters(entries, part=""):
    """The pages that a list of chapters stands for, each with the title of its part."""
    for entry in listed(entries):
        if isinstance(entry, str) and entry.endswith((".ipynb", ".qmd")):
            yield entry, part
        elif isinstance(entry, dict) and set(entry) == {"part", "chapters"} and not part:
            yield from chapters(entry["chapters"], entry["part"])
        else:
            raise ValueError(f"a chapter that is not understood: {entry}")


def read_config(root):
    """What `_quarto.yml` at `root` says, as one dict; its `pages` are pairs of file and part."""
    config = flattened(yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8")))
    if unknown := sorted(set(config) - KNOWN):
        raise ValueError(f"unknown: {', '.join(unknown)}")
    if config.get("type") != "book" or config.get("number-sections") is False:
        raise ValueError("the project's type is not book, or its sections are not numbered")
    pages = [*chapters(config.get("chapters")), *chapters(config.get("appendices"), "Appendices")]
    if not pages or pages[0][0] != "index.qmd":
        raise ValueError("the first chapter is not index.qmd")
    if missing := [source for source, _ in pages if not (root / source).exists()]:
        raise ValueError(f"no such file: {', '.join(missing)}")
    books = {path.relative_to(root).as_posix() for path in root.glob("nbs/**/*.ipynb")}
    if extra := sorted(books - {source for source, _ in pages}):
        raise ValueError(f"a notebook in no chapter: {', '.join(extra)}")
    return config | {"pages": pages}
