"""What the comparison shows: everything on the page, in the CSV files and in the Markdown, as plain data."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from goca.compare.grid import grids
from goca.compare.runs import Run
from goca.compare.scaling import Scale, generative_power
from goca.compare.statistics import bootstrap, interval
from goca.config.identity import FREE_UNREAD, group_of, is_free
from goca.errors import ConfigError
from goca.figures.thumbnails import disagreement
from goca.runs.kinds import Kind, kind_titles
from goca.runs.summary import total_counts
from goca.runs.table import Cell, Table

_COLUMNS_OF_ABLATION = 8


_MATRIX_CLASSES = 40  # of a confusion matrix on the page, those with the most pixels


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Settings:
    """How runs are compared.

    Args:
        samples, seed, level: of the bootstrap.
        baseline: method that differences are taken from; None takes vanilla, or the lowest run where there is none.
        quoted: published rows beside the runs' in the table of the eight benchmarks: those of the package, none, or those of a
            file in the form of `goca/compare/quoted.yaml`.
        generative_power: quantities that say how well models generate, by the names that runs know them by.
    """

    samples: PositiveInt
    seed: NonNegativeInt
    level: Annotated[float, Field(gt=0, lt=1)]
    baseline: str | None
    generative_power: dict[str, Scale]
    quoted: bool | str = True


class Comparison:
    """Runs by kind, with intervals and differences.

    Args:
        runs: finished runs.
        settings: how to compare them.
    """

    def __init__(self, runs: Sequence[Run], settings: Settings) -> None:
        self.settings, self.runs = settings, tuple(runs)
        self.kinds: dict[Kind, list[Run]] = {}
        for run in runs:
            self.kinds.setdefault(run.kind, []).append(run)
        for members in self.kinds.values():
            members.sort(key=lambda run: -run.miou)
        methods = sorted({run.summary.method for run in runs})
        if settings.baseline is not None and settings.baseline not in methods:
            raise ConfigError(f"settings.baseline: no run has the method '{settings.baseline}'; there are {'; '.join(methods)}")
        self.baseline_name = settings.baseline or "vanilla"
        self.titles = kind_titles(list(self.kinds), {kind: members[0].image_ids for kind, members in self.kinds.items()})
        self._resampled = {run.path: bootstrap(run.counts, settings.samples, settings.seed) for run in runs}

    def interval(self, run: Run) -> tuple[float, float]:
        """Confidence interval of a run's mIoU, in points."""
        return interval(self._resampled[run.path], self.settings.level)

    def difference(self, run: Run, other: Run) -> tuple[float, float, float]:
        """mIoU of `run` less that of `other`, and its interval by the paired bootstrap."""
        low, high = interval(self._resampled[run.path] - self._resampled[other.path], self.settings.level)
        return run.miou - other.miou, low, high

    def baseline(self, members: Sequence[Run], run: Run) -> Run:
        """The one of these runs, of one kind and model, that a run is measured against: of its own seed where there is one."""
        named = [other for other in members if other.summary.method == self.baseline_name]
        if not named:
            return min(members, key=lambda other: other.miou)
        return min(named, key=lambda other: (other.summary.seed != run.summary.seed, other.summary.seed))

    # ----------------------------------------------------------------------------------------------------------- tables
    def leaderboard(self, members: Sequence[Run]) -> Table:
        """Runs of one kind, best first; the protocol stands beside every number."""
        columns = (
            *("rank", "mIoU", "method", "model", "run", "low", "high", "protocol", "dataset", "split", "prompts", "images"),
            *("threshold", "threshold choice", "pixel accuracy", "mean accuracy", "s / image", "peak GiB", "warnings"),
            *("names precision", "names recall", "rules"),
        )
        rows = tuple(self._row(rank, run) for rank, run in enumerate(members, start=1))
        return Table(columns, rows, better={"mIoU": "higher"})

    def _row(self, rank: int, run: Run) -> tuple[Cell, ...]:
        summary, kind = run.summary, run.kind
        low, high = self.interval(run)
        memory = summary.peak_memory_bytes or None
        return (
            rank,
            run.miou,
            summary.method,
            summary.model,
            run.name,
            round(low, 4),
            round(high, 4),
            kind.protocol,
            kind.dataset,
            kind.split,
            kind.prompts,
            kind.images,
            summary.threshold,
            summary.threshold_choice,
            summary.pixel_accuracy,
            summary.mean_accuracy,
            summary.seconds_per_image,
            None if memory is None else round(memory / 2**30, 3),
            sum(summary.warnings.values()),
            summary.names_precision,
            summary.names_recall,
            kind.rules or None,
        )

    def ablations(self, members: Sequence[Run]) -> dict[str, Table]:
        """By model, and by group where there are several: the settings in which runs differ, and their differences in mIoU
        to the baseline, whose row has none."""
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in members:
            groups.setdefault((group_of(run.config), run.summary.model), []).append(run)
        several = len({group for group, _ in groups}) > 1
        tables = {}
        for (group, model), runs in sorted(groups.items()):
            if len(runs) < 2:
                continue
            title = f"{group}, {model}" if several else model
            flat = [_flatten(run.config) for run in runs]
            keys = sorted({key for settings in flat for key in settings})
            # A setting that repeats another one's values, such as a reference to it, says nothing new.
            varying = {tuple(settings.get(key) for settings in flat): key for key in reversed(keys)}
            every = sorted(key for values, key in varying.items() if len(set(values)) > 1)
            differing, rest = every[:_COLUMNS_OF_ABLATION], len(every) - _COLUMNS_OF_ABLATION
            methods = _distinct_methods(runs)
            rows = []
            for run, settings in sorted(zip(runs, flat, strict=True), key=lambda pair: pair[0].miou):
                values = (settings.get(key) for key in differing)
                base = self.baseline(runs, run)
                change = (None, None, None) if run is base else (round(value, 4) for value in self.difference(run, base))
                method = (methods[run.path],) if any(methods.values()) else ()
                rows.append((*method, run.miou, *change, *values, *((None,) if rest > 0 else ())))
            more = (f"and {rest} more settings",) if rest > 0 else ()
            columns = (*(("method",) if any(methods.values()) else ()), "mIoU", "difference", "low", "high", *differing, *more)
            tables[title] = Table(columns, tuple(rows), better={"mIoU": "higher"})
        return tables

    def classes(self, members: Sequence[Run]) -> Table:
        """IoU of every class, a column per run."""
        rows = [
            (name, *(run.iou_by_class.get(name) for run in members))
            for name in members[0].summary.classes
            if any(name in run.iou_by_class for run in members)
        ]
        names = tuple(run.name for run in members)
        return Table(("class", *names), tuple(rows), better=dict.fromkeys(names, "higher"), across=True)

    def images(self) -> Table:
        """mIoU of every image by every run, over the classes seen in it; runs in the order of the leaderboard."""
        rows = []
        for kind, members in self.kinds.items():
            values = [run.counts.miou_by_image() for run in members]
            for place, image_id in enumerate(members[0].image_ids):
                for run, miou in zip(members, values, strict=True):
                    rows.append((self.titles[kind], image_id, run.name, run.summary.method, number(miou[place])))
        return Table(("group", "image", "run", "method", "mIoU"), tuple(rows))

    # ------------------------------------------------------------------------------------------------------------- page
    def page_data(self) -> dict[str, Any]:
        """Everything the page shows; text is data here and is never read as HTML."""
        ordered = [run for members in self.kinds.values() for run in members]
        index = {run.path: place for place, run in enumerate(ordered)}
        return {
            "level": self.settings.level,
            "baseline": self.baseline_name,
            "scales": {name: vars(scale) for name, scale in self.settings.generative_power.items()},
            "runs": [self._page_run(run) for run in ordered],
            "grids": [grid.json() for grid in grids(ordered)],
            "kinds": [self._page_kind(kind, members, index) for kind, members in self.kinds.items()],
        }

    def _page_run(self, run: Run) -> dict[str, Any]:
        summary = run.summary
        low, high = self.interval(run)
        return {
            "name": run.name,
            "miou": run.miou,
            "low": low,
            "high": high,
            "model": summary.model,
            "method": summary.method,
            "power": generative_power(run, self.settings.generative_power),
            "thresholds": summary.miou_by_threshold or {},
            "classes": run.iou_by_class,
            "images": dict(zip(run.image_ids, map(number, run.counts.miou_by_image()), strict=True)),
            "confusion": confusion(run),
        }

    def _page_kind(self, kind: Kind, members: Sequence[Run], index: Mapping[Any, int]) -> dict[str, Any]:
        leaderboard = self.leaderboard(members)
        pairs = {}
        for one, other in itertools.combinations(members, 2):
            pairs[f"{index[one.path]},{index[other.path]}"] = [round(value, 3) for value in self.difference(one, other)]
        return {
            "title": self.titles[kind],
            "dataset": kind.dataset,
            "protocol": kind.protocol,
            "runs": [index[run.path] for run in members],
            "columns": leaderboard.columns,
            "rows": leaderboard.rows,
            "pairs": pairs,
            "ablations": [{"model": model, **vars(table)} for model, table in self.ablations(members).items()],
            "repeats": vars(repeats(members)),
            "gallery": _gallery(members, index),
            "colours": _colours(members),
        }


