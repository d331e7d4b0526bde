"""The site: it builds strictly, documents every public symbol, shows every formula, and fetches nothing from elsewhere."""

import html.parser
import importlib
import importlib.util
import re
import subprocess
import sys

import nbformat
import pytest
from pages import ROOT
from test_house import documented_modules, public

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra [docs] is not installed"),
]

BLOCKS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
"""What a browser fetches by itself, and where it says what."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}


class Page(html.parser.HTMLParser):
    """Its anchors, what it makes a browser fetch, and its text outside of code."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.fetched, self.text, self.code = set(), [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.add(given.get("id"))
        self.code += tag in ("pre", "code", "script", "style")
        if given.get("rel") != "canonical" and given.get(BLOCKS.get(tag)):
            self.fetched.append(given[BLOCKS[tag]])

    def handle_endtag(self, tag):
        self.code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data):
        if not self.code:
            self.text.append(data)


def test_every_public_symbol_is_documented(pages):
    """Under one of the names that it can be imported by."""
    anchors = set().union(*(Page(text).anchors for name, text in pages.items() if name.startswith("reference/")))
    spelled = {}
    for module in [*documented_modules(), "flax_srnn.training"]:
        for name, thing in public(module):
            if name in getattr(importlib.import_module(module), "__all__", [name]):
                spelled.setdefault(thing, set()).add(f"{module}.{name}")
    assert len(spelled) > 100
    assert [names for names in spelled.values() if not names & anchors] == []


def test_nothing_is_fetched_from_elsewhere(site, pages):
    fetched = [address for text in pages.values() for address in Page(text).fetched]
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    fetched += re.findall(r"url\(['\"]?([^)'\"]+)", styles)
    assert len(fetched) > 100
    assert [address for address in fetched if re.match(r"(https?:)?//", address)] == []
    assert "@import" not in styles


def test_formulas_and_code_are_shown_as_such(pages):
    """No formula is left as LaTeX, no doctest is a quotation, no fence or tab is text."""
    assert sum(text.count("<math") for text in pages.values()) > 20
    for name, text in pages.items():
        left = re.search(r"\$\S[^$\n]*\$|\\\(|\\\[|^```|^///|>>> ", "".join(Page(text).text), re.MULTILINE)
        assert left is None, (name, left)


def test_every_notebook_is_a_page_with_its_pictures(site, pages):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        text = pages[f"notebooks/{notebook.stem}/index.html"]
        assert f'href="../{notebook.name}" download' in text
        assert (site / "notebooks" / notebook.name).read_bytes() == notebook.read_bytes()
        pictures = [address for address in Page(text).fetched if address.endswith(".png") and "assets" not in address]
        outputs = [output for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", [])]
        assert len(pictures) == sum("image/png" in output.get("data", {}) for output in outputs)
        assert all((site / "notebooks" / notebook.stem / address).exists() for address in pictures)
