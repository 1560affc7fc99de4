"""Tables on the terminal: the result of one run, and of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from goca.config.failures import SweepFailures
from goca.runs import sweeps
from goca.runs.benchmark_row import row_table, rows_of
from goca.runs.kinds import TOLD, Kind, kind_titles, regime
from goca.runs.records import NO_THRESHOLD, Summary
from goca.runs.table import Table as PlainTable

_CLASSES_SHOWN = 30
_WARNINGS_SHOWN = 5
_WIDE = 10_000  # characters: more than any table that is not folded has


def print_continued(folder: Path, done: int, total: int, console: Console | None = None) -> None:
    """Say that a run goes on where another one stopped, or that there is nothing left to compute."""
    console = console or Console(emoji=False)
    text = f"continuing {folder}: {done} of {total} images are done"
    if done == total:
        text = f"finished before: all {total} images are recorded in {folder}; nothing is computed again"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_summary(summary: Summary, console: Console | None = None) -> None:
    """The numbers of one run, and where everything was written."""
    console = console or Console(emoji=False)
    prompts = f"prompts {summary.prompts['source']}, {summary.images} images"
    title = escape(f"{summary.model} on {summary.dataset} - protocol {summary.protocol}, {prompts}")
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    if summary.failed == summary.images:
        table.add_row("mIoU", "no image has a result")
    elif summary.miou_by_threshold is not None and summary.miou is None:
        table.add_row("mIoU", "no pixel is evaluated: the masks hold nothing but void")
    elif summary.miou_by_threshold is None:
        table.add_row("mIoU", f"no ground truth: predictions only{_threshold(summary)}")
    else:
        table.add_row("mIoU", f"[bold]{_miou(summary)}[/bold]{_threshold(summary)}")
        by_threshold = summary.miou_by_threshold
        if NO_THRESHOLD not in by_threshold:
            sweep = "by threshold" if summary.fixed_threshold is None else "other thresholds"
            table.add_row(sweep, "  ".join(f"{tau}: {_percent(value)}" for tau, value in by_threshold.items()))
        if regime(summary.prompts) in ("predicted names", "chosen names") and summary.names_recall is not None:
            table.add_row("names given", _names(summary))
        table.add_row("mAcc, aAcc", f"{_percent(summary.mean_accuracy)}, {_percent(summary.pixel_accuracy)}")
        table.add_row("IoU by class", _classes(summary.iou_by_class or {}))
        if uncounted := _uncounted(summary):
            images = "1 image" if uncounted == 1 else f"{uncounted} images"
            table.add_row("not counted", f"{images} without words or ground truth")
    table.add_row("method is told", TOLD[regime(summary.prompts)])
    if summary.rules_hash:
        table.add_row("rules", f"protocol version {summary.rules_version}, names and words {summary.rules_hash}")
    table.add_row("seconds an image", f"{summary.seconds_per_image:.3f}")
    table.add_row("peak memory", f"{summary.peak_memory_bytes / 2**30:.2f} GiB")
    if summary.failed:
        table.add_row("failed", f"{summary.failed} images, see failures in summary.json")
    warnings = sorted(summary.warnings.items(), key=lambda item: -item[1])
    for warning, count in warnings[:_WARNINGS_SHOWN]:
        table.add_row("warning", escape(f"{warning} ({count} images)"))
    if len(warnings) > _WARNINGS_SHOWN:
        table.add_row("", f"{len(warnings) - _WARNINGS_SHOWN} other warnings, see summary.json")
    console.print(table)


def _names(summary: Summary) -> str:
    """How well the names fit the images, which no method can make up for."""
    found = f"precision {_percent(summary.names_precision)}, recall {_percent(summary.names_recall)}"
    return f"{found} of the classes in the images; no mIoU above {_percent(summary.miou_bound)} is possible with them"


def _uncounted(summary: Summary) -> int:
    """Images that have a result and no part in the numbers; none where the summary is of an earlier version."""
    return 0 if summary.judged is None else summary.images - summary.failed - summary.judged


def _classes(iou: Mapping[str, float | None]) -> str:
    """IoU of every class, best first; of many the best and the worst."""
    ranked = [f"{escape(name)} {_percent(value)}" for name, value in sorted(iou.items(), key=lambda item: -(item[1] or 0))]
    if len(ranked) > _CLASSES_SHOWN:
        left_out = len(ranked) - _CLASSES_SHOWN
        ranked[_CLASSES_SHOWN // 2 : -_CLASSES_SHOWN // 2] = [f"... {left_out} more in summary.json ..."]
    return "  ".join(ranked)


def _threshold(summary: Summary) -> str:
    return "" if summary.threshold is None else f"  at tau {summary.threshold:g} ({summary.threshold_choice})"


def _miou(summary: Summary) -> str:
    return "-" if summary.miou is None else f"{summary.miou:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def print_table(table: PlainTable, title: str, console: Console) -> None:
    """A table with a heading above each of its parts; a line is as long as it has to be."""
    console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    for heading, rows in table.sections():
        if heading is not None:
            console.print(heading, markup=False, highlight=False, soft_wrap=True)
        grid = Table()
        for name in table.columns:
            grid.add_column(escape(name), justify="right" if name in table.better else "left", no_wrap=True)
        for row in table.written(rows, escape, "[bold]{}[/bold]".format):
            grid.add_row(*row)
        needed = console.measure(grid, options=console.options.update(width=_WIDE)).maximum
        Console(file=console.file, width=max(console.width, needed), emoji=False).print(grid)


class SweepTable(SweepFailures):
    """Hydra callback: when a multirun ends, one row per run, best first, one table per data set and protocol.

    A job that failed has a row where it wrote its summary in this launch, as one of which too many images failed. A summary
    that stood in its folder before is of an earlier launch, perhaps of other settings, and is not shown as this job's.
    """

    watched = (*SweepFailures.watched, *sweeps.NUMBERS)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        super().on_multirun_end(config)
        folder = Path(config.hydra.sweep.dir)
        old = {job for job in self.failures(folder) if not any(self.is_new(folder / job / name) for name in sweeps.NUMBERS)}
        print_sweep({job: summary for job, summary in sweeps.results(folder).items() if job not in old}, folder)


def print_sweep(summaries: Mapping[str, Summary], folder: Path, console: Console | None = None) -> None:
    """Runs of a sweep by their jobs, ranked only among those that `goca.compare` too ranks together."""
    console = console or Console(emoji=False)
    kinds: dict[Kind, list[tuple[str, Summary]]] = {}
    for job, summary in summaries.items():
        kinds.setdefault(Kind.of(summary), []).append((job, summary))
    titles = kind_titles(list(kinds))
    for kind, members in kinds.items():
        methods = [summary.method.split(", ") for _, summary in members]
        shared = [part for part in methods[0] if all(part in method for method in methods)] if len(members) > 1 else []
        models = {summary.model for _, summary in members}
        several = len(models) > 1
        title = [titles[kind], *(() if several else models), *shared]
        console.print(
            ", ".join(title), style="italic", markup=False, highlight=False, soft_wrap=True
        )  # a table folds its title
        table = Table()
        for name in ("run", "model", "method") if several else ("run", "method"):
            table.add_column(name, overflow="fold")
        for name in ("images", "mIoU", "pixel accuracy", "s / image"):
            table.add_column(name, justify="right")
        for job, summary in sorted(members, key=lambda member: -(member[1].miou or 0)):
            method = [part for part in summary.method.split(", ") if part not in shared]
            table.add_row(
                escape(job.split("_")[0]),
                *((escape(summary.model),) if several else ()),
                escape(", ".join(method)) or "the same",
                str(kind.images),
                _miou(summary),
                _percent(summary.pixel_accuracy),
                f"{summary.seconds_per_image:.3f}",
            )
        console.print(table)
    rows = rows_of(list(summaries.values()))
    if max((len(row.miou) for row in rows), default=0) > 1:
        print_table(row_table(rows), "The eight benchmarks of open-vocabulary segmentation, mIoU", console)
    if summaries:
        text = f"Pictures: {folder}/*/figures    numbers: {folder}/*/summary.json\nOn one page: python -m goca.compare {folder}"
    else:
        text = f"No job of this sweep finished: there are no numbers and no pictures in {folder}"
    console.print(text, soft_wrap=True, markup=False, highlight=False)