def number(value: float) -> float | None:
    """An mIoU in per cent for JSON and CSV, which know no NaN."""
    return None if np.isnan(value) else round(float(value), 2)


def repeats(members: Sequence[Run]) -> Table:
    """Mean and deviation of runs that differ in their seed alone, best mean first; empty where none is repeated.

    Of two runs with one seed the one in the later folder counts.
    """
    groups: dict[str, dict[Any, Run]] = {}
    for run in sorted(members, key=lambda run: run.path):
        settings = {key: value for key, value in _flatten(run.config).items() if key != "seed"}
        key = repr((run.summary.model, run.summary.method, sorted(settings.items())))
        groups.setdefault(key, {})[run.config.get("seed")] = run
    rows = []
    for by_seed in groups.values():
        runs = list(by_seed.values())
        if len(runs) > 1:
            miou = np.array([run.miou for run in runs])
            first = runs[0].summary
            spread = (number(miou.mean()), number(miou.std(ddof=1)), number(miou.min()), number(miou.max()))
            rows.append((first["method"], first["model"], *spread, len(runs)))
    rows.sort(key=lambda row: -(row[2] or 0.0))
    columns = ("method", "model", "mean mIoU", "deviation", "lowest", "highest", "seeds")
    return Table(columns, tuple(rows), better={"mean mIoU": "higher"})


