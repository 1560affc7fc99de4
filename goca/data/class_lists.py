"""Lists of classes as people and annotation tools write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from goca.errors import ConfigError

_BACKGROUND = ("background", "_background_", "__background__")
_IGNORE = ("__ignore__", "_ignore_", "ignore", "void", "unlabeled", "unlabelled")
_NUMBER_FIRST = re.compile(r"(\d+)\s*[\s:.,;=)]\s*(.*\S)")
_NUMBER_LAST = re.compile(r"(\S.*?)\s*[\s:,;=]\s*(\d+)")


@dataclass(frozen=True)
class ClassList:
    """The classes from id 1 on, each `name` or `name, synonym, ...`; their source, and what was understood in reading."""

    names: tuple[str, ...]
    source: str
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, lines: Iterable[str], source: str) -> ClassList:
        """The list as it is meant: entries may be numbered, and 0 may be named as background before them.

        Raises:
            ConfigError: an entry that is not a class where masks could not tell, or numbers that do not count the classes.

        >>> ClassList.read(["__ignore__", "_background_", "cat", "dog"], "labels.txt").names
        ('cat', 'dog')
        >>> ClassList.read(["0: background", "1: cat", "2: dog"], "labels.txt").names
        ('cat', 'dog')
        """
        entries = [str(line).strip() for line in lines if str(line).strip()]
        entries, remarks = _without_numbers(entries, source)
        if entries and _first_word(entries[0]) == "__ignore__":  # labelme's -1, which its masks store as 255
            if len(entries) < 2 or _first_word(entries[1]) not in _BACKGROUND:
                raise ConfigError(f"{source} begins with __ignore__, but _background_ does not follow; list the classes alone")
            entries = entries[1:]
        if entries and _first_word(entries[0]) in _BACKGROUND:
            remarks.append(f"{source} begins with {entries[0]}: it is taken as 0 in the masks, and the next entry as 1")
            entries = entries[1:]
        for entry in entries:
            if _first_word(entry) in (*_BACKGROUND, *_IGNORE):
                raise ConfigError(
                    f"{source} names {entry!r} as a class; masks store 0 for what is not a class and 255 for void: list the "
                    "classes alone, or background as the first entry"
                )
        return cls(tuple(entries), source, tuple(remarks))


def _without_numbers(entries: Sequence[str], source: str) -> tuple[list[str], list[str]]:
    """Entries without numbers that count them, and a remark; numbers that do not are refused."""
    for pattern, number, name in ((_NUMBER_FIRST, 1, 2), (_NUMBER_LAST, 2, 1)):
        matches = [pattern.fullmatch(entry) for entry in entries]
        if len(entries) < 2 or not all(matches):
            continue
        numbers = [int(match[number]) for match in matches if match]
        names = [match[name].strip() for match in matches if match]
        if numbers == list(range(1, len(names) + 1)):
            return names, [f"the numbers of the entries of {source} were left out"]
        if numbers == list(range(len(names))) and _first_word(names[0]) in _BACKGROUND:
            return names, [f"the numbers of the entries of {source} were left out"]
        raise ConfigError(
            f"every entry of {source} has a number, such as {entries[0]!r}, and they do not count the classes from 1 (or from "
            "0 with background first); list one class per line, in the order of the ids in the masks"
        )
    return list(entries), []


def _first_word(entry: str) -> str:
    return entry.split(",")[0].strip().lower()
