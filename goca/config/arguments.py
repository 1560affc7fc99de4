"""Command lines that people type without knowing Hydra's grammar, put into that grammar; and Hydra's parser of options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path


def literal(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """The arguments with the values of `keys` quoted, so that commas and brackets in them stay text.

    >>> literal(["prompt=(cat, fur), grass", "seed=1"], ["prompt"])
    ['prompt="(cat, fur), grass"', 'seed=1']
    """
    return [_quoted(argument) if argument.partition("=")[0] in keys else argument for argument in arguments]


def words_as_text(arguments: Sequence[str]) -> list[str]:
    """`words=cat, grass` as people type it: a list where an image is given, else other words that a drawing is read by.

    >>> words_as_text(["image=a.jpg", "words=cat, grass"])
    ['image=a.jpg', 'words=["cat","grass"]']
    >>> words_as_text(["prompt=a cat", "words=fur, grass"])
    ['prompt=a cat', 'reads=fur, grass']
    >>> words_as_text(["words=[cat]"])
    ['words=[cat]']
    """
    drawn = not any(argument.startswith("image=") for argument in arguments)

    def put(argument: str) -> str:
        key, _, value = argument.partition("=")
        if key != "words" or not value or value[0] in "[$":
            return argument
        listed = ",".join(quote(word.strip()) for word in value.strip("\"'").split(",") if word.strip())
        return f"reads={value}" if drawn else f"words=[{listed}]"

    return [put(argument) for argument in arguments]


def folders_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with bare folder names gathered into `runs=[...]`.

    >>> folders_first(["outputs/a", "title=x", "outputs/b"])
    ['title=x', 'runs=["outputs/a","outputs/b"]']
    """

    def is_folder(argument: str) -> bool:
        return not argument.startswith("-") and ("=" not in argument or Path(argument).exists())

    folders = [quote(argument) for argument in arguments if is_folder(argument)]
    others = [argument for argument in arguments if not is_folder(argument)]
    return [*others, f"runs=[{','.join(folders)}]"] if folders else others


def quote(text: str) -> str:
    """A text as one of Hydra's quoted strings; there a backslash escapes only quotes and backslashes before one.

    >>> print(quote('a "b"'))
    "a \\"b\\""
    """
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), text) + '"'


def late_help(make: Callable[[], argparse.ArgumentParser]) -> Callable[[], argparse.ArgumentParser]:
    """`make` without a look at the options' help texts, of which Hydra makes one only when it is shown.

    From Python 3.14 on, argparse looks at each when the option is added, and every command of Hydra 1.3.8 ends there (Hydra's
    issue 3121).
    """

    @wraps(make)
    def parser() -> argparse.ArgumentParser:
        argparse.ArgumentParser._check_help = lambda *_: None  # type: ignore[attr-defined]  # covers the inherited one
        try:
            return make()
        finally:
            del argparse.ArgumentParser._check_help  # type: ignore[attr-defined]

    return parser


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    already = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return argument if already or value == "???" else f"{key}{equals}{quote(value)}"
