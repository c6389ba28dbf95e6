"""Every link of the built book leads somewhere, and nothing is fetched from outside."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

REPO = Path(__file__).parent.parent
OUTSIDE = re.compile(r"https://[\w.-]+\.[a-z]{2,}(/\S*)?$")


class Page(HTMLParser):
    "The places (ids), the links and the things fetched of an HTML page."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched = [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif url := attrs.get("src") or (tag == "link" and attrs.get("href")):
            self.fetched.append(url)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The pages of the book as the embedded renderer makes it."
    folder = (tmp_path_factory.mktemp("links") / "book").resolve()
    subprocess.run(
        [sys.executable, "-m", "render", "--output", str(folder)],
        cwd=REPO,
        check=True,
        capture_output=True,
    )
    return {path: Page(path) for path in folder.rglob("*.html")}


def test_no_place_has_two_meanings(pages):
    for path, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), path


def test_links_within_the_book_lead_somewhere(pages):
    count = 0
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            assert target in pages, f"{path.name}: {link}"
            assert not url.fragment or unquote(url.fragment) in pages[target].ids, link
            count += 1
    assert count > 100


def test_links_out_of_the_book_are_well_formed(pages):
    links = {link for page in pages.values() for link in page.links if urlsplit(link).scheme}
    assert links and all(OUTSIDE.match(link) for link in links), links


def test_what_a_page_fetches_is_beside_it(pages):
    for path, page in pages.items():
        for url in page.fetched:
            assert url.startswith("data:") or (path.parent / unquote(url)).is_file(), (path, url)


def test_links_of_the_readme_and_its_like_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (REPO / name).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)\)", text):
            assert urlsplit(link).scheme or (REPO / link).exists(), (name, link)
