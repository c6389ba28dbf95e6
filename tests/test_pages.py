"""The book's pages in a real browser, as the embedded renderer makes them."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

REPO = Path(__file__).parent.parent
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of this repository's book."""
    folder = tmp_path_factory.mktemp("site") / "book"
    done = subprocess.run(
        [sys.executable, "-m", "render", "--output", str(folder)],
        check=False,
        cwd=REPO,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(book):
    """Where the book is served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=book)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def pages(book):
    return sorted(path.relative_to(book).as_posix() for path in book.rglob("*.html"))


@pytest.fixture(scope="module")
def browser():
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error:
            if found:
                raise
            pytest.skip("there is no Chromium")
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A page of a desktop's width in a fresh profile; what goes wrong in it is in `problems`."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = context.new_page()
    page.problems = []
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and page.problems.append(message.text),
    )
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("requestfailed", lambda request: page.problems.append(request.url))
    page.on(
        "request",
        lambda request: (
            urlsplit(request.url).scheme != "data"
            and urlsplit(request.url).hostname != "127.0.0.1"
            and page.problems.append(f"a request to {request.url}")
        ),
    )
    yield page
    context.close()


def search(tab, words):
    """The titles and addresses that a search for `words` finds, best first."""
    tab.keyboard.press("/")
    tab.keyboard.type(words)
    tab.wait_for_selector("#results a")
    return tab.locator("#results b").all_inner_texts()


def test_no_page_complains_or_asks_another_host(tab, address, pages):
    for page in pages:
        tab.goto(f"{address}/{page}", wait_until="networkidle")
        assert not tab.problems, page


@pytest.mark.parametrize("width", [375, 768])
def test_nothing_is_wider_than_the_window(tab, address, pages, width):
    tab.set_viewport_size({"width": width, "height": 740})
    for page in pages:
        tab.goto(f"{address}/{page}")
        tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, page


def test_dark_mode_holds(tab, address):
    def theme():
        return tab.evaluate("document.documentElement.dataset.theme")

    tab.goto(f"{address}/index.html")
    assert theme() == "light"
    tab.click("button.theme")
    assert theme() == "dark" and tab.get_attribute("button.theme", "aria-pressed") == "true"
    tab.click("a[rel=next]")
    assert theme() == "dark"


def test_dark_mode_follows_the_system_first(browser, address):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{address}/index.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    context.close()


def test_search_finds_prose_and_functions(tab, address):
    tab.goto(f"{address}/index.html")
    assert any("perceptron" in title.lower() for title in search(tab, "convergence"))
    tab.keyboard.press("Escape")
    tab.reload()
    assert "Perceptron.fit" in search(tab, "Perceptron.fit")[0]
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#results a:focus").count() == 1
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/nbs/reference/api.html#*")
    assert not tab.problems


def test_the_menu_opens_on_a_phone(tab, address):
    tab.set_viewport_size({"width": 375, "height": 740})
    tab.goto(f"{address}/index.html")
    chapters = tab.locator("#chapters")
    assert not chapters.is_visible()
    tab.click("button.menu")
    assert chapters.is_visible()
    tab.keyboard.press("Escape")
    assert not chapters.is_visible()


def test_steppers_answer_to_the_keyboard(tab, address, pages):
    found = False
    for page in pages:
        tab.goto(f"{address}/{page}")
        for stepper in tab.locator("dl-stepper").all():
            found = True

            def shown(stepper=stepper):
                "Which frames can be seen, and whether they are pictures and not broken ones."
                return stepper.locator("img").evaluate_all(
                    "all => all.map(i => i.checkVisibility() && i.complete && i.naturalWidth > 0)"
                )

            count = len(shown())
            stepper.locator("button").first.focus()
            for key, place in (
                ("Home", 0),
                ("ArrowRight", 1),
                ("ArrowLeft", 0),
                ("End", count - 1),
                ("ArrowRight", count - 1),
            ):
                tab.keyboard.press(key)
                tab.wait_for_function(
                    "e => [...e.querySelectorAll('img')].every(i => i.complete)",
                    arg=stepper.element_handle(),
                )
                assert shown() == [k == place for k in range(count)], (page, key)
    assert found and not tab.problems


def test_printed_pages_are_only_the_text(tab, address):
    tab.goto(f"{address}/nbs/perceptron.html")
    tab.emulate_media(media="print")
    for part in (".bar", "#chapters", "#contents", ".turn"):
        assert not tab.locator(part).is_visible()


def git(*arguments):
    "The lines that git prints; none where it fails."
    done = subprocess.run(
        ["git", *arguments], cwd=REPO, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines() if done.returncode == 0 else []


def looked_at(pages):
    """All pages; with DLNOTES_AXE=sample those that changed, and one in four, other ones each time.

    Changed: since the last commit but one, since the branch left main, in the last day.
    """
    if os.environ.get("DLNOTES_AXE") != "sample":
        return pages
    lines = [
        *git("diff", "--name-only", "HEAD~1"),
        *git("diff", "--name-only", "origin/main...HEAD"),
        *git("log", "--since=1.day", "--name-only", "--format="),
    ]
    changed = {Path(line).stem for line in lines if line.endswith((".ipynb", ".qmd"))}
    turn = int(*git("rev-list", "--count", "HEAD"))
    return [
        page for i, page in enumerate(pages) if (i + turn) % 4 == 0 or Path(page).stem in changed
    ]


def test_a_sample_of_pages_holds_those_that_changed(monkeypatch):
    pages = [f"nbs/{letter}.html" for letter in "abcdefgh"]
    monkeypatch.setattr(
        sys.modules[__name__],
        "git",
        lambda *arguments: {"rev-list": ["7"], "diff": ["nbs/c.ipynb", "README.md"]}.get(
            arguments[0], []
        ),
    )
    monkeypatch.setenv("DLNOTES_AXE", "sample")
    assert looked_at(pages) == ["nbs/b.html", "nbs/c.html", "nbs/f.html"]
    monkeypatch.delenv("DLNOTES_AXE")
    assert looked_at(pages) == pages


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_violation(tab, address, pages, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    ).Axe()
    for page in looked_at(pages):
        tab.emulate_media(color_scheme=scheme)
        tab.goto(f"{address}/{page}")
        found = axe.run(tab).response["violations"]
        assert not found, [
            (page, item["id"], node["html"][:200], node["failureSummary"])
            for item in found
            for node in item["nodes"][:2]
        ]
