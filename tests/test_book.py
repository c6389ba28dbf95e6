"""What must not be published again: placeholders, and outputs that nobody reads."""

import re
from pathlib import Path

import nbformat
import pytest

REPO = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPO / "nbs").glob("**/*.ipynb"))
OPTION = re.compile(r"^#\| *([\w-]+): *(.*)$", re.MULTILINE)
PLACEHOLDER = re.compile(r"\b(?:TODO|FIXME|TBD|XXX+|lorem ipsum|placeholder)\b", re.IGNORECASE)
LONGEST = 60  # lines of an output


def options(cell):
    "A code cell's options, without their quotation marks."
    return {name: value.strip("\"'") for name, value in OPTION.findall(cell["source"])}


def wrong_alt(alt, captions=(), prose=""):
    "What is wrong with an alt text; empty if nothing is."
    if len(alt.split()) < 6 or not re.fullmatch(r"[A-Z0-9].*[.!?]", alt):
        return "is no sentence"
    if alt.rstrip(".") in {caption.rstrip(".") for caption in captions}:
        return "repeats a caption"
    unknown = [word for word in re.findall(r"\b[A-Z]{4,}\b", alt) if word not in prose]
    if PLACEHOLDER.search(alt) or unknown:
        return f"holds a placeholder: {' '.join(unknown)}"
    return ""


def lines(output):
    "How many lines of text an output shows; none where it is a picture or HTML."
    data = output.get("data", {})
    if any(kind.startswith(("image/", "text/html")) for kind in data):
        return 0
    text = output.get("text") or data.get("text/markdown") or data.get("text/plain") or ""
    return len(text.splitlines())


@pytest.mark.parametrize(
    "alt, wrong",
    [
        ("ALTFIG", "is no sentence"),
        ("A red line.", "is no sentence"),
        ("Two lines that rise from 0 to 1", "is no sentence"),
        ("Two lines, by epochs of training.", "repeats a caption"),
        ("Two lines rise, and the SKETCHED one falls.", "holds a placeholder: SKETCHED"),
        ("Two lines rise, TODO say which one falls.", "holds a placeholder"),
        ("Two lines rise, that of the LSTM falls.", ""),
    ],
)
def test_a_placeholder_is_told_from_an_alt_text(alt, wrong):
    said = wrong_alt(alt, ["Two lines, by epochs of training"], "An LSTM has gates.")
    assert said.startswith(wrong) if wrong else not said


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_alt_texts_are_sentences_of_their_own(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    said = [
        (number, options(cell)) for number, cell in enumerate(cells) if cell.cell_type == "code"
    ]
    captions = [o[key] for _, o in said for key in ("fig-cap", "tbl-cap") if key in o]
    wrong = [
        (number, o["fig-alt"], problem)
        for number, o in said
        if "fig-alt" in o and (problem := wrong_alt(o["fig-alt"], captions, prose))
    ]
    assert not wrong


def test_no_two_figures_have_the_same_alt_text():
    places = {}
    for notebook in NOTEBOOKS:
        for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
            if cell.cell_type == "code" and (alt := options(cell).get("fig-alt")):
                places.setdefault(alt, []).append((notebook.stem, number))
    assert not [there for there in places.values() if len(there) > 1]


def test_lines_are_counted_of_what_is_shown_as_text():
    assert lines({"output_type": "stream", "text": "1\n2\n3"}) == 3
    assert lines({"data": {"text/plain": "1\n2"}}) == 2
    assert lines({"data": {"text/plain": "<Figure>", "image/svg+xml": "\n" * 99}}) == 0


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_output_is_longer_than_a_reader_reads(notebook):
    long = []
    for number, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
        if cell.cell_type == "code" and "#| hide" not in cell.source:
            chosen = options(cell)
            shown = "false" not in (chosen.get("include"), chosen.get("output"))
            if shown and chosen.get("output") != "asis":  # the reference is written by a cell
                long += [(number, n) for out in cell.outputs if (n := lines(out)) > LONGEST]
    assert not long, "print less"
