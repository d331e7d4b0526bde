"""What MkDocs cannot do by itself: pages that are written elsewhere in the repository, and formulas.

Notebooks become pages with the outputs that are saved in them, their pictures beside them. Formulas, $…$ and $$…$$, become MathML
when the site is built: browsers show it without any code of ours, and one with a command that is not known fails the build.
"""

import html
import posixpath
import re
from pathlib import Path

import nbconvert
from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "native/README.md": "native.md",
    "docs/extending": "extending/index.md",
    **{f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in NOTEBOOKS},
}
"""What lies elsewhere in the repository, or has another name there -> its page."""
SOURCES = {page: source for source, page in PAGES.items()} | {"extending/index.md": "docs/extending/index.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        if source.endswith(".md"):
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for path in NOTEBOOKS:
        text, pictures = _notebook(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in {**pictures, path.name: path.read_bytes()}.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """(a page, its pictures). What one cell printed is one block; the first cell, which installs, is folded."""
    exporter = nbconvert.MarkdownExporter()
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    text, resources = exporter.from_filename(str(path), resources={"unique_key": path.stem})
    text = text.replace("![png](", "![what the cell above drew](")
    first = re.search(r"```python\n.*?\n```", text, re.DOTALL)
    folded = f"/// details | Where the library comes from, on Colab\n{first[0]}\n///"
    title, rest = text.replace(first[0], folded, 1).split("\n", 1)
    return f'{title}\n\n<a href="../{path.name}" download>Download this notebook</a>\n{rest}', resources["outputs"]


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links as they are right in the repository -> as they are right on the site; to what is no page there, their words."""
    here = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def relinked(found: re.Match[str]) -> str:
        words, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        path = PAGES.get(path, path.removeprefix("docs/"))
        if path not in SOURCES and not (ROOT / "docs" / path).is_file():
            return words
        return f"[{words}]({posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or '.')}{anchor or ''})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:)([^)\s#]+(?:\.md|\.ipynb|\.py|/))(#[^)\s]*)?\)", relinked, markdown)


def on_page_content(content: str, **_: object) -> str:
    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', _formula, content, flags=re.DOTALL)


def _formula(found: re.Match[str]) -> str:
    text = html.unescape(found[2]).strip()
    shown = converter.convert(text[2:-2], display="block" if text.startswith(r"\[") else "inline")
    if "\\" in shown or text.count("{") != text.count("}"):
        raise PluginError(f"This formula cannot be read: {text}")
    return shown.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim is an operator, with space around it
