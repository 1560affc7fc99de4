"""Class names as prompts: every word that a class is asked for by, and those of the background, in as few prompts as fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from goca.data.classes import ClassTable
from goca.prompts.align import align, fits
from goca.prompts.caption import BACKGROUND, place, text_of
from goca.prompts.prompt import Entity, Prompt, TextSegment

Word = tuple[int | None, str]  # class id, None for the background; text
Part = Sequence[Word]


def words_of(ids: Sequence[int], table: ClassTable) -> list[Word]:
    """All words of these classes, in their order."""
    return [(class_id, word) for class_id in ids for word in table.words(class_id)]


def names_prompt(words: Part, segments: Sequence[TextSegment], background_token: bool) -> Prompt:
    """One prompt that lists words; several words of a class are kept apart, for its score is their maximum."""
    return align(_entities(words, background_token), segments, apart=True)


def names_prompts(
    words: Part, background: Sequence[str], segments: Sequence[TextSegment], background_token: bool
) -> tuple[Prompt, ...]:
    """As few prompts as the token limit allows, equally long where possible.

    A class that is left over, alone in its prompt, has none to compete with. Words of the background are dealt out to all
    prompts, so that classes compete with some of them wherever they are.
    """

    def fit(part: Part) -> bool:
        return fits(text_of(_entities(part, background_token)), segments)

    parts = _dealt(words, [(None, word) for word in background], fit) if background else _cut(words, fit)
    return tuple(names_prompt(part, segments, background_token) for part in parts)


def _entities(words: Part, background_token: bool) -> tuple[Entity, ...]:
    entities = [Entity(text, class_id) for class_id, text in words]
    return place([*entities, Entity(BACKGROUND)] if background_token else entities)


def _cut(words: Part, fit: Callable[[Part], bool]) -> list[Part]:
    """Consecutive words, as many prompts as it takes when each is filled, cut evenly where the even parts fit too."""
    filled = _filled(words, fit)
    even = _even(words, len(filled)) if filled else []
    return even if all(map(fit, even)) else filled


def _dealt(words: Part, background: Part, fit: Callable[[Part], bool]) -> list[Part]:
    """An even part of the classes' words and of the background's in each prompt."""
    everything = [*words, *background]
    filled = _filled(everything, fit)
    for count in range(len(filled), len(everything)):
        parts: list[Part] = [
            [*some, *others] for some, others in zip(_even(words, count), _even(background, count), strict=True)
        ]
        if all(map(fit, parts)):
            return parts
    return filled


def _filled(words: Part, fit: Callable[[Part], bool]) -> list[Part]:
    parts: list[Part] = []
    for word in words:
        if parts and fit((*parts[-1], word)):
            parts[-1] = (*parts[-1], word)
        else:
            parts.append((word,))
    return parts


def _even(words: Part, count: int) -> list[Part]:
    bounds = [len(words) * k // count for k in range(count + 1)]
    return [words[start:stop] for start, stop in pairwise(bounds)]
