"""`python -m goca.compare outputs/...`: one page, CSV and Markdown from run folders."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.arguments import folders_first
    from goca.config.start import start

    sys.argv[1:] = folders_first(sys.argv[1:])
    start("goca.compare.__main__", "compare")

from pathlib import Path

import rich.table
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape

from goca import config
from goca.compare.content import Comparison, Settings
from goca.compare.page import markdown, write_page
from goca.compare.runs import load
from goca.compare.tables import page_tables, write_tables
from goca.config.arguments import folders_first
from goca.errors import ConfigError
from goca.runs.table import Table
from goca.runs.terminal import print_table


def compare(cfg: DictConfig) -> Path:
    """Compare the runs of the configuration and write page, tables and Markdown; returns the page.

    Raises:
        DataError: no run to compare. ConfigError: plotly is missing, or the output folder cannot be written to.
    """
    console = Console(emoji=False)
    settings: Settings = config.build(cfg, "settings")
    runs, notes = load([Path(path) for path in cfg.runs] or [Path(cfg.paths.output)])
    comparison = Comparison(runs, settings)
    folder = Path(cfg.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tables = page_tables(comparison)
        page = write_page(comparison, tables, notes, cfg.title, folder / "index.html")
        files = write_tables(tables, comparison.images(), folder)
        text = Path(cfg.markdown or folder / "results.md")
        text.write_text(markdown(comparison, notes, cfg.title, tables.get("benchmarks")), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write to {error.filename or folder} ({error.strerror}); set output") from error
    for kind, members in comparison.kinds.items():
        console.print(_ranking(comparison.leaderboard(members), comparison.titles[kind]))
    if row := tables.get("benchmarks"):
        short = row.select([name for name in row.columns if name != "source"])
        print_table(short, "The eight benchmarks of open-vocabulary segmentation, mIoU", console)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for what, path in (("page", page), ("Markdown", text), *(("table", path) for path in files)):
        console.print(f"{what:<9} {path}", markup=False, highlight=False, soft_wrap=True)
    return page


def _ranking(board: Table, title: str) -> rich.table.Table:
    """The leaderboard of one kind, as far as it fits on a terminal."""
    grid = rich.table.Table(title=escape(title), title_justify="left")
    shown = ("rank", "mIoU", "method", "model", "run", "low", "high", "s / image")
    for name in shown:
        grid.add_column(name, justify="left" if name in ("run", "model", "method") else "right", overflow="fold")
    for row in board.rows:
        cells = dict(zip(board.columns, row, strict=True))
        grid.add_row(*(f"{cells[name]:.2f}" if isinstance(cells[name], float) else escape(str(cells[name])) for name in shown))
    return grid


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "compare"):
        compare(cfg)
