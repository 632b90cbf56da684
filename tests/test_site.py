"""The guide in a real browser: nothing from a network, no overflow, formulas drawn, a search."""

import subprocess
import sys

import pytest

from tests.documents import DOCS, PAGES, ROOT
from tests.pipelines.browser import overflow, watched

GUIDE = [name.removeprefix("docs/").removesuffix(".md") for name in PAGES if "docs/" in name]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages alone: `make docs` builds the API reference, too, and takes no warning."""
    pytest.importorskip("sphinx", reason='needs pip install "cggm[docs]"')
    folder = tmp_path_factory.mktemp("site")
    pages = ["-D", "extensions=myst_parser,sphinx.ext.autodoc", "-D", "exclude_patterns=api/**"]
    command = [sys.executable, "-m", "sphinx", "--quiet", *pages, DOCS, folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture
def page(site):
    """A phone's browser, which must say nothing and ask for nothing but files of the site."""
    with watched(width=390) as (page, said):
        yield page
    local = (site.as_uri(), "data:")
    assert not [text for text in said if not text.startswith(local)]


def test_pages_fit_a_phone_and_ask_for_nothing(site, page):
    for name in GUIDE:
        page.goto((site / f"{name}.html").as_uri())
        assert overflow(page) <= 0, name
        assert page.locator("h1").count() == 1, name


def test_formulas_are_drawn_by_the_browser(site, page):
    page.goto((site / "method.html").as_uri())
    assert page.locator("math mfrac").count() >= 2
    assert "\\" not in "".join(page.locator("math").all_text_contents())


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("dcm2niix", "Your own BraTS copy"),
        ("nnU-Net", "Balanced training in nnU-Net"),
        ("Lightning", "CGGM in Lightning"),
        ("own data", "Another data set, other modalities"),
    ],
)
def test_search_finds_a_page(site, page, words, title):
    page.goto((site / "search.html").as_uri() + f"?q={words}")
    found = page.locator("#search-results li a")
    found.first.wait_for()
    page.get_by_text("Search finished").wait_for()
    assert title in found.all_inner_texts()


def test_tables_use_a_wide_window(site):
    with watched(width=1440) as (page, _):
        page.goto((site / "results.html").as_uri())
        widths = [table.bounding_box()["width"] for table in page.locator("table").all()]
        assert overflow(page) <= 0
        text = page.locator("article section > p").first.bounding_box()["width"]
    assert max(widths) > 820
    assert text <= 832