def confusion(run: Run) -> dict[str, Any]:
    """Shares in per cent of each class's pixels by what they were predicted as: the classes with the most pixels."""
    names = run.summary.classes
    first = 0 if run.summary.has_background else 1
    matrix = total_counts(run.records, len(names))[run.summary.threshold_index].double().numpy()  # type: ignore[index]
    pixels = matrix.sum(1)
    kept = sorted(sorted(range(first, len(names)), key=lambda i: -pixels[i])[:_MATRIX_CLASSES])
    kept = [i for i in kept if pixels[i]]
    shares = 100 * matrix[np.ix_(kept, kept)] / pixels[kept][:, None] if kept else np.zeros((0, 0))
    return {"names": [names[i] for i in kept], "shares": np.round(shares, 1).tolist()}


def _gallery(members: Sequence[Run], index: Mapping[Any, int]) -> list[dict[str, Any]]:
    """Per image that at least one run has thumbnails of: pictures, and how much each pair of runs disagrees."""
    by_image: dict[str, list[Run]] = {}
    for run in members:
        for image_id in run.thumbnails:
            by_image.setdefault(image_id, []).append(run)
    entries = []
    for image_id, runs in by_image.items():
        first = runs[0].thumbnails[image_id]
        truth = first.labels[0]
        chosen = {run.path: run.summary.threshold_index + 1 for run in runs}
        label = {run.path: run.thumbnails[image_id].labels[chosen[run.path]] for run in runs}
        entries.append(
            {
                "image": image_id,
                "picture": _data_uri("jpeg", first.image),
                "truth": _data_uri("png", first.png(0)),
                "labels": {index[run.path]: _data_uri("png", run.thumbnails[image_id].png(chosen[run.path])) for run in runs},
                "disagreement": {
                    f"{index[one]},{index[other]}": round(disagreement(label[one], label[other], truth), 4)
                    for one, other in itertools.combinations(label, 2)
                    if label[one].shape == label[other].shape
                },
            }
        )
    return entries


def _colours(members: Sequence[Run]) -> dict[str, str]:
    """Colour of each class in the thumbnails, for their legend."""
    pictures = next((run.thumbnails for run in members if run.thumbnails), {})
    palette = next(iter(pictures.values())).palette if pictures else b""
    names = members[0].summary.classes
    return {name: f"#{palette[3 * i : 3 * i + 3].hex()}" for i, name in enumerate(names) if 0 < i < len(palette) // 3}


def _distinct_methods(runs: Sequence[Run]) -> dict[Any, str]:
    """Each run's method without the parts that all of them share; empty where nothing is left."""
    parts = {run.path: run.summary.method.split(", ") for run in runs}
    shared = set.intersection(*(set(part) for part in parts.values()))
    return {path: ", ".join(part for part in own if part not in shared) for path, own in parts.items()}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Settings that can change numbers, by dotted name; lists as text."""
    flat: dict[str, Cell] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if is_free(name, FREE_UNREAD):
            continue
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            flat |= _flatten_list(value, name)
        else:
            flat[name.removesuffix("._target_")] = _short(value) if name.endswith("_target_") else value
    return flat


def _flatten_list(values: Sequence[Any], name: str) -> dict[str, Cell]:
    """Lists of settings, such as the steps of a refinement, by the names of their classes; other lists as one text."""
    if values and all(isinstance(value, Mapping) for value in values):
        steps = ", ".join(_short(value.get("_target_", "?")) for value in values)
        nested = [_flatten({k: v for k, v in value.items() if k != "_target_"}, f"{name}.") for value in values]
        return {name: steps, **{key: value for part in nested for key, value in part.items()}}
    return {name: ", ".join(map(str, values))}


def _short(target: Any) -> str:
    return str(target).rpartition(".")[2].lower()
