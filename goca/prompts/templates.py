"""Prompts around class names, as other methods word them: a sentence, a prompt per class, none at all, or concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca.data.base import Sample, SegmentationDataset
from goca.data.classes import ClassTable
from goca.prompts.align import align, fits
from goca.prompts.emphasis import Emphasis, class_positions
from goca.prompts.filters import present_classes
from goca.prompts.prompt import Entity, Prompt, TextSegment

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
Names = Literal["present", "all"]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Template:
    """Class names with words before, between and after them.

    Args:
        names: the classes in the label (an oracle), or all of the data set.
        before, between, after: text around the names.
        each: a prompt, and so a forward, for every class.
        emphasis: how the class tokens' embeddings change after the text encoder.
        reads: the text whose tokens are read off the image's queries, in place of the one the model sees: `names` is the bare
            list, joined by commas (only where attention to text is a layer of its own).
    """

    names: Names = "present"
    before: str = ""
    between: str = ", "
    after: str = ""
    each: bool = False
    emphasis: Emphasis | None = None
    reads: Literal["prompt", "names"] = "prompt"

    def __post_init__(self) -> None:
        if self.emphasis and self.reads == "names":
            raise ValueError("emphasis changes words of the text that the model sees, and reads=names reads those of another")

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """Nothing to read."""

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        """One prompt, one per class, or as many as the token limit asks for."""
        ids = named_classes(self.names, sample, table)
        chunks = [(i,) for i in ids] if self.each else self._chunks(ids, table, segments)
        return tuple(self._prompt(chunk, table, segments) for chunk in chunks)

    def describe(self) -> dict[str, Any]:
        return {"source": "template", "ground_truth": self.names == "present", **asdict(self)}

    def _prompt(self, ids: Sequence[int], table: ClassTable, segments: Sequence[TextSegment]) -> Prompt:
        text, entities = self._worded(ids, table)
        if self.reads == "prompt":
            prompt = align(entities, segments, text)
        else:
            bare, listed = replace(self, before="", between=", ", after="")._worded(ids, table)
            prompt = replace(align(listed, segments, bare), text=text, reads=bare)
        if self.emphasis is None:
            return prompt
        last = self.emphasis.words == "last"
        louder = align([_last_word(entity) for entity in entities], segments, text) if last else prompt
        return replace(prompt, emphasis=self.emphasis, emphasised=class_positions(louder.class_tokens))

    def _worded(self, ids: Sequence[int], table: ClassTable) -> tuple[str, tuple[Entity, ...]]:
        """The text, and the names' places in it."""
        text, entities = self.before, []
        for number, i in enumerate(ids):
            text += self.between if number else ""
            word = table.words(i)[0]
            entities.append(Entity(word, i, len(text)))
            text += word
        return text + self.after, tuple(entities)

    def _chunks(self, ids: Sequence[int], table: ClassTable, segments: Sequence[TextSegment]) -> list[tuple[int, ...]]:
        chunks: list[tuple[int, ...]] = []
        for i in ids:
            if chunks and fits(self._worded((*chunks[-1], i), table)[0], segments):
                chunks[-1] = (*chunks[-1], i)
            else:
                chunks.append((i,))
        return chunks


def _last_word(entity: Entity) -> Entity:
    word = entity.text.split()[-1]
    return Entity(word, entity.class_id, entity.end - len(word))


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Unprompted:
    """The empty prompt, for methods that find segments and do not name them."""

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """Nothing to read."""

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        return (align((), segments, ""),)

    def describe(self) -> dict[str, Any]:
        return {"source": "unprompted", "ground_truth": False}


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Concepts:
    """Classes and distractors as concepts that read the image (aggregation=concepts); the model itself sees a caption of names.

    Args:
        names: the classes in the label (an oracle), or all of the data set.
        distractors: words that take what is not a class; together they are the background.
        before: words before the names in the caption.
    """

    names: Names = "present"
    distractors: tuple[str, ...] = ("background", "floor", "grass", "tree", "sky")
    before: str = "a "

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """Nothing to read."""

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        """One prompt whose positions are concepts, not tokens of its text."""
        ids = named_classes(self.names, sample, table)
        if not ids:
            return ()
        words = [table.words(i)[0] for i in ids]
        further = [word for word in self.distractors if word not in words]
        return (
            Prompt(
                text=self.before + ", ".join(words),
                tokens=(*words, *further),
                class_tokens={i: (place,) for place, i in enumerate(ids)},
                background_groups=tuple((place,) for place in range(len(words), len(words) + len(further))),
                concepts=(*words, *further),
            ),
        )

    def describe(self) -> dict[str, Any]:
        return {"source": "concepts", "ground_truth": self.names == "present", **asdict(self)}


def named_classes(names: Names, sample: Sample | None, table: ClassTable) -> tuple[int, ...]:
    """Ids of the classes in the label, or of all classes with a word."""
    if names == "present" and sample is not None:
        return tuple(present_classes(sample))
    return tuple(i for i, synonyms in enumerate(table.synonyms) if synonyms)
