"""The row of open-vocabulary papers: eight benchmarks in their usual order, and the average."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from goca.runs.kinds import Kind, Regime, regime
from goca.runs.records import Summary
from goca.runs.table import Cell, Table


@dataclass(frozen=True)
class Benchmark:
    """One column.

    Args:
        title: as papers write it.
        has_background: whether class 0 is judged.
        images: in the whole of its validation set, by each list in use.
    """

    title: str
    has_background: bool
    images: tuple[int, ...]


# By name of the data set, in the order of the tables of SCLIP, ProxyCLIP and CorrCLIP. Context: mmsegmentation's conversion has
# 5,104 images, the official list 5,105.
BENCHMARKS: Mapping[str, Benchmark] = {
    "voc21": Benchmark("VOC21", True, (1449,)),
    "context60": Benchmark("Context60", True, (5104, 5105)),
    "coco_object": Benchmark("COCO-Object", True, (5000,)),
    "voc20": Benchmark("VOC20", False, (1449,)),
    "context59": Benchmark("Context59", False, (5104, 5105)),
    "coco_stuff171": Benchmark("COCO-Stuff", False, (5000,)),
    "cityscapes": Benchmark("Cityscapes", False, (500,)),
    "ade150": Benchmark("ADE", False, (2000,)),
}
_PARTIAL = ": no numbers of the benchmarks"
PROTOCOL = "ovss"  # under which numbers may stand beside those of papers
# Data sets that are one benchmark or another by their background.
_OTHER_NAMES = {
    ("voc", True): "voc21",
    ("voc", False): "voc20",
    ("context", True): "context60",
    ("context", False): "context59",
    ("ade20k", False): "ade150",
}


@dataclass(frozen=True)
class Row:
    """What one method has on the eight: `miou` by the keys of BENCHMARKS, in per cent.

    Args:
        group: of rows that can be ranked.
        source: where numbers come from that were not measured here.
    """

    group: str
    method: str
    model: str
    miou: Mapping[str, float]
    source: str | None = None

    @property
    def average(self) -> float | None:
        """Over all eight; None where one is missing."""
        return fmean(self.miou[key] for key in BENCHMARKS) if self.miou.keys() >= BENCHMARKS.keys() else None


def column_of(summary: Summary) -> str | None:
    """The benchmark that a run belongs to, if any."""
    name = _OTHER_NAMES.get((summary.dataset, summary.has_background), summary.dataset)
    fits = name in BENCHMARKS and BENCHMARKS[name].has_background == summary.has_background
    return name if fits else None


def group_name(known: Regime, protocol: str, version: int, part: str = "") -> str:
    """The heading of rows that can be ranked together; `part` names the images where they are not the whole sets."""
    return f"{known}, protocol {protocol} version {version}{f', {part}{_PARTIAL}' if part else ''}"


def rows_of(summaries: Sequence[Summary]) -> list[Row]:
    """One row per group, method and model. Of several runs of one cell the mean where they differ in seed, else the last."""
    cells: dict[tuple[str, str, str], dict[str, list[Summary]]] = {}
    words, sets = _Variants(), _Variants()
    for summary in summaries:
        column = column_of(summary)
        if column is None or summary.miou is None:
            continue
        kind, part = Kind.of(summary), ""
        if summary.split != "val" or kind.images not in BENCHMARKS[column].images:
            number = sets.number((column, kind.images), kind.image_set)
            part = f"{kind.images} images of {kind.split}{f', set {number}' if number > 1 else ''}"
        number = words.number(column, (kind.rules, kind.classes))
        known = regime(summary.prompts)
        group = group_name(known, kind.protocol, summary.rules_version, part)
        group = group if number == 1 else f"names, words and prompts {number}: {group}"
        cells.setdefault((group, summary.method, summary.model), {}).setdefault(column, []).append(summary)
    return [Row(*key, {column: _value(runs) for column, runs in row.items()}) for key, row in cells.items()]


class _Variants:
    """Numbers what must not be ranked together: the first of its kind is 1."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, list[Hashable]] = {}

    def number(self, of: Hashable, variant: Hashable) -> int:
        seen = self._seen.setdefault(of, [])
        if variant not in seen:
            seen.append(variant)
        return seen.index(variant) + 1


def _value(runs: Sequence[Summary]) -> float:
    numbers = [summary.miou for summary in runs if summary.miou is not None]
    return fmean(numbers) if len({summary.seed for summary in runs}) == len(runs) else numbers[-1]


def row_table(rows: Sequence[Row]) -> Table:
    """Rows by group, within it the highest average first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    quoted = any(row.source for row in rows)
    lines: list[tuple[Cell, ...]] = []
    # Numbers of the whole benchmarks come first.
    groups = dict(sorted(groups.items(), key=lambda item: item[0].endswith(_PARTIAL)))
    for members in groups.values():
        members.sort(key=lambda row: (-(row.average or 0), -len(row.miou), row.method, row.model))
        for row in members:
            numbers = (row.miou.get(key) for key in BENCHMARKS)
            source = (row.source or "measured",) if quoted else ()
            average = None if row.average is None else round(row.average, 4)
            lines.append((f"{row.method}{' (quoted)' * bool(row.source)}", row.model, *numbers, average, *source))
    titles = tuple(benchmark.title for benchmark in BENCHMARKS.values())
    return Table(
        ("method", "model", *titles, "average", *(("source",) if quoted else ())),
        tuple(lines),
        tuple((group, len(members)) for group, members in groups.items()),
        dict.fromkeys((*titles, "average"), "higher"),
        digits=1,
    )
