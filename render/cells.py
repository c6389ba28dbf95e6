"""A notebook as one markdown text, its code cells and stored outputs written as Quarto does."""
import base64
import json
import re

import yaml

from .config import listed
from .nbfilter import filter_notebook

OPTIONS = {"code-fold", "code-summary", "echo", "eval", "fig-alt", "fig-cap", "include", "label",
           "output", "tbl-cap", "warning"}
# The representations of an output that can be shown, the preferred one first, as in Quarto.
MIMES = {"text/html": "html", "text/markdown": "md", "image/svg+xml": "svg", "image/png": "png",
         "image/jpeg": "jpg", "text/plain": "text"}
OPTION = re.compile(r"#\|\s?(.*)")
FLOATS = ("fig-", "tbl-")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
REPR = re.compile(r"[<(\[].*[>)\]]")         # of what a plotting function returns: not shown
CELL = re.compile(r"^~~~ \{=cell\}\n(\d+)", re.MULTILINE)


def marker(number):
    """A block that never shows, by which what follows is known to be of cell `number`."""
    return f"\n\n~~~ {{=cell}}\n{number}\n~~~\n\n"


def fenced(text, attributes=""):
    """`text` as a code block whose fence is longer than any that it holds."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"\n{ticks}{attributes}\n{text.rstrip()}\n{ticks}\n"


def attributes(**values):
    """Attributes in pandoc's notation, those that have no value left out."""
    def one(name, value):
        value = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
        return f'{name.replace("_", "-")}="{value}"'
    return " ".join(one(*item) for item in values.items() if item[1] is not None)


def joined(value):
    """A notebook's text, which is stored as a string or as a list of lines."""
    return value if isinstance(value, str) else "".join(value)


def options_of(source):
    """A code cell's options (`#| key: value`) and its code without them."""
    lines = source.splitlines()
    count = next((i for i, line in enumerate(lines) if not OPTION.match(line)), len(lines))
    options = yaml.safe_load("\n".join(OPTION.match(line)[1] for line in lines[:count]))
    return options or {}, "\n".join(lines[count:]).strip("\n")


class Notebook:
    """A notebook in markdown, and the images of its outputs."""

    def __init__(self, path, complain):
        self.folder, self._complain, self.number = f"{path.stem}_files", complain, 0
        self.images = {}                         # path, from the notebook's folder: content
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for number, cell in enumerate(notebook["cells"], 1):
            cell["metadata"]["number"] = number  # as errors name it, whatever the filter drops
        notebook = filter_notebook(notebook)
        self.language = notebook["metadata"].get("kernelspec", {}).get("language", "python")
        self.markdown = "".join(map(self.cell, notebook["cells"]))

    def complain(self, message):
        self._complain(self.number, message)

    def cell(self, cell):
        self.number = cell["metadata"].get("number", self.number)    # or a cell of nbdev's own
        source = joined(cell["source"])
        if cell["cell_type"] == "code":
            source = self.code_cell(source, cell["outputs"])
        return marker(self.number) + source + "\n"

    def code_cell(self, source, outputs):
        try:
            options, code = options_of(source)
        except yaml.YAMLError as error:
            self.complain(f"cell options that are not YAML: {str(error).splitlines()[0]}")
            return ""
        for name in sorted(set(options) - OPTIONS):
            self.complain(f"unknown cell option {name}")
        if options.get("include") is False:
            return ""
        text, label = "", options.get("label", "")
        if options.get("echo", True) and code:
            fold = attributes(code_fold=options.get("code-fold"),
                              code_summary=options.get("code-summary"))
            text = fenced(code, f" {{.{self.language} .cell-code {fold}}}")
        if options.get("output", True):
            text += self.outputs(outputs, options, label)
        if options.get("output") == "asis" or not text:
            return text
        at = f"#{label} " if label and not label.startswith(FLOATS) else ""
        return f"\n::: {{{at}.cell}}\n{text}\n:::\n"

    def outputs(self, outputs, options, label):
        """A cell's outputs; a display is framed with its caption, and its label if it has one."""
        frame = f"{{#{label}}}" if label.startswith(FLOATS) else "figure"
        captions = iter(listed(options.get("tbl-cap" if "#tbl-" in frame else "fig-cap")))
        outputs = shown(outputs, options)
        if (displays := sum("data" in output for output in outputs)) != 1 and frame != "figure":
            self.complain(f"{label} has {displays} outputs to show and not one")
        text, asis = "", options.get("output") == "asis"
        for index, output in enumerate(outputs):
            if output["output_type"] == "error":
                self.complain(f"a stored error: {output['ename']}")
            elif output["output_type"] == "stream":
                text += stream(output, asis)
            else:
                alt = options.get("fig-alt")
                alt = dict(enumerate(alt)).get(index) if isinstance(alt, list) else alt
                new = self.display(output, f"{label or f'cell-{self.number}'}-{index + 1}", alt)
                new = new if asis else f"\n::: cell-output\n{new}\n:::\n"
                caption = next(captions, "")
                if caption or frame != "figure":
                    new = f"\n::: {frame}\n{new}\n\n{caption}\n:::\n"
                text += new
        return text

    def display(self, output, name, alt):
        """The best representation of an output."""
        data = {mime: joined(text) for mime, text in output["data"].items() if mime in MIMES}
        if "text/latex" in output["data"]:
            data.setdefault("text/markdown", joined(output["data"]["text/latex"]))
        mime = next((mime for mime in MIMES if mime in data), None)
        if not mime:
            self.complain(f"an output of a kind not known: {', '.join(output['data'])}")
            return ""
        kind, text = MIMES[mime], data[mime]
        if kind in ("svg", "png", "jpg"):
            file = f"{self.folder}/{name}.{kind}"
            self.images[file] = text.encode() if kind == "svg" else base64.b64decode(text)
            size = output["metadata"].get(mime, {})
            size = attributes(fig_alt=alt, width=size.get("width"), height=size.get("height"))
            return f"\n![]({file}){{{size}}}\n"
        if kind == "md":
            return f"\n{text}\n"
        return fenced(text, " {=html}") if kind == "html" else fenced(ANSI.sub("", text))


def stream(output, asis):
    """What was printed: as markdown if it is `asis` and not a warning, else as text."""
    text, name = ANSI.sub("", joined(output["text"])), output["name"]
    if asis and name == "stdout":
        return text
    return f"\n::: {{.cell-output .{name}}}\n{fenced(text)}\n:::\n"


def shown(outputs, options):
    """The outputs without warnings that are not wanted and what plotting functions return."""
    figure = any("image" in mime for output in outputs for mime in output.get("data", ()))

    def wanted(output):
        if output["output_type"] == "stream":
            return output["name"] == "stdout" or options.get("warning", True)
        if output["output_type"] == "execute_result" and list(output["data"]) == ["text/plain"]:
            text = joined(output["data"]["text/plain"])
            return not (figure and REPR.fullmatch(text) or text.startswith(("<mat", "[<mat")))
        return True
    return list(filter(wanted, outputs))
