"""Lists of class names as the field writes them: one class a line, with all the words it is asked for by.

The first line may hold words for the background. Lines follow mmsegmentation's order of the classes, words are separated by
`; ` or `, `. The lists of other papers' code are in `names/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import yaml

from goca.data.classes import ClassTable
from goca.data.image_lists import read_lines
from goca.errors import ConfigError, DataError

OWN = "dataset"  # the words of the class table
SHIPPED = ("sclip", "proxyclip")
_ELSE = {"proxyclip": "sclip"}  # whose lists are the same where it has none of its own
_BACKGROUND = {"voc": "sclip", "coco_object": "corrclip"}  # the words of a table that names none, by `background.yaml`
_FOLDER = resources.files("goca.data") / "names"


@dataclass(frozen=True)
class NameList:
    """The words of each class, in mmsegmentation's order of them, and those of the background, where it has any."""

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()


def worded(
    table: ClassTable,
    table_name: str,
    names: str = OWN,
    background_words: str | Sequence[str] | None = None,
    order: Sequence[int] = (),
    has_background: bool = True,
) -> ClassTable:
    """The class table with the words that a list asks for.

    Args:
        table_name: by which lists are kept.
        names: `dataset`, the table's own; one of `SHIPPED`; or the path of a file.
        background_words: words of the background, or by whose code; None takes those of the list of names, else the usual ones.
        order: ids of the classes in the order of the list's lines; empty for ascending ids.
        has_background: whether the background competes; if not, it has no words.

    Raises:
        ConfigError: there is no such list, or it does not fit the classes.
    """
    ids = tuple(order) or tuple(range(1, len(table)))
    background: tuple[str, ...] = ()
    if names != OWN:
        listed = _listed(names, table_name, len(ids))
        _check_order(listed, table, ids, names)
        asked: list[tuple[str, ...]] = [()] * len(table)
        for class_id, words in zip(ids, listed.classes, strict=True):
            if table.synonyms[class_id]:  # a class that is merged into another one is in no label
                asked[class_id] = words
        table, background = replace(table, asked=tuple(asked)), listed.background
    if not has_background:
        return table
    return replace(table, background_words=_background(background_words, background, table_name))


def parse(lines: Sequence[str], source: str, classes: int) -> NameList:
    """The list that these lines are.

    Args:
        source: for messages.
        classes: how many there are; one line more is that of the background.

    Raises:
        ConfigError: another number of lines, or an empty one.

    >>> parse(["sky; wall", "cat", "dog; puppy"], "list", 2)
    NameList(classes=(('cat',), ('dog', 'puppy')), background=('sky', 'wall'))
    >>> parse(["cat, kitten", "dog"], "list", 2).classes
    (('cat', 'kitten'), ('dog',))
    """
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    if len(lines) not in (classes, classes + 1):
        raise ConfigError(
            f"{source} has {len(lines)} lines; it should have one for each of the {classes} classes, in the order that "
            f"mmsegmentation has, or {classes + 1} with words for the background first"
        )
    words = [_words(line, number, source) for number, line in enumerate(lines, start=1)]
    first = len(lines) - classes
    return NameList(tuple(words[first:]), words[0] if first else ())


def _words(line: str, number: int, source: str) -> tuple[str, ...]:
    words = [word.strip() for word in line.split(";" if ";" in line else ",")]
    if not all(words):
        raise ConfigError(f"line {number} of {source} has no word, or an empty one: {line.strip()!r}")
    return tuple(dict.fromkeys(words))


def _listed(names: str, table_name: str, classes: int) -> NameList:
    for name in dict.fromkeys((names, _ELSE.get(names, names))) if names in SHIPPED else ():
        file = _FOLDER / name / f"{table_name}.txt"
        if file.is_file():
            return parse(file.read_text(encoding="utf-8").splitlines(), f"{name}/{table_name}.txt", classes)
    if names in SHIPPED:
        known = sorted(entry.name.removesuffix(".txt") for entry in (_FOLDER / "sclip").iterdir())
        raise ConfigError(f"dataset.names={names} has no list for {table_name}; it has those of {', '.join(known)}")
    path = Path(names)
    if not path.is_file():
        raise ConfigError(f"dataset.names should be {OWN}, {', '.join(SHIPPED)} or a file of names; there is no file {names}")
    try:
        return parse(read_lines(path), names, classes)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _check_order(listed: NameList, table: ClassTable, ids: Sequence[int], source: str) -> None:
    """Refuse a list in another order: a line that names another class of the table, and not its own.

    Raises:
        ConfigError: with both.
    """
    by_name = {_plain(name): i for i, name in enumerate(table.names)}
    for number, (class_id, words) in enumerate(zip(ids, listed.classes, strict=True), start=1):
        own = {_plain(word) for word in (table.names[class_id], *table.synonyms[class_id])}
        other = by_name.get(_plain(words[0]))
        if other not in (None, class_id) and own.isdisjoint(map(_plain, words)):
            right, order = table.names[class_id], ", ".join(table.names[i] for i in ids[:8])
            raise ConfigError(
                f"{source}: class {number} of the list is {words[0]!r} where {right!r} belongs; lines follow the order that "
                f"mmsegmentation has: {order}{', ...' if len(ids) > 8 else ''}"
            )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _background(chosen: str | Sequence[str] | None, listed: tuple[str, ...], table_name: str) -> tuple[str, ...]:
    """The background's words: those chosen, else those of the list of names, else the table's usual, else its name."""
    if chosen is not None and not isinstance(chosen, str):
        if not all(word.strip() for word in chosen):
            raise ConfigError("dataset.background_words holds an empty word")
        return tuple(dict.fromkeys(word.strip() for word in chosen))
    if chosen is None and listed:
        return listed
    lists = yaml.safe_load((_FOLDER / "background.yaml").read_text(encoding="utf-8"))
    if chosen is None:
        return tuple(lists[_BACKGROUND[table_name]]) if table_name in _BACKGROUND else ("background",)
    if chosen not in lists:
        known = ", ".join(lists)
        raise ConfigError(f"dataset.background_words should be a list such as [sky,wall], or one of {known}; got {chosen!r}")
    return tuple(lists[chosen])
