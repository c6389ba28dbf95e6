"""Walks pandoc's tree of a page: once for structure and numbers, once for references and links."""
import posixpath
import re
from collections import Counter
from urllib.parse import unquote

FLOATS = {"fig": "Figure", "tbl": "Table"}
THEOREMS = {"thm": "Theorem", "lem": "Lemma", "cor": "Corollary", "prp": "Proposition",
            "cnj": "Conjecture", "def": "Definition", "exm": "Example", "exr": "Exercise"}
PROOFS = {"proof": "Proof", "remark": "Remark", "solution": "Solution"}
KINDS = {"sec": "Section", "eq": "Equation", **FLOATS, **THEOREMS}
CALLOUTS = {f"callout-{name.lower()}": name
            for name in ("Note", "Tip", "Warning", "Important", "Caution")}
CLASSES = {"aside", "cell", "cell-output", "column-margin", "figure", "panel-tabset", "photo",
           "stderr", "stdout", *PROOFS, *CALLOUTS}
CALLOUT_ATTRIBUTES = {"appearance", "collapse", "icon"}
IMAGE_ATTRIBUTES = {"alt", "fig-align", "fig-alt", "height", "width"}

EQUATION = re.compile(r"\{#(eq-[^ }]+)\}")
# Signs that are left in the text where something was not understood.
LEFT_OVER = {":::": "a ::: that opens or closes nothing", "{{<": "a shortcode",
             "```": "a code fence that is not closed", "$$": "a formula that is not closed",
             "{#": "a label that labels nothing"}
