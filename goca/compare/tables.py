"""Every table of a comparison by name, and the files that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from goca.compare.content import Comparison, confusion, number, repeats
from goca.compare.grid import grids
from goca.compare.quoted import read_quoted
from goca.compare.runs import Run
from goca.runs.benchmark_row import row_table, rows_of
from goca.runs.table import Cell, Table

IN_PRINT = ("rank", "mIoU", "method", "model", "run", "low", "high", "threshold")  # of the leaderboard; groups say the rest
WORST = 20  # images of a run
_OF_A_RUN = ("worst_images", "confusion")  # not written but from the page: the run's own tables hold all of it
_OF_A_KIND = ("ablation", "thresholds")


def benchmarks(comparison: Comparison) -> Table | None:
    """The eight benchmarks, runs and quoted rows by regime; None where no run belongs to them."""
    summaries = [run.summary for run in comparison.runs]
    rows, quoted = rows_of(summaries), comparison.settings.quoted
    if not rows or quoted is False:
        return row_table(rows) if rows else None
    version = max(summary.rules_version for summary in summaries)
    return row_table(rows + read_quoted(None if quoted is True else Path(quoted), version))


def leaderboard(comparison: Comparison) -> Table:
    """Runs of every kind; ranks are within a kind."""
    boards = {comparison.titles[kind]: comparison.leaderboard(members) for kind, members in comparison.kinds.items()}
    return _joined(boards)


def seeds(comparison: Comparison) -> Table:
    """Runs that are repeated with other seeds, of every kind."""
    return _joined({comparison.titles[kind]: repeats(members) for kind, members in comparison.kinds.items()})


def worst_images(run: Run) -> Table:
    """The images with the lowest mIoU of their own, and what was said about them."""
    scored = zip(run.records, map(number, run.counts.miou_by_image()), strict=True)
    ranked = sorted(((record, miou) for record, miou in scored if miou is not None), key=lambda pair: pair[1])
    rows = ((record.image_id, miou, "; ".join(record.warnings)) for record, miou in ranked[:WORST])
    return Table(("image", "mIoU", "warnings"), tuple(rows))


def thresholds(members: Sequence[Run]) -> Table:
    """mIoU of every run at every threshold that one of them tried."""
    curves = [run.summary.miou_by_threshold or {} for run in members]
    tried = dict.fromkeys(key for curve in curves for key in curve)
    rows = ((key, *(curve.get(key) for curve in curves)) for key in tried)
    names = tuple(run.name for run in members)
    return Table(("threshold", *names), tuple(rows), better=dict.fromkeys(names, "higher"))


def confusion_table(run: Run) -> Table:
    """Share in per cent of each class's pixels (row) that was labelled as each class (column)."""
    names, shares = confusion(run).values()
    rows = ((name, *map(float, row)) for name, row in zip(names, shares, strict=True))
    return Table(("ground truth", *names), tuple(rows), digits=1)


def page_tables(comparison: Comparison) -> dict[str, Table]:
    """What the page shows, by name: tables of one of several kinds end in its number, those of a run in the run's."""
    found = {"leaderboard": leaderboard(comparison), "seeds": seeds(comparison)}
    if (row := benchmarks(comparison)) is not None:
        found = {"benchmarks": row, **found}
    several = len(comparison.kinds) > 1
    for place, members in enumerate(comparison.kinds.values(), start=1):
        suffix = f"_{place}" if several else ""
        found[f"iou_by_class{suffix}"] = comparison.classes(members)
        found[f"thresholds{suffix}"] = thresholds(members)
        for index, table in enumerate(comparison.ablations(members).values(), start=1):
            found[f"ablation{suffix}_{index}"] = table
    runs = [run for members in comparison.kinds.values() for run in members]
    for place, grid in enumerate(grids(runs), start=1):
        found[f"methods_{place}"] = grid.table()
    for place, run in enumerate(runs, start=1):
        found[f"worst_images_{place}"] = worst_images(run)
        found[f"confusion_{place}"] = confusion_table(run)
    return {name: table for name, table in found.items() if table.rows}


def written(name: str, table: Table) -> dict[str, str]:
    """Ending -> the table as CSV, Markdown and LaTeX; a page has less room than a file: the latter two leave columns out."""
    short = table.select(IN_PRINT) if name == "leaderboard" else table
    return {"csv": table.csv(), "md": f"{short.markdown()}\n", "tex": f"{short.latex()}\n"}


def write_tables(tables: Mapping[str, Table], images: Table, folder: Path) -> list[Path]:
    """Tables of several runs as CSV, Markdown and LaTeX, ablations and thresholds in `tables` below `folder`; and images.csv.

    Returns:
        The CSV files in `folder`.
    """
    (folder / "tables").mkdir(exist_ok=True)
    shared = {name: table for name, table in tables.items() if not name.startswith(_OF_A_RUN)}
    for name, table in shared.items():
        for ending, text in written(name, table).items():
            place = folder / "tables" if name.startswith(_OF_A_KIND) else folder
            (place / f"{name}.{ending}").write_text(text, encoding="utf-8")
    (folder / "images.csv").write_text(images.csv(), encoding="utf-8")
    return [folder / f"{name}.csv" for name in (*shared, "images") if not name.startswith(_OF_A_KIND)]


def _joined(tables: dict[str, Table]) -> Table:
    """Tables of the same columns as one, each under its name."""
    filled = {name: table for name, table in tables.items() if table.rows}
    first = next(iter(filled.values()), None)
    if first is None:
        return Table((), ())
    rows: tuple[tuple[Cell, ...], ...] = tuple(row for table in filled.values() for row in table.rows)
    return Table(
        first.columns, rows, tuple((name, len(table.rows)) for name, table in filled.items()), first.better, first.digits
    )
