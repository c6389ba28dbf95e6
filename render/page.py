"""Turns a page of Quarto's constructs, as pandoc's tree, into one that pandoc can write."""

import posixpath
import re
from collections import Counter
from urllib.parse import unquote

FLOATS = {"fig": "Figure", "tbl": "Table"}
THEOREMS = {
    "thm": "Theorem",
    "lem": "Lemma",
    "cor": "Corollary",
    "prp": "Proposition",
    "cnj": "Conjecture",
    "def": "Definition",
    "exm": "Example",
    "exr": "Exercise",
}
KINDS = {"sec": "Section", "eq": "Equation", **FLOATS, **THEOREMS}
CALLOUTS = {
    f"callout-{name.lower()}": name for name in ("Note", "Tip", "Warning", "Important", "Caution")
}
CLASSES = {
    "cell",
    "cell-output",
    "csl-bib-body",
    "csl-entry",
    "figure",
    "hanging-indent",
    "panel-tabset",
    "photo",
    "references",
    "stderr",
    "stdout",
    *CALLOUTS,
}
# Signs that are left in the text where something was not understood.
LEFT_OVER = {
    ":::": "a ::: that opens or closes nothing",
    "{{<": "a shortcode",
    "```": "a code fence that is not closed",
    "$$": "a formula that is not closed",
    "{#": "a label that labels nothing",
    "[^": "a footnote that is not defined",
    "][": "a link whose target is not defined",
}
WRONG_HTML = {  # what is said of HTML in which the expression is found
    "HTML that fetches something from the web": (
        r"""(?i)<(?!a\b)\w[^>]*\b(src|href|data|poster)\s*=\s*["']?(https?:)?//"""
        r"""|url\(\s*["']?(https?:)?//"""
    ),
    "an image without alt text": r"(?i)<img\b(?![^>]*\balt\s*=)",
}
IDS = re.compile(r"""<\w[^>]*\bid\s*=\s*["']([^"']+)""")


def el(kind, *content):
    """An element of pandoc's tree."""
    return {"t": kind, "c": content[0] if len(content) == 1 else list(content)}


def div(blocks, *classes, id="", pairs=()):
    return el("Div", [id, list(classes), list(pairs)], blocks)


def words(text, *classes):
    """Inlines for a text that is not markdown."""
    text = el("Str", text)
    return [el("Span", ["", list(classes), []], [text])] if classes else [text]


def details(summary, blocks, attributes):
    """Blocks that are folded behind a summary."""
    return [
        el("RawBlock", "html", f"<details{attributes}><summary>"),
        el("Plain", summary),
        el("RawBlock", "html", "</summary>"),
        *blocks,
        el("RawBlock", "html", "</details>"),
    ]


def take_heading(blocks):
    """The words of the heading that the blocks may begin with, which is taken off."""
    return blocks.pop(0)["c"][2] if blocks and blocks[0]["t"] == "Header" else []


def is_label(key):
    """Whether `@key` refers to something numbered, and is not a citation."""
    kind, dash, _ = key.partition("-")
    return bool(dash) and kind.lower() in KINDS


