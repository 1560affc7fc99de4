"""What the rest of the program sees of a prompt: its text and which positions of the text axis stand for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from goca.prompts.emphasis import Emphasis
from goca.prompts.segments import TextSegment

__all__ = ["Entity", "Prompt", "TextSegment"]

Across = Literal["each", "joint", "sink", "anchor"]


@dataclass(frozen=True)
class Entity:
    """A noun or a parenthesised group of the caption, with its place in the prompt's text.

    Args:
        text: the words as they stand in the prompt, without parentheses.
        class_id: the class it names, or None where it belongs to the background.
        start: offset of its first character in the prompt's text.
    """

    text: str
    class_id: int | None = None
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class Prompt:
    """A text for the backbone and the meaning of each position of the text axis.

    Args:
        text: what the text encoders receive.
        tokens: one readable string per position of the text axis.
        class_tokens: class id -> positions, in the order in which the prompt first names the classes; never empty tuples.
        background_groups: positions of each entity that names no class.
        special: kind ("start", "end", "padding", and "template" for what a chat template adds) -> positions.
        lost_classes: classes the prompt names whose tokens all lie beyond the token limit, or that no token covers.
        warnings: what a reader of the results should know about this prompt.
        entities: the parts the text is made of.
        emphasis: how embeddings change before the denoiser sees them, at the positions `emphasised`.
        emphasised: positions on the axis of `text`.
        reads: a text whose tokens are read in place of the prompt's; positions are then those of this text.
        across: how the prompt stands to others of the same image: `each` is calibrated by itself; `joint`, `sink` and `anchor`
            share the rescaling of every pixel (`goca.method.across`).
        alternatives: class id -> positions of each of its words, where several are scored apart; its score is their maximum.
        concepts: words that a concept stream takes along; positions are then numbers of these words.
    """

    text: str
    tokens: tuple[str, ...]
    class_tokens: Mapping[int, tuple[int, ...]]
    background_groups: tuple[tuple[int, ...], ...] = ()
    special: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lost_classes: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    entities: tuple[Entity, ...] = ()
    emphasis: Emphasis | None = None
    emphasised: tuple[int, ...] = ()
    reads: str | None = None
    concepts: tuple[str, ...] = ()
    across: Across = "each"
    alternatives: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @cached_property
    def content(self) -> tuple[int, ...]:
        """Positions of every class and background group, ascending: what the per-pixel rescaling divides by."""
        return tuple(sorted({p for group in (*self.class_tokens.values(), *self.background_groups) for p in group}))

    def __str__(self) -> str:
        """A table: the text, then a row per class, background group and kind of special token."""
        rows = [(f"class {i}", positions, self._words(positions)) for i, positions in self.class_tokens.items()]
        rows += [(f"class {i}", (), "lost") for i in self.lost_classes]
        rows += [("background", positions, self._words(positions)) for positions in self.background_groups]
        rows += [(kind, positions, self.tokens[positions[0]]) for kind, positions in self.special.items()]
        lines = [self.text, *(f"  {name:<12} {_ranges(positions) or '-':<14} {words}" for name, positions, words in rows)]
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])

    def _words(self, positions: tuple[int, ...]) -> str:
        return " ".join(self.tokens[p] for p in positions)


def _ranges(positions: tuple[int, ...]) -> str:
    """Positions with runs shortened.

    >>> _ranges((1, 2, 3, 7))
    '1-3,7'
    """
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
