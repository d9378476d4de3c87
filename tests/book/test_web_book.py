"""The book on the web: it builds without a warning, and a browser can leaf through it."""
import functools
import gzip
import html
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from urllib.parse import unquote

import pytest
from conftest import ROOT

pytest.importorskip("sphinx", reason="the book's requirements are not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    "The folder of a freshly built book."
    out = tmp_path_factory.mktemp("book")
    built = subprocess.run([sys.executable, str(ROOT / "docs/book/build.py"), str(out)], capture_output=True, text=True,
                           timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert built.returncode == 0, built.stdout + built.stderr
    return out / "book"


@pytest.fixture(scope="module")
def pages(book):
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(book.glob("*.html"))}


def test_a_folder_that_is_no_book_is_left_alone(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "mine.txt").write_text("mine")
    built = subprocess.run([sys.executable, str(ROOT / "docs/book/build.py"), tmp_path.name], cwd=tmp_path.parent,
                           capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert built.returncode == 1 and "is no book that this has built" in built.stderr
    assert [p.name for p in (tmp_path / "book").iterdir()] == ["mine.txt"] and not (tmp_path / "book-src").exists()


def test_every_chapter_has_its_page_and_pages_are_small(pages):
    chapters = {p.stem + ".html" for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    assert chapters <= set(pages)
    assert not {name: len(text) for name, text in pages.items() if len(text.encode()) > 3e6}


def test_no_link_is_dead(book, pages):
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    dead = []
    for name, text in pages.items():
        for link in map(html.unescape, re.findall(r'<\w+\b[^<>]*\b(?:href|src)="([^"]+)"', text)):
            if re.match(r"https?:|mailto:|data:|javascript:", link):
                continue
            path, _, anchor = link.partition("#")
            path, anchor = unquote(path.partition("?")[0]) or name, unquote(anchor)
            if not (book / path).exists() or anchor and anchor not in ids.get(path, {anchor}) and anchor != "top":
                dead.append((name, link))
    assert not dead


def test_nothing_is_fetched_from_elsewhere(pages):
    "Style sheets, scripts, fonts and pictures are the book's own: it opens without a network."
    foreign = [(name, tag) for name, text in pages.items()
               for tag in re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="(?:https?:)?//[^>]*>', text)]
    assert not foreign


def test_every_picture_has_words(pages):
    assert not [(name, tag) for name, text in pages.items() for tag in re.findall(r"<img\b[^>]*>", text)
                if not re.search(r'\balt="[^"]', tag) and "logo" not in tag]


def test_reference_has_every_public_name(pages):
    import groundup
    entries = {m for name, text in pages.items() if name.startswith("reference-")
               for m in re.findall(r'id="groundup\.(\w+)"', text)}
    assert entries == set(groundup.__all__)
    assert re.search(r'<a [^>]*href="reference\.html"[^>]*>(<[^>]+>)*index of names<', pages["use_it.html"])


def test_names_and_chapters_in_the_prose_are_links(pages):
    text = pages["10_activations.html"]
    assert re.search(r'href="reference-looking-inside\.html#groundup\.ActivationStats"', text)
    for name, text in pages.items():
        plain = re.sub(r"<(a|pre|code|title|h\d|script|nav)\b.*?</\1>", "", text, flags=re.S)
        plain = re.sub(r"<[^>]+>", "", plain)
        assert not re.findall(r"\bchapters? \d\d[a-c]?\b.{,40}", plain), name


def test_a_chapters_own_names_are_its_own(pages):
    "Also where a later chapter has another version of that name, which the library's reference describes."
    def link(page, name):
        return set(re.findall(rf'<a [^>]*href="([^"]+)"[^>]*><code[^>]*><span class="pre">{name}</span>', pages[page]))
    assert {o[:6] for o in link("04_callbacks.html", "Learner")} == {"#cell-"}
    assert not link("03_minibatch_training.html", "Optimizer")


@pytest.fixture(scope="module")
def site(book):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(book)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not BROWSER:
        pytest.skip("no Chromium on this machine")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_every_page_loads_and_is_readable_at_400_pixels(pages, site, browser):
    page, faults, wide = browser.new_page(viewport={"width": 400, "height": 800}), [], []
    page.on("console", lambda m: faults.append((page.url, m.text)) if m.type == "error" else None)
    page.on("pageerror", lambda e: faults.append((page.url, str(e))))
    page.on("response", lambda r: faults.append((page.url, r.url)) if r.status >= 400 else None)
    for name in pages:
        page.goto(f"{site}/{name}", wait_until="load")
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 400:
            wide.append((name, width))
    assert not faults
    assert not wide


def test_first_page_is_light(book, site, browser):
    "As a server sends it, with all it loads: text compressed, pictures as they are."
    page, paths = browser.new_page(), set()
    page.on("request", lambda r: paths.add(r.url.removeprefix(site).partition("?")[0].lstrip("/")))
    page.goto(f"{site}/index.html", wait_until="networkidle")
    sizes = {p: len(data if p.endswith(("png", "woff2")) else gzip.compress(data))
             for p in paths if (book / p).is_file() for data in [(book / p).read_bytes()]}
    assert "index.html" in sizes and sum(sizes.values()) <= 500_000, sizes


def test_search_finds_a_word(site, browser):
    page = browser.new_page()
    page.goto(f"{site}/search.html?q=LSUV", wait_until="load")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = [a.get_attribute("href") for a in page.query_selector_all("#search-results li a")]
    assert [link for link in found if "11_initializing" in link]


def test_a_folded_cell_opens(site, browser):
    page = browser.new_page()
    page.goto(f"{site}/09_learner.html", wait_until="load")
    fold = page.locator("details.hide").first
    assert fold.get_attribute("open") is None
    fold.locator("summary").click()
    assert fold.get_attribute("open") is not None and fold.locator("pre").first.is_visible()


def test_the_page_can_be_dark(site, browser):
    page = browser.new_page(color_scheme="dark")
    page.goto(f"{site}/01_matmul.html", wait_until="load")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", light)[:3])) < 200
