"""From a caption's text to entities: the rules of the paper's captioner, without the defects of its parser."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from goca.data.classes import ClassTable
from goca.prompts.prompt import Entity

SEPARATOR = ", "
_WIDE = str.maketrans({"，": ",", "、": ",", "（": "(", "）": ")"})  # as Chinese and Japanese write them
BACKGROUND = "background"


def split(caption: str) -> list[str]:
    """The comma-separated parts of a caption; commas inside parentheses do not count, empty parts are dropped.

    >>> split("(person, clothes), dog,, sky")
    ['(person, clothes)', 'dog', 'sky']
    """
    parts, depth, part = [], 0, ""
    for character in caption:
        depth = max(0, depth + (character == "(") - (character == ")"))
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    return [stripped for part in (*parts, part) if (stripped := part.strip())]


def tidy(caption: str) -> str:
    """One line with regular spacing, so that every word can be matched to a class; authors' captions are used as they are.

    >>> tidy("( Cat,dog ) ,\\n sofa. ")
    '(Cat, dog), sofa.'
    """
    caption = re.sub(r"\s+", " ", caption.translate(_WIDE)).strip()
    caption = re.sub(r"\s*,[\s,]*", SEPARATOR, caption)
    return re.sub(r"\s+\)", ")", re.sub(r"\(\s+", "(", caption))


def parse(
    caption: str,
    table: ClassTable,
    allowed: Collection[int] | None = None,
    missing: Sequence[int] = (),
    background_token: bool = False,
    classes_first: bool = False,
) -> tuple[Entity, ...]:
    """The entities of a caption in prompt order, each placed in the text that `text_of` returns.

    Args:
        allowed: classes an entity may name; None allows all of the table.
        missing: classes appended where the caption does not name them, in this order.
        background_token: append ", background", a word for everything that is not an object.
        classes_first: move entities that name a class to the front, so that a token limit cuts others first.
    """
    caption = caption.removesuffix(".").lower() + (SEPARATOR + BACKGROUND if background_token else "")
    # Repeats are told by their source text, so "(car)" and "car" both stay, as in the authors' captioner.
    entities = list(dict(pair for part in split(caption) for pair in _entities(part, table, allowed)).values())
    named = {entity.class_id for entity in entities}
    entities += [Entity(table.words(i)[0], i) for i in missing if i not in named]
    if classes_first:
        entities.sort(key=lambda entity: entity.class_id is None)
    return place(entities)


def place(entities: Sequence[Entity]) -> tuple[Entity, ...]:
    """The same entities with the offsets they have in the text that joins them."""
    placed, start = [], 0
    for entity in entities:
        placed.append(Entity(entity.text, entity.class_id, start))
        start = placed[-1].end + len(SEPARATOR)
    return tuple(placed)


def text_of(entities: Sequence[Entity]) -> str:
    """The prompt that entities make."""
    return SEPARATOR.join(entity.text for entity in entities)


def _entities(part: str, table: ClassTable, allowed: Collection[int] | None) -> list[tuple[str, Entity]]:
    """Source text and entity. A parenthesised group that names two or more classes becomes these; other words are dropped."""
    text = part.translate({ord("("): None, ord(")"): None})
    if text == part:
        return [(part, Entity(text, _class_of(text, table, allowed)))]
    words = [(word, _class_of(word, table, allowed)) for word in text.split(SEPARATOR)]
    named = [(word, Entity(word, class_id)) for word, class_id in words if class_id is not None]
    if len(named) > 1:
        return named
    return [(part, Entity(text, named[0][1].class_id if named else None))]


def _class_of(word: str, table: ClassTable, allowed: Collection[int] | None) -> int | None:
    """The lowest allowed class that has exactly this synonym; upstream, a stray space as in "( cat, toy)" is not a match."""
    ids = table.id_of(word) if word == word.strip() else ()
    return next((i for i in ids if allowed is None or i in allowed), None)
