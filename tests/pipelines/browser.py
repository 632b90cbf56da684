"""Reports in a real browser: Chromium, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def watched(*, width: int = 1280, dark: bool = False) -> Iterator:
    """A page of a browser, and what it says in its console and asks for."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip)")
    if CHROMIUM is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    said: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        yield page, said
        browser.close()


@contextmanager
def opened(file: Path, *, width: int = 1280, dark: bool = False) -> Iterator:
    """A page of a report; fails on any message in the console and any request but the file."""
    with watched(width=width, dark=dark) as (page, said):
        page.goto(file.as_uri())
        yield page
    said = [text for text in said if not text.startswith(("data:", "blob:"))]
    assert said == [file.as_uri()]


def overflow(page) -> int:
    """Pixels that the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")