TAGS = re.compile(r"<(script|style|svg)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
FETCHED = re.compile(r"""<(?!a\b)\w[^>]*\b(?:src|href|data|poster)\s*=\s*["']?(?:https?:)?//
                     | url\(\s*["']?(?:https?:)?//""", re.VERBOSE | re.IGNORECASE)
NO_ALT = re.compile(r"<img\b(?![^>]*\balt\s*=)", re.IGNORECASE)
IDS = re.compile(r"""<\w[^>]*\bid\s*=\s*["']([^"']+)""")
POINTERS = re.compile(r'(<\w[^>]*\b(?:href|src)=")([^"]+)')


def el(kind, *content):
    """An element of pandoc's tree."""
    return {"t": kind, "c": content[0] if len(content) == 1 else list(content)}


def string(value):
    return el("Str", value)


def raw(value):
    return el("RawBlock", "html", value)


def div(blocks, *classes, id="", pairs=()):
    return el("Div", [id, list(classes), list(pairs)], blocks)


def span(inlines, *classes, id=""):
    return el("Span", [id, list(classes), []], inlines)


def is_label(key):
    """Whether `@key` refers to something numbered, and is not a citation."""
    kind, dash, _ = key.partition("-")
    return bool(dash) and kind.lower() in KINDS


def is_marker(block):
    """Whether the block only says which cell it is that follows."""
    return block["t"] == "RawBlock" and block["c"][0] == "cell"


def split_heading(blocks):
    """The heading (its inlines) that the blocks may begin with, and the other blocks."""
    if blocks and blocks[0]["t"] == "Header":
        return blocks[0]["c"][2], blocks[1:]
    return [], blocks


def plain_text(value):
    """The words and the code of a piece of the tree; formulas and notes are left out."""
    if isinstance(value, list):
        return "".join(map(plain_text, value))
    if not isinstance(value, dict) or value.get("t") in ("Math", "Note"):
        return ""
    kind, content = value.get("t"), value.get("c")
    if kind == "Str":
        return content
    if kind in ("RawBlock", "RawInline"):
        return TAGS.sub(" ", content[1]) if content[0] == "html" else ""
    words = content[1] if kind in ("Code", "CodeBlock") else plain_text(content)
    apart = kind in ("CodeBlock", "Header", "LineBreak", "Para", "Plain", "SoftBreak", "Space")
    return words + " " * apart


class Walker:
    """Rebuilds a page's tree, each element replaced by what its `on_...` method makes of it."""

    def __init__(self, book, page):
        self.book, self.page, self.cell = book, page, 0

    def complain(self, message):
        self.book.complain(self.page, self.cell, message)

    def walk(self, value):
        if isinstance(value, dict):
            return {key: self.walk(part) for key, part in value.items()}
        if not isinstance(value, list):
            return value
        result = []
        for item in value:
            if isinstance(item, dict) and "t" in item:
                method = getattr(self, "on_" + item["t"], None)
                new = method(item["c"]) if method else None
                result += [self.walk(item)] if new is None else new
            else:
                result.append(self.walk(item))
        return result

    def from_root(self, url):
        """The path from the root of the book of what `url` is from the page."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.page.source), unquote(url)))

    def asset(self, url):
        """Have the file `url` copied into the book; it is seen from the page as it was."""
        path = self.from_root(url)
        source = self.book.config.root / path
        if path not in self.book.files and (path.startswith("..") or not source.is_file()):
            self.complain(f"no such file: {url}")
        self.book.files.setdefault(path, source)
        return url


class Structure(Walker):
    """Numbers what is numbered, turns Quarto's constructs into plain ones, notes every label."""

    def __init__(self, book, page):
        super().__init__(book, page)
        self.sections, self.counts, self.in_theorem = [0] * 7, Counter(), False

    def page_blocks(self, blocks):
        """The page without its title, which goes to `page`; the home page keeps its own."""
        for index, block in enumerate(blocks):
            if block["t"] == "Header" and block["c"][0] == 1:
                (self.page.id, _, _), self.page.title = block["c"][1:]
                self.note(self.page.id, "Appendix" if self.page.appendix else "Chapter",
                          self.page.number)
                return self.walk(blocks[:index] + blocks[index + (not self.page.is_home):])
            if is_marker(block):
                self.on_RawBlock(block["c"])
            else:
                self.complain("something stands before the chapter's title")
        self.complain("no title: the page has no heading of the first level")
        return []

    def register(self, id):
        """Note that the page has a place called `id`."""
        if id and id in self.page.ids:
            self.complain(f"duplicate label {id}")
        self.page.ids.add(id)

    def note(self, id, kind, number):
        """Note that a reference to `id` reads `kind number` and leads to this page."""
        if id in self.book.labels:
            self.complain(f"duplicate label {id}")
        elif is_label(id):
            self.book.labels[id] = self.page, kind, number
        self.register(id)

    def number(self, id):
        """The number of the next figure, table, equation or theorem, whose label is `id`."""
        kind = id.partition("-")[0]
        self.counts[kind] += 1
        number = f"{self.page.number}.{self.counts[kind]}".lstrip(".")
        self.note(id, KINDS[kind], number)
        return number

    def on_Header(self, content):
        level, (id, classes, pairs), inlines = content
        inlines = self.walk(inlines)
        if level == 1 and self.page.is_home and id == self.page.id:
            return [el("Header", level, [id, classes, pairs], inlines)]
        if level == 1:
            self.complain("a second heading of the first level")
        if not self.page.number or "unnumbered" in classes or self.in_theorem:
            self.note(id, "", plain_text(inlines).strip())
        else:
            self.sections[level:] = [self.sections[level] + 1] + [0] * (6 - level)
            number = ".".join([self.page.number, *map(str, self.sections[2:level + 1])])
            self.note(id, "Section", number)
            inlines = [span([string(number)], "section-number"), el("Space"), *inlines]
        return [el("Header", level, [id, classes, pairs], inlines)]

    def on_Div(self, content):
        (id, classes, pairs), blocks = content
        kind, pairs = id.partition("-")[0], dict(pairs)
        callout = next((name for name in classes if name in CALLOUTS), None)
        proof = next((name for name in classes if name in PROOFS), None)
        unknown = set(classes) - CLASSES | set(pairs) - (CALLOUT_ATTRIBUTES if callout else set())
        if unknown:
            self.complain(f"an unknown div: {' '.join(sorted(unknown))}")
        if kind in THEOREMS or proof:
            return self.theorem(id, proof or kind, blocks)
        if kind in FLOATS or "figure" in classes:
            caption = blocks[-1]["c"] if blocks and blocks[-1]["t"] == "Para" else []
            return self.float(id, caption, self.walk(blocks[:-1] if caption else blocks))
        self.register(id)
        if callout:
            return self.callout(id, callout, pairs.get("collapse"), blocks)
        if "panel-tabset" in classes:
            return self.tabset(blocks)
        if id == "refs":
            self.book.references, self.book.works = self.page, div(blocks, id=id)
            return [self.book.works]
        return None

    def callout(self, id, kind, collapse, blocks):
        title, blocks = split_heading(blocks)
        name, title, body = CALLOUTS[kind], self.walk(title), self.walk(blocks)
        hidden = [span([string(f"{name}: ")], "sr-only")] if title else []
        title = [*hidden, span(title or [string(name)], "control")]
        if collapse is None:
            body = [div([el("Plain", title)], "callout-title"), *body]
        else:
            body = details(title, body, collapse == "false")
        return [div(body, "callout", kind, id=id)]

    def tabset(self, blocks):
        self.counts["tabset"] += 1
        level = next((block["c"][0] for block in blocks if block["t"] == "Header"), None)
        buttons, panels = [], []
        for block in blocks:
            if block["t"] == "Header" and block["c"][0] == level:
                id, first = f"tab-{self.counts['tabset']}-{len(panels) + 1}", not panels
                buttons += [raw(f'<button role="tab" id="{id}" aria-controls="{id}-panel" '
                                f'aria-selected="{str(first).lower()}">'),
                            el("Plain", [span(self.walk(block["c"][2]), "control")]),
                            raw("</button>")]
                pairs = [["role", "tabpanel"], ["aria-labelledby", id]]
                panels.append(div([], id=f"{id}-panel", pairs=pairs))
            elif panels:
                panels[-1]["c"][1] += self.walk([block])
            elif not is_marker(block):
                self.complain("a tabset that does not begin with a heading")
        return [raw('<div class="tabset"><div role="tablist">'), *buttons, raw("</div>"), *panels,
                raw("</div>")]

    def theorem(self, id, kind, blocks):
        """A theorem or a proof, whose first paragraph begins with its name, number and title."""
        title, blocks = split_heading(blocks)
        if kind in PROOFS:
            self.register(id)
            words = [el("Emph", [string(PROOFS[kind])])]
        else:
            words = [string(f"{THEOREMS[kind]}\u00a0{self.number(id)}")]
        if title:
            words += [el("Space"), string("("), *self.walk(title), string(")")]
        words = [*words, string(".")] if kind in PROOFS else [el("Strong", words)]
        words = [span(words, "theorem-title"), el("Space")]
        outer, self.in_theorem = self.in_theorem, True
        blocks, self.in_theorem = self.walk(blocks), outer
        if blocks and blocks[0]["t"] == "Para":
            words += blocks.pop(0)["c"]
        return [div([el("Para", words), *blocks], "theorem", kind, id=id)]

    def float(self, id, caption, blocks):
        """A figure or table with its caption, numbered if it has a label."""
        kind, caption = id.partition("-")[0], self.walk(caption)
        if kind in FLOATS:
            words = f"{FLOATS[kind]}\u00a0{self.number(id)}" + (":" if caption else "")
            caption = [span([string(words)], "float-number"), el("Space"), *caption]
        else:
            self.register(id)
        caption = [el("Plain", caption)] if caption else []
        return [el("Figure", [id, [kind or "fig"], []], [None, caption], blocks)]

    def on_Figure(self, content):
        (id, _, _), (_, caption), blocks = content
        for image in blocks[0]["c"]:
            if image["t"] == "Image":
                image["c"][1] = []       # pandoc repeats the caption there: it is no alt text
        return self.float(id, caption[0]["c"] if caption else [], self.walk(blocks))

    def on_Table(self, content):
        (id, classes, pairs), (_, caption), *rest = content
        if pairs:
            self.complain(f"unknown attributes of a table: {dict(pairs)}")
        table = el("Table", ["", classes, []], [None, []], *self.walk(rest))
        table = div([table], "scroll")
        return self.float(id, caption[0]["c"], [table]) if caption else [table]

    def on_CodeBlock(self, content):
        (id, classes, pairs), code = content
        settings, pairs = self.book.config.html, dict(pairs)
        if "{=cell}" in code:
            self.complain(LEFT_OVER["```"])
        default = settings.get("code-fold") if "cell-code" in classes else None
        fold = str(pairs.pop("code-fold", default)).lower()
        summary = pairs.pop("code-summary", settings.get("code-summary", "Code"))
        if pairs:
            self.complain(f"unknown attributes of a code block: {pairs}")
        block = el("CodeBlock", [id, classes, []], code)
        if fold not in ("true", "show"):
            return [block]
        return [div(details([string(summary)], [block], fold == "show"), "fold")]

    def on_Para(self, inlines, kind="Para"):
        return [el(kind, self.equations(self.walk(inlines)))]

    def on_Plain(self, inlines):
        return self.on_Para(inlines, "Plain")

    def equations(self, inlines):
        """The inlines, with each displayed formula that a label follows numbered."""
        result = []
        for item in inlines:
            label = item["t"] == "Str" and EQUATION.fullmatch(item["c"])
            while label and result and result[-1]["t"] in ("Space", "SoftBreak"):
                result.pop()
            if not label:
                result.append(item)
            elif result and result[-1]["t"] == "Span" and "scroll" in result[-1]["c"][0][1]:
                number = span([string(f"({self.number(label[1])})")], "equation-number")
                result.append(span([result.pop(), number], "equation", id=label[1]))
            else:
                self.complain(f"{LEFT_OVER['{#']}: {item['c']}")
        return result

    def on_Math(self, content):
        kind, tex = content
        self.page.tex.setdefault(tex, self.cell)
        return [span([el("Math", kind, tex)], "scroll")] if kind["t"] == "DisplayMath" else None

    def on_Span(self, content):
        self.register(content[0][0])

    def on_Str(self, content):
        for sign, what in LEFT_OVER.items():
            if sign in content and not EQUATION.fullmatch(content):
                self.complain(f"{what}: {content}")

    def on_Code(self, content):
        if re.match(r"\{\w+\}\s", content[1]):
            self.complain(f"a code block that is to be run: {content[1].split()[0]}")

    def on_RawBlock(self, content):
        kind, code = content
        if kind == "cell":
            self.cell = int(code)
        elif kind != "html":
            self.complain(f"raw {kind}, which a page cannot show")
        elif FETCHED.search(code):
            self.complain("HTML that fetches something from the web")
        elif NO_ALT.search(code):
            self.complain("an image without alt text")
        else:
            self.page.ids.update(IDS.findall(code))

    on_RawInline = on_RawBlock

    def on_Image(self, content):
        (id, classes, pairs), inlines, (url, title) = content
        pairs = dict(pairs)
        if unknown := set(pairs) - IMAGE_ATTRIBUTES:
            self.complain(f"unknown attributes of an image: {', '.join(sorted(unknown))}")
        alt = pairs.get("fig-alt") or pairs.get("alt") or plain_text(inlines).strip()
        if not alt:
            self.complain(f"an image without alt text: {url}")
        if url.startswith(("http:", "https:", "//")):
            self.complain(f"an image that is fetched from the web: {url}")
        elif not url.startswith("data:"):
            self.asset(url)
        self.register(id)
        size = [[key, pairs[key]] for key in ("width", "height") if key in pairs]
        return [el("Image", [id, classes, size], [string(alt)], [url, title])]

    def on_Cite(self, content):
        if not any(is_label(citation["citationId"]) for citation in content[0]):
            self.book.citations.append((self.page, self.cell, content))
            return [el("Cite", content)]    # its text is put into `content` later
        return None


def details(summary, blocks, is_open):
    """Blocks that are folded behind a summary."""
    return [raw(f"<details{' open' * is_open}><summary>"), el("Plain", summary),
            raw("</summary>"), *blocks, raw("</details>")]


class Unlinked(Walker):
    """Leaves the text of links only."""

    def on_Link(self, content):
        return content[1]


class Links(Walker):
    """Makes references and links lead to where things are, once all pages are known."""

    def on_RawBlock(self, content, block="RawBlock"):
        kind, code = content
        if kind == "cell":
            self.cell = int(code)
            return []
        code = POINTERS.sub(lambda match: match[1] + self.resolve(match[2]), code)
        return [el(block, kind, code)]

    def on_RawInline(self, content):
        return self.on_RawBlock(content, "RawInline")

    def on_Span(self, content):
        if "control" in content[0][1]:      # a button or a summary: it may hold no links
            return Unlinked(self.book, self.page).walk(self.walk(content[1]))
        return None

    def on_Link(self, content):
        attributes, inlines, (url, title) = content
        return [el("Link", attributes, self.walk(inlines), [self.resolve(url), title])]

    def resolve(self, url):
        """The address of `url`, a page or file of the book or something outside, from here."""
        path, _, anchor = url.partition("#")
        if re.match(r"[a-z]+:|//", url):
            return url
        if not path:
            cited = anchor.startswith("ref-") and self.book.references
            return self.address(cited or self.page, anchor)
        source = self.from_root(path)
        for page in self.book.pages:
            if source in (page.source, page.href):
                return self.address(page, anchor)
        if not path.endswith((".ipynb", ".qmd", ".html")):
            return self.asset(path)
        self.complain(f"a link to a page that is not in the book: {url}")
        return url

    def address(self, page, anchor):
        if anchor and anchor not in page.ids:
            self.complain(f"a link to {page.source}#{anchor}, which is not there")
        path = "" if page is self.page and anchor else relative(self.page, page.href)
        return f"{path}#{anchor}" if anchor else path

    def on_Cite(self, content):
        citations, inlines = content
        if not is_label(citations[0]["citationId"]):
            return [el("Cite", citations, self.walk(inlines))]
        result = []
        for citation in citations:
            result += [string(","), el("Space")] if result else []
            result += self.reference(citation)
        return result

    def reference(self, citation):
        """The link that a reference such as @fig-x becomes."""
        id = citation["citationId"]
        label = id[0].lower() + id[1:]
        if label not in self.book.labels:
            self.complain(f"@{id} refers to nothing")
            return []
        page, kind, number = self.book.labels[label]
        if citation["citationPrefix"]:
            words = [*citation["citationPrefix"], string("\u00a0")]
        else:
            bare = not kind or citation["citationMode"]["t"] == "SuppressAuthor"
            words = [] if bare else [string(f"{kind}\u00a0")]
        url = self.address(page, label)
        return [el("Link", ["", ["xref"], []], [*words, string(number)], [url, ""])]


def relative(page, path):
    """`path`, which is from the root of the book, as seen from the page."""
    return posixpath.relpath(path, posixpath.dirname(page.source) or ".")
