"""What a run leaves behind, as typed data: a record per image, what was evaluated, and the summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from goca.errors import DataError

SCHEMA = 1  # of summary.json; rises when a key changes its meaning
NO_THRESHOLD = "none"  # key of results that compare no class with a background


class Keyed(Mapping[str, Any]):
    """Typed fields in code that are also a mapping by the keys of the file they are kept in."""

    @cached_property
    def json(self) -> dict[str, Any]:
        """What the file holds."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {part.name: getattr(self, part.name) for part in fields}

    def __getitem__(self, key: str) -> Any:
        return self.json[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.json)

    def __len__(self) -> int:
        return len(self.json)

    @classmethod
    def _read(cls, content: Mapping[str, Any], what: str) -> dict[str, Any]:
        """The arguments of the constructor among the keys of a file; raises DataError where one is missing."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        needed = [part for part in fields if part.default is part.default_factory is dataclasses.MISSING]
        missing = [part.name for part in needed if part.name not in content]
        if missing:
            raise DataError(f"written by another version ({what} lacks {', '.join(missing)}); run it again")
        return {part.name: content[part.name] for part in fields if part.name in content}


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRecord(Keyed):
    """One line of records.jsonl.

    Args:
        image_id: of the data set.
        index: position in the data set.
        seed: with the image id it determined the noise.
        error: why the image has no result; None where it has one.
        prompts: texts, one forward each.
        classes: ids that competed.
        lost_classes: ids that the prompts name without a token of their own.
        confusion: per threshold truth, prediction, count, truth, prediction, count ...; None without ground truth.
        near_ties: per threshold the pixels whose label another rounding could change; None where it was not counted.
        layer_weights: weight of each cross-attention layer.
        layer_weight_errors: their standard errors, where they are estimated from a part of the reference's rows.
        warnings: what a reader should know about this image.
        seconds: by stage; the image's share of its batch.
        peak_memory_bytes: of the process until then.
    """

    image_id: str
    index: int = 0
    seed: int = 0
    error: str | None = None
    prompts: Sequence[str] = ()
    classes: Sequence[int] = ()
    lost_classes: Sequence[int] = ()
    confusion: Sequence[Sequence[int]] | None = None
    near_ties: Sequence[int] | None = None
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    layer_weight_errors: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """A line of records.jsonl; keys of later versions are left out."""
        return cls(**cls._read(content, "a record"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts(Keyed):
    """What was evaluated, with what: run.json.

    Args:
        prompts: how the prompts were made.
        classes: names by id.
        thresholds: of the background, one result each; (None,) where no class is compared with it.
        fixed_threshold: the one that was fixed beforehand, of which the numbers are; None where the best is chosen.
        rules_version: of the protocol; numbers of two versions are never comparable.
        rules_hash: of class names, words and how prompts are made of them; equal for equal ones.
        names: the list of names that was asked for (`dataset.names`); empty in runs of earlier versions, as are the next three.
        unusual: rules that are not those usual under the protocol, by their settings.
        words_hash, pictures: what a run that continues this one has to read too, see `goca.runs.inputs`.
        unseen_classes: how classes in no label and no prediction count.
        total_images: of all shards.
        left_out: reason -> number of files of the data set that are not read.
        generator: how well the model generates, as far as that is known.
        provenance: where the numbers come from: checkpoint hash, versions, commit, machine. Its keys stand beside the others.
    """

    dataset: str
    split: str | None
    model: str
    method: str
    protocol: str
    prompts: Mapping[str, Any]
    classes: Sequence[str]
    unseen_classes: Any
    has_background: bool
    thresholds: Sequence[float | None] = ()
    fixed_threshold: float | None = None
    rules_version: int = 1
    rules_hash: str = ""
    names: str = ""
    unusual: Mapping[str, Any] = field(default_factory=dict)
    words_hash: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)
    total_images: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    device: str = ""
    dtype: str = ""
    checkpoint: str = ""
    generator: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def json(self) -> dict[str, Any]:
        """What the file holds: the provenance's keys beside the others."""
        plain = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return plain | dict(plain.pop("provenance"))

    def other_inputs(self, now: Mapping[str, Any], failed: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
        """What differs between these facts and what a run that would stand for them reads: what -> (before, now).

        What earlier versions did not note is not compared.

        Args:
            now: by `goca.runs.inputs.inputs`.
            failed: ids of images without a result, whose files may have been mended since.
        """
        old, new = self.pictures, now["pictures"]
        found: dict[str, tuple[Any, Any]] = {}
        if old and old["ids"] != new["ids"]:
            found["ids of the images"] = (old["ids"], new["ids"])
        elif old and old["content"] != new["content"] and old["first"] not in failed:
            found[f"picture or mask of {old['first']}"] = (old["content"], new["content"])
        if self.words_hash and self.words_hash != now["words_hash"]:
            found["class names, words or captions"] = (self.words_hash, now["words_hash"])
        weights = [(facts.get("checkpoint_hash"), facts.get("checkpoint_hash_scheme")) for facts in (self.provenance, now)]
        if all(digest for digest, _ in weights) and weights[0][1] == weights[1][1] and weights[0] != weights[1]:
            found["checkpoint_hash"] = (weights[0][0], weights[1][0])
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `json` gave; keys that are no field of their own are provenance.

        Raises:
            DataError: a key is missing.
        """
        known = cls._read(content, "summary.json" if issubclass(cls, Summary) else "run.json")
        names = {part.name for part in dataclasses.fields(cls)}
        return cls(**{**known, "provenance": {key: value for key, value in content.items() if key not in names}})


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary(Facts):
    """summary.json: the facts, and the numbers that follow from the records.

    Args:
        images, failed: how many were recorded, and how many of them without a result.
        judged: how many the numbers are made of; the others failed, have no ground truth, or were left out as they have no
            prompt. None in summaries of earlier versions, as is `image_set`.
        image_set: hash of the judged images' ids, equal for equal sets.
        failures: image id -> reason, of the first ones.
        seconds_by_stage, seconds_per_image: means over images.
        lost_classes: classes without a token, over all images.
        warnings: text -> number of images.
        layer_weights, layer_weight_errors: means over images.
        miou: at `threshold`, in per cent; None without ground truth.
        threshold: of the background, that the numbers and pictures stand for; None where there is none.
        threshold_choice: how it was chosen.
        near_ties: pixels whose label another rounding could change, at `threshold`; None where they were not counted.
        miou_by_threshold, iou_by_class, accuracy_by_class: absent without ground truth.
        pixel_accuracy, mean_accuracy: aAcc and mAcc in per cent; absent without ground truth.
        names_precision, names_recall, miou_bound: of the names that the method was given, in per cent, and the mIoU that no
            method can exceed with them; None without ground truth.
        schema: of this file.
    """

    images: int
    miou: float | None
    seconds_per_image: float = 0.0
    failed: int = 0
    judged: int | None = None
    image_set: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    lost_classes: int = 0
    warnings: Mapping[str, int] = field(default_factory=dict)
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    layer_weight_errors: Mapping[str, float] = field(default_factory=dict)
    near_ties: int | None = None
    threshold: float | None = None
    threshold_choice: str | None = None
    miou_by_threshold: Mapping[str, float | None] | None = None
    iou_by_class: Mapping[str, float | None] | None = None
    pixel_accuracy: float | None = None
    mean_accuracy: float | None = None
    accuracy_by_class: Mapping[str, float | None] | None = None
    names_precision: float | None = None
    names_recall: float | None = None
    miou_bound: float | None = None
    schema: int = SCHEMA

    @cached_property
    def json(self) -> dict[str, Any]:
        """What the file holds; results that need ground truth are left out without it."""
        plain = super().json
        judged = ("miou_by_threshold", "iou_by_class", "pixel_accuracy", "mean_accuracy", "accuracy_by_class")
        return {key: value for key, value in plain.items() if self.miou_by_threshold is not None or key not in judged}

    @property
    def threshold_index(self) -> int:
        """Position, in the sweep, of the threshold that the numbers and pictures stand for."""
        keys = list(self.miou_by_threshold or map(threshold_key, self.thresholds))
        return keys.index(threshold_key(self.threshold))


def threshold_key(tau: float | None) -> str:
    """How a threshold is named in files and tables.

    >>> threshold_key(0.30), threshold_key(None)
    ('0.3', 'none')
    """
    return NO_THRESHOLD if tau is None else f"{tau:g}"
