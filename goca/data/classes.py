"""Tables of classes: what a class id is called, in prompts and in captions, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from goca.data.colours import Colour, distinct_colours
from goca.errors import ConfigError

Synonyms = Literal["corrected", "upstream"]
_TABLES = resources.files("goca.data") / "tables"


@dataclass(frozen=True)
class ClassTable:
    """The classes of one data set; every field is indexed by class id, and id 0 is the background.

    Attributes:
        names: the data set's own names, unique.
        synonyms: the lower-case words that mean the class in a caption; the first one is used in prompts. Empty for the
            background, and for classes that are merged into another one (COCO-Stuff 15 and 16).
        colours: RGB in 0 ... 255.
        things: whether the class is countable (an object) rather than stuff.
        asked: words by which prompts ask for the class; empty where the first synonym is the only one.
        background_words: words by which prompts ask for what is no class.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    colours: tuple[Colour, ...]
    things: tuple[bool, ...]
    asked: tuple[tuple[str, ...], ...] = ()
    background_words: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def load(cls, name: str | Path, synonyms: Synonyms = "corrected") -> ClassTable:
        """The table of a data set: `corrected` words, or the `upstream` ones with their slips, for parity.

        Args:
            name: one of `goca/data/tables`, or the path of such a file elsewhere.
            synonyms: which words.

        Raises:
            ConfigError: there is no such table or no such set of synonyms, or a file that is not a table.

        >>> table = ClassTable.load("voc")
        >>> table.names[11], table.synonyms[11][0], table.id_of("television"), table.id_of("sky")
        ('diningtable', 'dining table', (20,), ())
        """
        if synonyms not in ("corrected", "upstream"):
            raise ConfigError(f"synonyms must be 'corrected' or 'upstream', got {synonyms!r}")
        if isinstance(name, Path):
            return cls._from_rows(_read_rows(name), synonyms)
        file = _TABLES / f"{name}.yaml"
        if not file.is_file():
            known = sorted(entry.name.removesuffix(".yaml") for entry in _TABLES.iterdir() if entry.name.endswith(".yaml"))
            raise ConfigError(f"there is no class table {name!r}; tables: {', '.join(known)}")
        return cls._from_rows(yaml.safe_load(file.read_text(encoding="utf-8")), synonyms)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> ClassTable:
        """A table of a user's classes, ids from 1 in the order given; `"cat, kitten"` gives a class synonyms.

        Raises:
            ConfigError: the list is empty, a name is blank, or a word means two classes.

        >>> ClassTable.from_names(["Cat, kitten", "grass"]).synonyms
        ((), ('cat', 'kitten'), ('grass',))
        """
        rows: list[Mapping[str, Any]] = [{"name": "background"}]
        for position, entry in enumerate(names, start=1):
            words = [word.strip() for word in str(entry).split(",")]
            if not all(words):
                raise ConfigError(f"class {position} of the class list has no name or an empty synonym: {entry!r}")
            rows.append({"name": words[0], "words": [word.lower() for word in words]})
        if len(rows) == 1:
            raise ConfigError("the class list is empty; give at least one class name")
        table = cls._from_rows(rows, "corrected")
        repeated = sorted(word for word, ids in table._ids.items() if len(ids) > 1)
        if repeated:
            raise ConfigError(f"the class list gives a word to two classes: {', '.join(repeated)}")
        return table

    @classmethod
    def _from_rows(cls, rows: list[Mapping[str, Any]], synonyms: Synonyms) -> ClassTable:
        generated = ((0, 0, 0), *distinct_colours(len(rows) - 1))
        return cls(
            names=tuple(row["name"] for row in rows),
            synonyms=tuple(
                tuple(row["upstream"] if synonyms == "upstream" and "upstream" in row else row.get("words", ())) for row in rows
            ),
            colours=tuple(tuple(row.get("colour", generated[i])) for i, row in enumerate(rows)),
            things=tuple(bool(row.get("thing", False)) for row in rows),
        )

    @cached_property
    def _ids(self) -> dict[str, tuple[int, ...]]:
        ids: dict[str, tuple[int, ...]] = {}
        for class_id, words in enumerate(self.synonyms):
            for word in dict.fromkeys(words):
                ids[word] = (*ids.get(word, ()), class_id)
        return ids

    def words(self, class_id: int) -> tuple[str, ...]:
        """The words by which prompts ask for a class; none for one that is not asked for."""
        return self.asked[class_id] if self.asked else self.synonyms[class_id][:1]

    def id_of(self, word: str) -> tuple[int, ...]:
        """Ids of the classes that have exactly this synonym, ascending; several where the word is ambiguous."""
        return self._ids.get(word.strip().lower(), ())

    def class_named(self, word: str) -> int | None:
        """The class that is meant where classes are chosen by name: that of this very name, else the first with this synonym.

        >>> table = ClassTable.load("ade20k")
        >>> [table.names[table.class_named(word)] for word in ("screen", "screen door", "silver screen")]
        ['screen', 'screen door', 'screen']
        """
        wanted = word.strip().lower()
        named = [i for i, name in enumerate(self.names) if name.lower() == wanted and self.words(i)]
        return next(iter((*named, *self.id_of(word))), None)


def _read_rows(file: Path) -> list[Mapping[str, Any]]:
    """The rows of a user's table, each with a name and the background first."""

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"the class table {file} {what}")

    try:
        rows = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise wrong(f"cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
        raise wrong("should be a list of rows such as {name: car, words: [car, cars]}, the background first")
    for row in rows:
        name, words, colour = row["name"], row.get("words", []), row.get("colour", [0, 0, 0])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise wrong(f"gives {name} the words {words!r}; they should be a list of words")
        if not (isinstance(colour, list) and len(colour) == 3 and all(isinstance(part, int) for part in colour)):
            raise wrong(f"gives {name} the colour {colour!r}; it should be [red, green, blue]")
    names = [row["name"] for row in rows]
    if len(rows) < 2 or len(set(names)) < len(names) or rows[0].get("words"):
        raise wrong("needs a background without words as its first row and at least one class, each name once")
    return rows
