"""For the pages of the API: examples in docstrings (`>>>`) are code."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(^|\n)([ \t]*)(>>> .*?)(?=\n[ \t]*\n|\Z)", re.DOTALL)


def fenced(text: str) -> str:
    """The docstring with a fence around each doctest."""
    return _EXAMPLE.sub(lambda m: f"{m[1]}{m[2]}```pycon\n{m[2]}{m[3].rstrip()}\n{m[2]}```", text)


class Doctests(griffe.Extension):
    """Applies `fenced` to every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