class Page:
    """A page of the book. What depends on the labels of other pages is put off until all have been
    walked."""

    def __init__(self, book, source, part):
        self.book, self.source, self.part = book, source, part
        self.stem, self.is_appendix = posixpath.splitext(source)[0], part == "Appendices"
        self.href = f"{self.stem}.html"
        self.number, self.title, self.id, self.blocks = "", words(source), "", []
        self.cell = 0  # the number of the cell that is read or walked
        self.ids, self.tex = set(), {}  # what can be linked to; each formula, and its cell
        self.cell_labels = set()  # in small letters
        self.sections, self.counts = [0] * 7, Counter()

    def complain(self, message):
        where = f"{self.source}, cell {self.cell}" if self.cell else self.source
        self.book.problems[f"{where}: {message}"] = None

    def relative(self, path):
        """`path`, which is from the root of the book, as seen from the page."""
        return posixpath.relpath(path, posixpath.dirname(self.source) or ".")

    def from_root(self, url):
        """The path from the root of the book of what `url` is from the page."""
        here = "" if url.startswith("/") else posixpath.dirname(self.source)
        return posixpath.normpath(posixpath.join(here, unquote(url).lstrip("/")))

    def asset(self, url):
        """Have the file `url` copied into the book; it is seen from the page as it was."""
        path = self.from_root(url)
        if (self.book.root / path).is_file() and not path.startswith(".."):
            self.book.put(path, (self.book.root / path).read_bytes())
        elif not (self.book.output / path).exists():  # an image of an output is there
            self.complain(f"no such file: {url}")
        return url

    def structure(self, blocks):
        """Take the title off, number the page, and walk the rest."""
        self.cell = 0
        while blocks and blocks[0]["t"] == "RawBlock" and not self.walk(blocks[:1]):
            blocks.pop(0)  # the number of the cell
        if not blocks or blocks[0]["t"] != "Header" or blocks[0]["c"][0] != 1:
            self.complain("the page does not begin with its title, a heading of the first level")
            return
        _, (self.id, classes, _), inlines = blocks.pop(0)["c"]
        # {.unnumbered} is for .qmd pages only: Quarto ignores it in a notebook
        if not ("unnumbered" in classes and self.source.endswith(".qmd")):
            if (number := next(self.book.numbers[self.is_appendix], None)) is None:
                self.complain("an appendix for which no letter is left")
            self.number = str(number)
        self.title = self.walk(inlines)
        kind = "Appendix" if self.is_appendix else "Chapter"
        self.note(self.id, *([kind, words(self.number)] if self.number else ["", self.title]))
        self.blocks = self.walk(blocks)

    def walk(self, value):
        """`value` with each element in it replaced by the list that its `on_...` method returns."""
        if isinstance(value, dict):
            return {key: self.walk(part) for key, part in value.items()}
        if not isinstance(value, list):
            return value
        result = []
        for item in value:
            method = isinstance(item, dict) and getattr(self, f"on_{item.get('t')}", None)
            new = method(item["c"]) if method else None
            result += [self.walk(item)] if new is None else new
        return result

    def note(self, id, kind="", number=()):
        """Note that the page has a place `id`, to which a reference reads `kind number`."""
        if id and (id in self.ids or id in self.book.labels):
            self.complain(f"duplicate label {id}")
        self.ids.add(id)
        if number and is_label(id):
            self.book.labels[id] = self, kind, number

    def count(self, id):
        """The number of the next figure, table, equation or theorem, whose label is `id`."""
        kind = id.partition("-")[0]
        self.counts[kind] += 1
        number = f"{self.number}.{self.counts[kind]}".lstrip(".")
        self.note(id, KINDS[kind], words(number))
        return number

    def on_Header(self, content):
        level, (id, classes, pairs), inlines = content
        inlines = self.walk(inlines)
        if level == 1:
            self.complain("a second heading of the first level")
        if not self.number or "unnumbered" in classes:
            self.note(id, "", inlines)
        else:
            self.sections[level:] = [self.sections[level] + 1] + [0] * (6 - level)
            number = ".".join([self.number, *map(str, self.sections[2 : level + 1])])
            self.note(id, "Section", words(number))
            inlines = [*words(number, "section-number"), el("Space"), *inlines]
        return [el("Header", level, [id, classes, pairs], inlines)]

    def on_Div(self, content):
        (id, classes, pairs), blocks = content
        kind, pairs = id.partition("-")[0], dict(pairs)
        callout = next((name for name in classes if name in CALLOUTS), None)
        if unknown := set(classes) - CLASSES | set(pairs) - {"collapse", "entry-spacing"}:
            self.complain(f"an unknown div: {' '.join(sorted(unknown))}")
        if kind in THEOREMS:
            return self.theorem(id, THEOREMS[kind], blocks)
        if kind in FLOATS or "figure" in classes:
            caption = blocks.pop()["c"] if blocks and blocks[-1]["t"] == "Para" else []
            return self.float(id, caption, self.walk(blocks))
        self.note(id)
        if id == "refs":
            self.book.references = self
        if callout:
            return self.callout(id, callout, pairs.get("collapse"), blocks)
        return self.tabset(blocks) if "panel-tabset" in classes else None

    def callout(self, id, kind, collapse, blocks):
        title, body = take_heading(blocks) or words(CALLOUTS[kind]), self.walk(blocks)
        if collapse is None:
            body = [div([el("Plain", self.walk(title))], "callout-title"), *body]
        else:
            body = details(self.pressed(title), body, " open" * (collapse == "false"))
        pairs = [["role", "note"], ["aria-label", CALLOUTS[kind]]]  # not by colour alone
        return [div(body, "callout", kind, id=id, pairs=pairs)]

    def tabset(self, blocks):
        """Tabs are details of one name, of which a browser opens one at a time."""
        self.counts["tabset"] += 1
        name, tabs, level = f' name="tabs-{self.counts["tabset"]}"', [], None
        for block in blocks:
            if block["t"] == "Header" and level in (None, block["c"][0]):
                level = block["c"][0]
                tabs.append((self.pressed(block["c"][2]), div([]), name + " open" * (not tabs)))
            elif tabs:
                tabs[-1][1]["c"][1] += self.walk([block])
            elif self.walk([block]):
                self.complain("a tabset that does not begin with a heading")
        blocks = [block for title, body, more in tabs for block in details(title, [body], more)]
        return [div(blocks, "tabset")]

    def pressed(self, title):
        """A title that is pressed: it cannot hold what is to be pressed itself."""
        if any(inline["t"] in ("Cite", "Link") for inline in title):
            self.complain("a link or reference in a title that folds")
        return self.walk(title)

    def theorem(self, id, kind, blocks):
        """A theorem or exercise, whose first paragraph begins with its name, number and title."""
        name = words(f"{kind}\u00a0{self.count(id)}")
        if title := take_heading(blocks):
            name += [*words(" ("), *self.walk(title), *words(")")]
        blocks = self.walk(blocks)
        first = blocks.pop(0)["c"] if blocks and blocks[0]["t"] == "Para" else []
        first = el("Para", [el("Strong", name), el("Space"), *first])
        return [div([first, *blocks], "theorem", id=id)]

    def float(self, id, caption, blocks):
        """A figure or table with its caption, numbered if it has a label."""
        kind, caption = id.partition("-")[0], self.walk(caption)
        if kind in FLOATS:
            number = f"{FLOATS[kind]}\u00a0{self.count(id)}" + ":" * bool(caption)
            caption = [*words(number, "float-number"), el("Space"), *caption]
        else:
            self.note(id)
        return [el("Figure", [id, [kind], []], [None, [el("Plain", caption)]], blocks)]

    def on_Figure(self, content):
        (id, _, _), (_, caption), blocks = content
        for image in blocks[0]["c"]:
            if image["t"] == "Image":
                image["c"][1] = []  # pandoc repeats the caption there: it is no alt text
        return self.float(id, caption[0]["c"] if caption else [], self.walk(blocks))

    def on_Table(self, content):
        (id, classes, _), (_, caption), *rest = content
        table = div([el("Table", ["", classes, []], [None, []], *self.walk(rest))], "scroll")
        return self.float(id, caption[0]["c"], [table]) if caption else [table]

    def on_CodeBlock(self, content):
        (id, classes, pairs), code = content
        if unknown := dict(pairs).keys() - {"code-fold", "code-summary"}:
            self.complain(f"unknown attributes of a code block: {' '.join(sorted(unknown))}")
        if "{=cell}" in code:
            self.complain(LEFT_OVER["```"])
        block, pairs = el("CodeBlock", [id, classes, []], code), dict(pairs)
        if (fold := pairs.get("code-fold", "").lower()) not in ("true", "show"):
            return [block]
        summary = words(pairs.get("code-summary", "Code"))
        return details(summary, [block], ' class="fold"' + " open" * (fold == "show"))

    def on_Span(self, content):
        (id, _, _), inlines = content
        if not id.startswith("eq-"):
            return self.note(id)
        number = words(f"({self.count(id)})", "equation-number")
        return [el("Span", [id, ["equation"], []], [*self.walk(inlines), *number])]

    def on_Math(self, content):
        kind, tex = content
        self.tex.setdefault(tex, self.cell)
        is_display = kind["t"] == "DisplayMath"
        return [el("Span", ["", ["scroll"], []], [el("Math", kind, tex)])] if is_display else None

    def on_Str(self, content):
        for sign, what in LEFT_OVER.items():
            if sign in content:
                self.complain(f"{what}: {content}")

    def on_Code(self, content):
        if re.match(r"\{\w+\}\s", content[1]):
            self.complain(f"a code block that is to be run: {content[1].split()[0]}")

    def on_RawBlock(self, content):
        kind, code = content
        if kind == "cell":
            self.cell = int(code)
            return []
        if kind != "html":
            self.complain(f"raw {kind}, which a page cannot show")
        for what, pattern in WRONG_HTML.items():
            if re.search(pattern, code):
                self.complain(what)
        self.ids.update(IDS.findall(code))
        return None

    on_RawInline = on_RawBlock

    def on_Image(self, content):
        (id, classes, pairs), inlines, (url, title) = content
        if unknown := sorted(dict(pairs).keys() - {"fig-alt"}):
            self.complain(f"unknown attributes of an image: {', '.join(unknown)}")
        alt = words(dict(pairs)["fig-alt"]) if pairs else inlines
        if not alt or alt == words(""):
            self.complain(f"an image without alt text: {url}")
        if re.match("https?:|//", url):
            self.complain(f"an image that is fetched from the web: {url}")
        elif not url.startswith("data:"):
            self.asset(url)
        self.note(id)
        return [el("Image", [id, classes, []], alt, [url, title])]

    def on_Cite(self, content):
        """A citation, in the words that citeproc has put there; or references, made links."""
        citations, inlines = content
        if not is_label(citations[0]["citationId"]):
            for key in {item["citationId"] for item in citations} & self.book.missing:
                self.complain(f"@{key} is not in the bibliography")
            return [el("Cite", citations, self.walk(inlines))]
        links = []
        for item in citations:
            before = item["citationPrefix"] + words("\u00a0") if item["citationPrefix"] else []
            bare = before or item["citationMode"]["t"] == "SuppressAuthor"
            link = ["", [], []], before, [f"@{item['citationId']}", "bare" if bare else ""]
            links += words(", ") * bool(links) + self.on_Link(link)
        return links

    def on_Link(self, content):
        attributes, inlines, target = content
        link = el("Link", attributes, self.walk(inlines), target)
        self.book.links.append((self, self.cell, link["c"]))
        return [link]

    def finish(self, link):
        """Lead a link to where it belongs; put words into one that is a reference."""
        _, inlines, (url, title) = link
        path, _, anchor = url.partition("#")
        if url.startswith("@"):
            anchor = url[1].lower() + url[2:]
            page, kind, number = self.book.labels.get(anchor, (None, "", []))
            inlines += [*words(f"{kind}\u00a0" if kind and title != "bare" else ""), *number]
            if not page:
                return self.complain(f"{url} refers to nothing")
            link[2][1] = ""
        elif re.match(r"[a-z]+:|//", url):
            return None
        elif path:
            page = self.book.paths.get(self.from_root(path))
        else:
            page = anchor.startswith("ref-") and self.book.references or self
        if page and anchor and anchor not in page.ids:
            self.complain(f"a link to {page.source}#{anchor}, which is not there")
        path = self.relative(page.href) if page else self.asset(path)
        link[2][0] = ("" if page is self and anchor else path) + f"#{anchor}" * bool(anchor)
        return None
