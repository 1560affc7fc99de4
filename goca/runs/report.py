"""What a finished run shows: plain data that is decided once, and given to whichever logger is configured."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from goca.config.identity import group_of
from goca.config.redact import redact
from goca.data.classes import ClassTable
from goca.data.files import file_name
from goca.errors import GocaError
from goca.figures import plots
from goca.figures.example import Example
from goca.runs.folder import RunFolder
from goca.runs.records import Summary
from goca.runs.table import Table
from goca.runs.tables import run_tables

log = logging.getLogger(__name__)
PAUSES = (2.0, 10.0)  # seconds before the second and the third attempt
_NAME_BYTES = 120  # of a figure; loggers make file names of it with more around it

Pictures = Sequence[tuple[str, Image.Image]]  # with their captions


@dataclass(frozen=True)
class Report:
    """Everything a logger may show of a finished run.

    Args:
        folder: the run folder, in which a logger may write.
        name: of the run.
        config: the composed configuration, as plain data without secrets.
        scalars, texts: single values by name.
        tables: by name.
        figures: by name.
        films: files by name, GIF or MP4.
        galleries: name -> pictures that belong together, with captions.
        examples: drawn images; `threshold` is the one of their label maps to show.
        class_names: by class id.
        kind: what was done, `evaluate`, `generate` or `observe`.
        tags: to filter by.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    scalars: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Image.Image] = field(default_factory=dict)
    films: Mapping[str, Path] = field(default_factory=dict)
    galleries: Mapping[str, Pictures] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    threshold: int = 0
    class_names: Sequence[str] = ()
    kind: str = "evaluate"
    tags: Sequence[str] = ()

    @property
    def group(self) -> str:
        """What groups the run with others."""
        return group_of(self.config)


def segmentation_report(output: RunFolder, config: Mapping[str, Any], summary: Summary, classes: ClassTable) -> Report:
    """The report of a run from what its folder holds; the figures are written there too."""
    records, examples = output.records(), read_examples(output.drawn)
    tables = run_tables(summary, records, [example.head_weights for example in examples if example.head_weights])
    figures = _drawn(_figures(summary, tables, examples, classes)) if examples else {}
    for name, picture in figures.items():
        path = output.figures / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return Report(
        folder=output.path,
        name=f"{summary.model} {summary.dataset} {summary.method}",
        config=config,
        scalars=_scalars(summary),
        texts={key: value for key, value in summary.items() if isinstance(value, str)},
        tables=tables,
        figures=figures,
        galleries=_galleries(examples, classes),
        examples=examples,
        threshold=summary.threshold_index,
        class_names=tuple(classes.names),
        tags=_tags(summary),
    )


def read_examples(folder: Path) -> list[Example]:
    """What was kept of the drawn images, in the order of their names; files that cannot be read are left out."""
    examples = []
    for path in sorted(folder.rglob("*.npz")):
        try:
            examples.append(Example.load(path))
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s cannot be drawn (%s)", path, error)
    return examples


def _scalars(summary: Summary) -> dict[str, float]:
    """Single numbers by name; sweeps and stages as `miou/<threshold>` and `seconds/<stage>`."""
    plain = {key: value for key, value in summary.items() if isinstance(value, (int, float))}
    sweep = {f"miou/{tau}": value for tau, value in (summary.miou_by_threshold or {}).items() if value is not None}
    return plain | sweep | {f"seconds/{stage}": value for stage, value in summary.seconds_by_stage.items()}


def _tags(summary: Summary) -> list[str]:
    """What was evaluated, and each part of the method."""
    parts = [str(part) for part in (summary.dataset, summary.model, summary.protocol) if part]
    return parts + [part.strip() if "=" in part else f"method={part.strip()}" for part in summary.method.split(",")]


def _figures(
    summary: Summary, tables: Mapping[str, Table], examples: Sequence[Example], classes: ClassTable
) -> dict[str, Callable[[], Image.Image]]:
    """Every figure of a run, still to be drawn."""
    figures: dict[str, Callable[[], Image.Image]] = {
        "overview": partial(plots.overview, examples, classes, summary.threshold_index)
    }
    for example in examples:
        if example.class_ids or example.segments:
            figures[file_name(f"attention_{example.image_id}", most=_NAME_BYTES)] = partial(plots.stages, example, classes)
    if "layer_weights" in tables:
        names, means, spreads = zip(*(row[:3] for row in tables["layer_weights"].rows), strict=True)
        axis = "weight (mean and std over images)"
        figures["layer_weights"] = partial(plots.bars, names, means, spreads, axis)  # type: ignore[arg-type]
    if "confusion" in tables:
        figures["confusion"] = partial(plots.confusion_figure, tables["confusion"].rows)
    return figures


def _drawn(figures: Mapping[str, Callable[[], Image.Image]]) -> dict[str, Image.Image]:
    """The figures that could be drawn: the numbers are on the disk, and a figure is not worth a run."""
    pictures = {}
    for name, draw in figures.items():
        try:
            pictures[name] = draw()
        except Exception as error:
            log.warning("the figure %s could not be drawn (%s: %s)", name, type(error).__name__, error)
    return pictures


def _galleries(examples: Iterable[Example], classes: ClassTable) -> dict[str, Pictures]:
    """The maps of each drawn image through the method, a picture each."""
    galleries: dict[str, Pictures] = {}
    for example in examples:
        if not (example.class_ids or example.segments):
            continue
        name = file_name(example.image_id, most=_NAME_BYTES)
        named, refined = example.names(lambda class_id: classes.names[class_id])
        stages = {
            "before calibration": (example.raw, named),
            "after calibration": (example.calibrated, named),
            "refined": (example.refined, refined),
        }
        galleries[f"maps/{name}/classes"] = [
            (f"{shown}, {stage}", plots.heat(channel, float(maps.max())))
            for stage, (maps, names) in stages.items()
            for shown, channel in zip(names, maps, strict=True)
        ]
        galleries[f"maps/{name}/tokens"] = [
            (token, plots.heat(values, float(values.max())))
            for token, values in zip(example.tokens, example.token_maps, strict=True)
        ]
    return galleries


class Logger(ABC):
    """One destination of reports."""

    @abstractmethod
    def log(self, report: Report) -> str | None:
        """Show the report; returns a line that says where it can be seen."""

    def check(self) -> None:
        """Refuse, before anything is computed, what cannot work: a package that is not installed.

        Raises:
            ConfigError: with what to install.
        """
        return

    def keep(self, report: Report) -> str | None:
        """Where `log` fails for good: keep the report for later, if the destination can; returns how it gets there by hand."""
        return None

    def log_safely(self, report: Report) -> str | None:
        """`log`, tried again after pauses, then `keep`. Failures are warnings: the results are on disk already."""
        for pause in (*PAUSES, None):
            try:
                return self.log(report)
            except Exception as error:  # any failure of a service or its client
                if pause is None or isinstance(error, GocaError):  # user errors do not go away on retry
                    self._warn(error, f"the same command with output={report.folder} logs it again without computing")
                    break
                self._warn(error, f"next attempt in {pause:g} s")
                time.sleep(pause)
        try:
            return self.keep(report)
        except Exception as error:
            self._warn(error, f"the results are in {report.folder}")
            return None

    def _warn(self, error: Exception, consequence: str) -> None:
        name, kind = type(self).__name__, type(error).__name__
        log.warning("%s could not log this run (%s: %s); %s", name, kind, redact(str(error)), consequence)
