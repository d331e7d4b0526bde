"""What MkDocs cannot do by itself: pages that are written elsewhere in the repository, and formulas.

Notebooks become pages with the outputs that are saved in them, their pictures beside them. Formulas, $…$ and $$…$$, become MathML
when the site is built: browsers show it without any code of ours, and a formula that cannot be read fails the build.
"""

import html
import posixpath
import re
from pathlib import Path

import nbconvert
from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "native/README.md": "native.md"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=_relinked((ROOT / source).read_text(), source, page)))
    for path in NOTEBOOKS:
        text, pictures = _notebook(path)
        page = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, page, content=_relinked(text, page, page)))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
    return files


def on_page_content(content: str, **_: object) -> str:
    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', _formula, content, flags=re.DOTALL)


def _relinked(text: str, source: str, page: str) -> str:
    """The links of a file of the repository, `source`, as those of a page of the site; to what is no page, plain text."""

    def relinked(found: re.Match[str]) -> str:
        words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = posixpath.normpath(posixpath.join(posixpath.dirname(source), target)).partition("#")
        path = {**ELSEWHERE, "docs/extending": "extending/index.md"}.get(path, path.removeprefix("docs/"))
        if not (path in ELSEWHERE.values() or (ROOT / "docs" / path).is_file()):
            return words
        return f"[{words}]({posixpath.relpath(path, posixpath.dirname(page) or '.')}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", relinked, text)


def _notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """(a page, its pictures)."""
    text, resources = nbconvert.MarkdownExporter().from_filename(str(path), resources={"unique_key": path.stem})
    return text.replace("![png](", "![what the cell above drew]("), resources["outputs"]


def _formula(found: re.Match[str]) -> str:
    text = html.unescape(found[2]).strip()
    shown = converter.convert(text[2:-2], display="block" if text.startswith(r"\[") else "inline")
    return shown.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim is an operator, with space around it
