"""What a person typed: checked, and where it is a sentence, the words in it that name something to look for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from goca.data.classes import ClassTable
from goca.errors import ConfigError
from goca.prompts.align import align
from goca.prompts.caption import BACKGROUND
from goca.prompts.prompt import Entity, Prompt, TextSegment

# Words of a sentence that name nothing to look for.
_FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "and", "or", "of", "on", "in", "at", "by", "to", "with", "without", "from", "under", "over"),
        *("above", "below", "near", "beside", "behind", "between", "into", "onto", "is", "are", "this", "that", "these"),
        *("those", "its", "their", "his", "her", "some", "very"),
    )
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_LEFT_OUT = "'background' is not looked for: it is what belongs to none of the words"
_SHOWN = 8  # words named in one note
_LISTING = ",(（，、"  # marks of a caption; the wide ones are those of Chinese and Japanese


def is_caption(text: str) -> bool:
    """Whether a text is words joined by commas, and no sentence."""
    return any(mark in text for mark in _LISTING)


def check_text(text: Any) -> str:
    """A text that names at least something, with its brackets closed.

    Raises:
        ConfigError: it is none, and why.
    """
    if not isinstance(text, str):
        raise ConfigError(f"words are given as text, or as a list of names; got {text!r:.80}")
    if not any(map(str.isalnum, text)):
        raise ConfigError(f"the prompt {text!r:.80} names nothing to look for; give at least one noun")
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth < 0:
            raise ConfigError(f"the prompt {text!r} closes a bracket at character {place + 1} that was not opened")
    if depth:
        raise ConfigError(f"the prompt {text!r} opens a bracket that it does not close; write (person, clothes), dog")
    return text


def check_names(names: Iterable[Any]) -> list[str]:
    """Class names that can be looked for, each once.

    Raises:
        ConfigError: one is not text, or is what stands for everything else.
    """
    if names is None or not isinstance(names, Iterable):
        raise ConfigError(f"words are given as text, or as a list of names; got {names!r}")
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise ConfigError(f"words are given as text, or as a list of names; the list holds {name!r:.80}")
        if name.strip().lower() == BACKGROUND:
            raise ConfigError(
                f"'{name.strip()}' cannot be looked for: it is what belongs to none of the words, id 0 of every result. Leave "
                "it out, and pass a threshold for it, such as background=0.2"
            )
    return list(dict.fromkeys(found))


def from_sentence(sentence: str, segments: Sequence[TextSegment], words: Sequence[str] = ()) -> tuple[ClassTable, Prompt]:
    """A prompt that is a sentence, with some of its words as classes.

    Args:
        words: of the sentence; none takes every content word. The word "background" is then left out, and a warning says so:
            in a description of a picture it is a word like others, and asks for nothing.

    Raises:
        ConfigError: no content word, or a word that the sentence does not contain.
    """
    found = _places(check_text(sentence), check_names(words)) if words else _content(check_text(sentence))
    if not found:
        raise ConfigError(f"the prompt {sentence!r} names nothing to look for; give at least one noun")
    table = ClassTable.from_names(check_names(text.lower() for text, _ in found))
    entities = [Entity(text, table.id_of(text)[0], start) for text, start in found]
    prompt = align(entities, segments, text=sentence)
    if not words and speaks_of_background(sentence):
        prompt = replace(prompt, warnings=(*prompt.warnings, _LEFT_OUT))
    return table, prompt


def speaks_of_background(sentence: str) -> bool:
    """Whether a sentence has the word, which stands for what belongs to none of the others."""
    return any(match[0].lower() == BACKGROUND for match in _WORD.finditer(sentence))


def content_words(sentence: str) -> list[str]:
    """The words of a sentence that may name something.

    >>> content_words("A cat on the grass")
    ['cat', 'grass']
    """
    return [word for word, _ in _content(sentence)]


def note(table: ClassTable) -> str:
    """What to tell about a text that was taken for a sentence."""
    return (
        f"read as a sentence, in which {quoted(table.names[1:])} are looked for; "
        "put commas between names, or give a list, where a name has several words"
    )


def quoted(names: Sequence[str]) -> str:
    """The first few names.

    >>> quoted(["cat", "dog"]), quoted(list("abcdefghij"))
    ("'cat', 'dog'", "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h' and 2 more")
    """
    rest = len(names) - _SHOWN
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def occurrences(sentence: str, words: Sequence[str]) -> Mapping[str, list[tuple[str, int]]]:
    """Word -> (text, offset) of each place where the sentence has it as a whole. The longest word owns a place.

    >>> occurrences("red circle and a circle", ["circle", "red circle", "dog"])
    {'circle': [('circle', 17)], 'red circle': [('red circle', 0)], 'dog': []}
    """
    found: dict[str, list[tuple[str, int]]] = {word: [] for word in words}
    owned: set[int] = set()  # characters
    for word in sorted(found, key=len, reverse=True):
        if not word.strip():
            continue
        for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", sentence, re.IGNORECASE):
            if owned.isdisjoint(range(*match.span())):
                found[word].append((match[0], match.start()))
        owned.update(place for text, start in found[word] for place in range(start, start + len(text)))
    return found


def _content(sentence: str) -> list[tuple[str, int]]:
    """(text, offset) of a sentence's content words."""
    nothing = {*_FUNCTION_WORDS, BACKGROUND}
    return [(match[0], match.start()) for match in _WORD.finditer(sentence) if match[0].lower() not in nothing]


def _places(sentence: str, words: Sequence[str]) -> list[tuple[str, int]]:
    """(text, offset) of the given words in a sentence."""
    words = list({word.lower(): word for word in words}.values())  # a list may name one twice
    found = occurrences(sentence, words)
    for word, places in found.items():
        if not places:
            longer = [other for other in found if found[other] and occurrences(sentence, [word])[word]]
            within = f" besides in {quoted([other for other in longer if word.lower() in other.lower()] or longer)}"
            raise ConfigError(f"the prompt {sentence!r} does not contain the word {word!r}{within if longer else ''}")
    return sorted((place for places in found.values() for place in places), key=lambda place: place[1])
