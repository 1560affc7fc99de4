"""The row of open-vocabulary papers: eight benchmarks in their usual order, and the average."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from goca.data.name_lists import OWN
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
# Options of prompts that every data set has its own of: files, chosen words, and how its captions are read.
_OF_A_SET = {"path", "words", "background_token", "add_missing", "captions"}
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


def group_name(known: Regime, protocol: str, version: int, special: str = "", part: str = "") -> str:
    """The heading of rows that can be ranked together.

    Args:
        special: what is not as papers have it: another list of names, rules set by hand.
        part: the images, where they are not the whole sets.
    """
    words = filter(None, (f"{known}, protocol {protocol} version {version}", special, part))
    return ", ".join(words) + (_PARTIAL if part else "")


def rows_of(summaries: Sequence[Summary]) -> list[Row]:
    """One row per group, method and model, each cell the mean over seeds.

    Args:
        summaries: in the order in which the runs were made; of two with one seed the later one counts.
    """
    runs = [_Run.of(column, summary) for summary in summaries if (column := column_of(summary)) and summary.miou is not None]
    groups: dict[Hashable, list[_Run]] = {}
    image_sets: dict[Hashable, set[str]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
        image_sets.setdefault(_images(run), set()).add(run.kind.image_set)
    numbers = {group: _numbers(members) for group, members in groups.items()}
    cells: dict[tuple[str, str, str], dict[str, list[Summary]]] = {}
    for run in runs:
        number = numbers[run.group][run.asked, run.column, run.words]
        heading = _heading(run, number, sorted(image_sets[_images(run)]))
        cells.setdefault((heading, run.summary.method, run.summary.model), {}).setdefault(run.column, []).append(run.summary)
    return [Row(*key, {column: _value(members) for column, members in row.items()}) for key, row in cells.items()]


@dataclass(frozen=True)
class _Run:
    """What decides which row a run belongs to.

    Args:
        group: regime, protocol, and what is special, of all data sets of a row alike.
        asked: the options of its prompts, without those that every data set has its own of.
        words: the data set's classes and words; within one column they tell variants apart.
    """

    column: str
    summary: Summary
    kind: Kind
    group: tuple[Regime, str, int, str]
    asked: str
    words: tuple[str, tuple[str, ...]]

    @classmethod
    def of(cls, column: str, summary: Summary) -> _Run:
        kind, prompts = Kind.of(summary), summary.prompts
        names = "" if summary.names in ("", OWN) else f"names {Path(summary.names).name}"
        group = (
            regime(prompts),
            kind.protocol,
            summary.rules_version,
            ", ".join(filter(None, (names, kind.unusual))),
        )
        asked = json.dumps({key: prompts[key] for key in prompts.keys() - _OF_A_SET}, sort_keys=True, default=str)
        return cls(column, summary, kind, group, asked, (kind.rules, kind.classes))


def _heading(run: _Run, number: int, image_sets: Sequence[str]) -> str:
    """The group of a run.

    Args:
        number: of its way to make prompts, by `_numbers`.
        image_sets: all sets of so many images of its split, in a fixed order.
    """
    part = ""
    if run.summary.split != "val" or run.kind.images not in BENCHMARKS[run.column].images:
        place = image_sets.index(run.kind.image_set) + 1
        part = f"{run.kind.images} images of {run.kind.split}{f', set {place}' if place > 1 else ''}"
    heading = group_name(*run.group, part)
    return heading if number == 1 else f"names, words and prompts {number}: {heading}"


def _numbers(group: Sequence[_Run]) -> dict[tuple[str, str, Hashable], int]:
    """(asked, column, words) -> number of the row that such runs stand in; the order of runs makes no difference.

    A row has one way to make prompts in all its columns. The one that most columns have is the first, which stands under the
    plain heading, beside published rows.
    """
    columns: dict[str, set[str]] = {}
    words: dict[tuple[str, str], set[tuple[str, tuple[str, ...]]]] = {}
    for run in group:
        columns.setdefault(run.asked, set()).add(run.column)
        words.setdefault((run.asked, run.column), set()).add(run.words)
    ways = sorted(columns, key=lambda asked: (-len(columns[asked]), asked))
    variants = {
        (asked, column, each): (ways.index(asked), place)
        for (asked, column), found in words.items()
        for place, each in enumerate(sorted(found))
    }
    ordered = sorted(set(variants.values()))
    return {key: ordered.index(variant) + 1 for key, variant in variants.items()}


def _images(run: _Run) -> tuple[str, str | None, int]:
    return run.column, run.kind.split, run.kind.images


def _value(runs: Sequence[Summary]) -> float:
    """Mean over seeds, the last run of each."""
    return fmean({summary.seed: float(summary.miou or 0.0) for summary in runs}.values())


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
