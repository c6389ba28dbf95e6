"""A notebook as one markdown text, its code cells and stored outputs written as Quarto does."""

import base64
import itertools
import json
import re

import yaml

from .nbfilter import filter_notebook

OPTIONS = set(
    """code-fold code-summary echo eval fig-alt fig-cap include label output
    output-varies tbl-cap warning""".split()
)
DIRECTIVES = {"default_exp", "exports", "exporti", "export", "hide"}  # nbdev's, that we use
OPTION = re.compile(r"^#\|[ \t]*([\w-]+)(:?)[ \t]*(.*)$", re.MULTILINE)
# The representations of an output that can be shown, the preferred one first, as in Quarto.
MIMES = {
    "text/html": "html",
    "text/markdown": "md",
    "image/svg+xml": "svg",
    "image/png": "png",
    "text/plain": "text",
}
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
CELL = re.compile(r"^~~~ \{=cell\}\n(\d+)", re.MULTILINE)


def marker(number):
    """A block that never shows, by which what follows is known to be of cell `number`."""
    return f"\n\n~~~ {{=cell}}\n{number}\n~~~\n\n"


def fenced(text, attributes=""):
    """`text` as a code block whose fence is longer than any that it holds."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"\n{ticks}{attributes}\n{ANSI.sub('', text).rstrip()}\n{ticks}\n"


def framed(text, attributes):
    """`text` in a div."""
    return f"\n::: {{{attributes}}}\n{text}\n:::\n"


def attributes(options, *names):
    """Those of the options that are set, in pandoc's notation."""
    return " ".join(
        f"{name}={json.dumps(str(options[name]), ensure_ascii=False)}"
        for name in names
        if name in options
    )


def read_notebook(page, notebook):
    """The markdown of a notebook; problems go to `page`, images in outputs to its book."""
    for number, cell in enumerate(notebook["cells"], 1):
        cell["metadata"]["number"] = page.cell = number  # for errors, whatever the filter drops
        if cell["cell_type"] == "code":
            check_options(page, "".join(cell["source"]))
    text = ""
    for cell in filter_notebook(notebook)["cells"]:
        page.cell = cell["metadata"].get("number", page.cell)  # nbdev adds cells of its own
        is_code = cell["cell_type"] == "code"
        source = code_cell(page, cell) if is_code else "".join(cell["source"])
        text += marker(page.cell) + source + "\n"
    return text


def check_options(page, source):
    """Complain of options that nobody knows: nbdev's filter would drop some of them silently."""
    for name, colon, value in OPTION.findall(source):
        if name not in (OPTIONS if colon else DIRECTIVES):
            page.complain(f"unknown cell option {name}")
        elif colon and (not value or value[0] in "[{"):
            page.complain(f"cell option {name} is not one value")


def code_cell(page, cell):
    """The markdown of a code cell: its code and its outputs, as its options want them."""
    lines = "".join(cell["source"]).splitlines()
    head = list(itertools.takewhile(lambda line: line.startswith("#|"), lines))
    code = "\n".join(lines[len(head) :]).strip("\n")
    try:
        options = yaml.safe_load("\n".join(line[2:].strip() for line in head)) or {}
    except yaml.YAMLError as error:
        page.complain(f"cell options that are not YAML: {str(error).splitlines()[0]}")
        return ""
    if options.get("include") is False:
        return ""
    text, label = "", options.get("label", "")
    if label and label.lower() in page.cell_labels:
        page.complain(f"duplicate label {label}: Quarto makes all its letters small")
    page.cell_labels.add(label.lower())
    if options.get("echo", True) and code:
        text = fenced(
            code, f" {{.python .cell-code {attributes(options, 'code-fold', 'code-summary')}}}"
        )
    if options.get("output", True):
        text += outputs(page, cell["outputs"], options)
    if options.get("output") == "asis" or not text:
        return text
    at = f"#{label} " if label and not label.startswith(("fig-", "tbl-")) else ""
    return framed(text, f"{at}.cell")


def outputs(page, outputs, options):
    """A cell's outputs; what it displays is framed with the cell's label and caption."""
    label, asis, text = options.get("label", ""), options.get("output") == "asis", ""
    labelled = label.startswith(("fig-", "tbl-"))
    caption = options.get("tbl-cap" if label.startswith("tbl-") else "fig-cap", "")
    if labelled and (count := sum("data" in output for output in outputs)) != 1:
        page.complain(f"{label} has {count} outputs to show and not one")
    for index, output in enumerate(outputs, 1):
        name = output.get("name")
        if output["output_type"] == "error":
            page.complain(f"a stored error: {output['ename']}")
        elif name == "stdout" and asis:
            text += "".join(output["text"])
        elif name == "stdout" or name and options.get("warning", True):
            text += framed(fenced("".join(output["text"])), f".cell-output .{name}")
        elif not name:
            name = f"{label or page.cell}-{index}"
            shown = display(page, output["data"], name, options)
            shown = shown if asis else framed(shown, ".cell-output")
            if labelled or caption:
                shown = framed(f"{shown}\n\n{caption}", f"#{label}" if labelled else ".figure")
            text += shown
    return text


def display(page, data, name, options):
    """The best representation of an output, an image as a file called `name`."""
    mime = next((mime for mime in MIMES if mime in data), None)
    if not mime:
        page.complain(f"an output of a kind not known: {', '.join(data)}")
        return ""
    kind, text = MIMES[mime], "".join(data[mime])
    if kind in ("svg", "png"):
        path = f"{page.stem}_files/{name}.{kind}"
        page.book.put(path, text.encode() if kind == "svg" else base64.b64decode(text))
        return f"\n![]({page.relative(path)}){{{attributes(options, 'fig-alt')}}}\n"
    return f"\n{text}\n" if kind == "md" else fenced(text, " {=html}" if kind == "html" else "")
