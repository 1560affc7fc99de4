"""Options every source of prompts shares: what is done with a caption before it becomes a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca.data.base import Sample, SegmentationDataset
from goca.data.classes import ClassTable
from goca.errors import DataError
from goca.prompts.align import align
from goca.prompts.caption import parse, tidy
from goca.prompts.prompt import Prompt, TextSegment


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Filters:
    """How a caption becomes a prompt.

    Args:
        ground_truth: keep only classes that are in the label; others count as background words.
        add_missing: append classes that are in the label and not in the caption.
        background_token: append ", background".
        classes_first: put words that name a class first, so that the token limit cuts others.
        tidy: make the spacing regular first; off for published captions, which are taken as they are.
    """

    ground_truth: bool = False
    add_missing: bool = False
    background_token: bool = False
    classes_first: bool = False
    tidy: bool = True

    def prompt(self, caption: str, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> Prompt:
        """The caption of a sample, aligned.

        Raises:
            DataError: where a filter needs the label of an image that has none.
        """
        present: tuple[int, ...] = ()
        if self.ground_truth or self.add_missing:
            present = present_classes(sample)
        entities = parse(
            tidy(caption) if self.tidy else caption,
            table,
            allowed=present if self.ground_truth else None,
            missing=present if self.add_missing else (),
            background_token=self.background_token,
            classes_first=self.classes_first,
        )
        return align(entities, segments)


def need_labels(dataset: SegmentationDataset, image_ids: Sequence[str] | None, option: str) -> None:
    """Refuse, before a model is loaded, an option that takes words from labels where the images have none.

    Raises:
        DataError: with what to use instead.
    """
    ids = dataset.image_ids if image_ids is None else image_ids
    if ids and not dataset.has_masks(ids[0]):
        raise DataError(
            f"{option} takes the words from the masks, and {dataset.name} has none; use prompts=vocabulary for all classes of "
            "the list, or captions (prompts=folder prompts.path=DIR)"
        )


def present_classes(sample: Sample | None) -> tuple[int, ...]:
    """Classes in the label, ascending, background left out."""
    if sample is None or sample.label is None:
        which = f"image {sample.image_id!r}" if sample is not None else "this image"
        raise DataError(
            f"{which} has no label, which `classes`, `ground_truth` and `add_missing` need; use prompts=vocabulary or a caption"
        )
    return sample.present
