"""Docstrings as the site shows them: doctests in fences, and the asterisk of `(*batch, T, F)` as itself.

In the sources they are plain text, for `help()` and for doctest; to Markdown `>>>` would be a quotation and `*` emphasis.
"""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = as_markdown(obj.docstring.value)
            if isinstance(obj, griffe.Function) and obj.returns:
                # Without it, what stands before the first colon of the section would be taken for the type.
                text = re.sub(r"^(Returns:\n +)", rf"\g<1>{obj.returns}: ", text, flags=re.MULTILINE)
            obj.docstring.value = text


def as_markdown(text: str) -> str:
    """The text of a docstring, cleaned of its indentation."""
    # An example reaches to the next empty line; what is indented, or between backticks, is code already.
    parts = re.split(r"(^>>> .*(?:\n.+)*)", text, flags=re.MULTILINE)
    parts[1::2] = [f"```pycon\n{example}\n```" for example in parts[1::2]]
    parts[::2] = [_prose(part) for part in parts[::2]]
    return re.sub(r"\n```\n\n```pycon\n", "\n\n", "".join(parts))


def _prose(text: str) -> str:
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    pieces = re.split(r"(`[^`]+`)", text)
    pieces[::2] = [piece.replace("*", r"\*") for piece in pieces[::2]]
    return "".join(pieces)
