"""Reading run folders, and which of them may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from goca.compare.names import run_names
from goca.compare.statistics import ImageCounts
from goca.errors import DataError, GocaError
from goca.figures.thumbnails import Thumbnails, read
from goca.runs.folder import RunFolder
from goca.runs.kinds import Kind
from goca.runs.machine import difference
from goca.runs.records import ImageRecord, Summary
from goca.runs.sweeps import FINISHED, reused


@dataclass(frozen=True)
class Run:
    """A finished run; `name` tells it from the others on the page."""

    path: Path
    name: str
    summary: Summary
    config: dict[str, Any]
    records: list[ImageRecord]  # those with ground truth, by image id

    @property
    def miou(self) -> float:
        """At the summary's threshold, in per cent."""
        assert self.summary.miou is not None, "runs without a number are not loaded"
        return self.summary.miou

    @property
    def iou_by_class(self) -> Mapping[str, float | None]:
        return self.summary.iou_by_class or {}

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """The judged images, sorted."""
        return tuple(record.image_id for record in self.records)

    @cached_property
    def kind(self) -> Kind:
        return Kind.of(self.summary, self.image_ids)

    @cached_property
    def counts(self) -> ImageCounts:
        """Counts per image at the summary's threshold."""
        summary = self.summary
        return ImageCounts.of(
            self.records,
            len(summary.classes),
            summary.threshold_index,
            summary.has_background,
            summary.unseen_classes,
        )

    @cached_property
    def thumbnails(self) -> dict[str, Thumbnails]:
        return read(self.path, len(self.summary.miou_by_threshold or ()))


def load(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Every run under the given folders, and why others were left out.

    Raises:
        DataError: a folder that does not exist, or no run that can be compared.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no folder {path}; give run folders, or a folder that holds some")
    elsewhere, problems = _reused(paths)
    folders = sorted({folder for path in paths for folder in _folders(path)} | elsewhere)
    runs = []
    names = run_names(folders)
    for folder in folders:
        try:
            runs.append(_load(folder, names[folder]))
        except GocaError as error:
            problems.append(f"{names[folder]}: {error}")
    if not runs:
        where = ", ".join(map(str, paths)) or "(no folder given)"
        why = "\n".join(["", *problems]) if problems else "; `python -m goca.run` makes one"
        raise DataError(f"no run to compare under {where}{why}")
    failed = [_failed(run.name, count) for run in runs if (count := run.summary.failed)]
    return runs, problems + failed + _class_sets(runs) + _machines(runs)


def _failed(name: str, count: int) -> str:
    return f"{name}: {count} images failed and do not count" if count > 1 else f"{name}: 1 image failed and does not count"


def _folders(path: Path) -> set[Path]:
    return {file.parent.resolve() for name in ("summary.json", "records.jsonl") for file in _not_logged(path, name)}


def _not_logged(path: Path, name: str) -> list[Path]:
    """Files of this name under a folder, sorted, without the copies that W&B keeps."""
    return [file for file in sorted(path.rglob(name)) if "wandb" not in file.relative_to(path).parts]


def _reused(paths: Sequence[Path]) -> tuple[set[Path], list[str]]:
    """Runs that jobs of sweeps name in place of one of their own, and why others cannot be read."""
    found, problems = set(), []
    for job in sorted({pointer.parent for path in paths for pointer in _not_logged(path, FINISHED)}):
        try:
            run = reused(job)
        except GocaError as error:
            problems.append(str(error))
            continue
        if run is not None and (run / "summary.json").is_file():
            found.add(run.resolve())
        elif run is not None:
            problems.append(f"{job} was not computed, as {run} held its results; that has none any more. Repeat the sweep")
    return found, problems


def _load(folder: Path, name: str) -> Run:
    if not (folder / "summary.json").is_file():
        raise DataError("incomplete, it has no summary.json; finish it by the same command with resume=true")
    output = RunFolder(folder)
    try:
        summary, config, records = output.summary(), output.config(), output.records()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({type(error).__name__}: {error})") from error
    if summary.miou is None:
        lacks = "ground truth" if summary.miou_by_threshold is None else "evaluated pixel"
        raise DataError(f"has no {lacks}, so there is no number to compare")
    judged = [record for record in records if record.confusion is not None]
    if len(records) != summary.images or not judged:
        raise DataError(f"incomplete, {len(records)} of {summary.images} images are recorded; continue it with resume=true")
    return Run(folder, name, summary, config, sorted(judged, key=lambda record: record.image_id))


def _class_sets(runs: Sequence[Run]) -> list[str]:
    """Warnings about runs of one data set and protocol that differ in classes or images, and are ranked apart."""
    first: dict[tuple[str, str | None, str], Kind] = {}
    apart: dict[str, list[str]] = {}
    for run in runs:
        kind = run.kind
        other = first.setdefault((kind.dataset, kind.split, kind.protocol), kind)
        if kind.classes != other.classes:
            apart.setdefault(f"other classes than other runs on {kind.dataset}", []).append(run.name)
        elif kind.has_background != other.has_background:
            rule = "with" if kind.has_background else "without"
            apart.setdefault(f"{rule} background, unlike other runs on {kind.dataset}", []).append(run.name)
        elif kind.rules != other.rules and kind.prompts == other.prompts:
            apart.setdefault(f"other words or prompts than other runs on {kind.dataset}", []).append(run.name)
        elif kind.unusual != other.unusual:
            which = kind.unusual or "those of the protocol"
            apart.setdefault(f"other rules than other runs on {kind.dataset} ({which})", []).append(run.name)
        elif kind.image_set == other.image_set and kind.content != other.content:
            what = (
                "other pictures or masks of the same names than"
                if kind.content and other.content
                else "of another version of goca than"
            )
            apart.setdefault(f"{what} other runs on {kind.dataset}", []).append(run.name)
        elif kind.image_set != other.image_set:
            apart.setdefault(f"other images than other runs on {kind.dataset} ({kind.split})", []).append(run.name)
    return [f"{', '.join(names)}: {what}; ranked apart" for what, names in apart.items()]


def _machines(runs: Sequence[Run]) -> list[str]:
    """Which runs another machine computed than the first one, for their sums round differently."""
    known = [(run, machine) for run in runs if isinstance(machine := run.summary.provenance.get("machine"), dict)]
    apart: dict[str, list[str]] = {}
    for run, machine in known[1:]:
        if changed := difference(machine, known[0][1]):
            apart.setdefault(", ".join(changed), []).append(run.name)
    return [
        f"{', '.join(names)}: computed on another machine than {known[0][0].name} ({changed}); mIoU may differ by rounding, "
        "see docs/reliability.md"
        for changed, names in apart.items()
    ]
