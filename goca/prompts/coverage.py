"""How well a set of captions covers the classes of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.prompts.caption import parse, tidy
from goca.prompts.prompt import Prompt


def mentioned_classes(caption: str, table: ClassTable) -> frozenset[int]:
    """Every class a caption names, whatever its image shows."""
    return frozenset(entity.class_id for entity in parse(tidy(caption), table) if entity.class_id is not None)


@dataclass
class Coverage:
    """Counts over images; an image without a label is left out of `present`, `missed` and `hallucinated`.

    Attributes:
        images, labelled, without_prompt, with_warning: numbers of images.
        mentioned, present, missed, hallucinated, lost: class id -> number of images. Missed classes are in the label and not
            in the caption, hallucinated ones the reverse; lost ones fell off the token limit.
    """

    images: int = 0
    labelled: int = 0
    without_prompt: int = 0
    with_warning: int = 0
    mentioned: Counter[int] = field(default_factory=Counter)
    present: Counter[int] = field(default_factory=Counter)
    missed: Counter[int] = field(default_factory=Counter)
    hallucinated: Counter[int] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)

    def add(self, sample: Sample, caption: str | None, prompts: Sequence[Prompt], table: ClassTable) -> frozenset[int]:
        """Count one image and return the classes it misses; without a caption, those of the prompts count as mentioned."""
        if caption is not None:
            mentioned = mentioned_classes(caption, table)
        else:
            mentioned = frozenset(i for prompt in prompts for i in (*prompt.class_tokens, *prompt.lost_classes))
        present = frozenset(sample.present)
        self.images += 1
        self.without_prompt += not prompts
        self.with_warning += any(prompt.warnings for prompt in prompts)
        self.mentioned.update(mentioned)
        self.lost.update(i for prompt in prompts for i in prompt.lost_classes)
        if sample.label is None:
            return frozenset()
        self.labelled += 1
        self.present.update(present)
        self.missed.update(present - mentioned)
        self.hallucinated.update(mentioned - present)
        return present - mentioned

    def summary(self, table: ClassTable) -> dict[str, Any]:
        """Totals, and class names with their counts, most frequent first."""
        classes = {name: getattr(self, name) for name in ("mentioned", "present", "missed", "hallucinated", "lost")}
        return {
            "images": self.images,
            "labelled": self.labelled,
            "without_prompt": self.without_prompt,
            "with_warning": self.with_warning,
            **{name: counts.total() for name, counts in classes.items()},
            "by_class": {name: {table.names[i]: n for i, n in counts.most_common()} for name, counts in classes.items()},
        }
