"""The web site: every page links to what exists, fits its window, says what its pictures show, and can be read.

Without Chromium or Sphinx the tests are skipped and say so.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
]
LOOKED_AT = ("start_here", "table1_main")
HANGS = 1_200_000  # ms; reached by nothing but a hang
WIDTHS = (1300, 400)  # a desk, a telephone
RULES = {
    "resultTypes": ["violations"],
    "runOnly": ["color-contrast", "image-alt", "button-name", "link-name", "document-title", "html-has-lang"],
}
WIDE = """() => [...document.querySelectorAll('.bd-article *')].filter(e => e.tagName == 'TABLE'
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.innerText.slice(0, 60))"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make site` builds it, without a warning."""
    pytest.importorskip("myst_nb", reason="Sphinx is not installed: make env EXTRAS=dev,site installs it")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-b", "html", "-q", "-d", out / "trees", ".", out / "html"]
    env = {key: value for key, value in os.environ.items() if key != "GITHUB_REPOSITORY"}
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("chromium is not installed: apt-get install chromium runs the browser tests")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make env installs it")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield chromium
        chromium.close()


def pages(site):
    return {
        path: BeautifulSoup(path.read_text(), "html.parser")
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }


def test_links_and_pictures(site):
    """Every link within the site, to a place on a page too, leads somewhere; every picture is there and is described."""
    soups = pages(site)
    places = {path.resolve(): {tag["id"] for tag in soup.find_all(id=True)} for path, soup in soups.items()}
    broken, mute = [], []
    for path, soup in soups.items():
        for tag in soup.find_all(["a", "img", "script", "link"]):
            address, place = urldefrag(tag.get("href") or tag.get("src") or "")
            if address.partition(":")[0] in ("http", "https", "mailto", "data"):
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path.resolve()
            if not target.is_file() or (place and target in places and unquote(place) not in places[target]):
                broken.append((path.name, address, place))
        mute += [(path.name, img.get("src")) for img in soup.find_all("img") if not img.get("alt", "").strip()]
    raw = [path.name for path, soup in soups.items() if re.search(r"\| (---|—) \||```", soup.get_text())]
    assert not broken and not mute and not raw, "links, pictures without a description, Markdown that is shown as it is written"
    assert len(soups) > 40 and (site / "index.html").is_file()


def test_every_page_is_there(site):
    """README's verdicts, every document, every notebook as committed, every public name."""
    import nppkit

    for folder, ending in (("docs", "md"), ("notebooks", "ipynb")):
        missing = [path for path in (ROOT / folder).glob(f"*.{ending}") if not (site / folder / f"{path.stem}.html").is_file()]
        assert not missing
    first, api = (BeautifulSoup((site / "docs" / name).read_text(), "html.parser") for name in ("index.html", "api.html"))
    readme = (ROOT / "README.md").read_text().split("<!-- verdicts -->")[1]
    rows = [line.split("|")[1].strip() for line in readme.splitlines() if line.startswith("| ")][2:]
    shown = first.get_text().replace("“", '"').replace("”", '"')
    assert all(row in shown for row in rows) and len(rows) >= 12
    described = {tag["id"].rpartition(".")[2] for tag in api.find_all("dt", id=True)}
    assert set(nppkit.__all__) <= described


def faults(page, axe, path):
    """What is wrong with a page: wider than the window at a desk or on a telephone, or a fault that axe finds.

    The colours of code are looked at on one page, since that takes long.
    """
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.goto(path.as_uri())
    found = [("wide table", text) for text in page.evaluate(WIDE)]
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        found += [(f"{over} pixels too wide at {width}",)] if over > 0 else []
    if path.parent.name == "notebooks" and path.stem not in LOOKED_AT:
        return found
    context = None if path.stem == "method" else {"exclude": [[".highlight"]]}
    violations = axe.run(page, context=context, options=RULES).response["violations"]
    return found + [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in violations]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_read(site, browser, scheme):
    """Nothing is wider than the window, and axe finds no fault: on all pages in light, on one of a kind in dark.

    Notebooks have one style; axe looks at one that explains and at one that reports.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make env EXTRAS=dev,site installs axe").Axe()
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900}, color_scheme=scheme)
    page.set_default_timeout(HANGS)
    every = sorted([*site.glob("docs/*.html"), *site.glob("notebooks/*.html"), site / "search.html"])
    paths = [path for path in every if scheme == "light" or path.stem in ("index", "method", "api", *LOOKED_AT)]
    found = {path.name: wrong for path in paths if (wrong := faults(page, axe, path))}
    page.close()
    assert not found, "\n".join(f"{name}: {wrong}" for name, wrong in found.items())


def test_a_figure_is_enlarged(site, browser):
    """A click on a figure fills the window with it, and Escape closes it; the search finds a word."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(HANGS)
    page.goto((site / "docs/index.html").as_uri())
    small = page.locator("button.enlarge img").first
    width = small.bounding_box()["width"]
    small.click()
    assert page.locator("dialog.enlarged img").bounding_box()["width"] > 2 * width
    page.keyboard.press("Escape")
    page.locator("dialog.enlarged").wait_for(state="hidden")
    page.goto((site / "search.html").as_uri() + "?q=lambda")
    page.locator("#search-results li").first.wait_for()
    page.close()
