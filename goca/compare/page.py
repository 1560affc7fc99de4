"""The comparison as one HTML file without any reference to the network, as CSV files and as Markdown."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from goca.compare.content import Comparison, repeats
from goca.runs.tables import Table, markdown_text

_LEADERBOARD_IN_MARKDOWN = (
    "rank",
    "mIoU",
    "method",
    "model",
    "run",
    "low",
    "high",
    "protocol",
    "prompts",
    "images",
    "threshold",
)


def write_page(comparison: Comparison, notes: Sequence[str], title: str, path: Path) -> Path:
    """Write the page."""
    from plotly.offline import get_plotlyjs  # takes a second

    files = resources.files("goca.compare")
    page = (files / "page.html").read_text(encoding="utf-8").replace("<!--TITLE-->", html.escape(title))
    parts = {
        "STYLE": (files / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": _script_json({"title": title, "notes": list(notes), **comparison.page_data()}),
        "SCRIPT": (files / "page.js").read_text(encoding="utf-8"),
    }
    for name, text in parts.items():
        before, _, after = page.rpartition(f"/*{name}*/")  # placeholders are in page order: inserted text is never searched
        page = f"{before}{text}{after}"
    path.write_text(page, encoding="utf-8")
    return path


def _script_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """leaderboard.csv over all kinds (ranks are within a kind), images.csv, seeds.csv where runs are repeated, and IoU by class
    per kind."""
    kinds = list(comparison.kinds.values())
    boards = [comparison.leaderboard(members) for members in kinds]
    tables = {"leaderboard": Table(boards[0].columns, tuple(row for board in boards for row in board.rows))}
    tables["images"] = comparison.images()
    repeated = [repeats(members) for members in kinds]
    if any(table.rows for table in repeated):
        tables["seeds"] = Table(repeated[0].columns, tuple(row for table in repeated for row in table.rows))
    for index, members in enumerate(kinds, start=1):
        tables["iou_by_class" if len(kinds) == 1 else f"iou_by_class_{index}"] = comparison.classes(members)
    paths = [folder / f"{name}.csv" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        path.write_text(table.csv(), encoding="utf-8")
    return paths


def markdown(comparison: Comparison, notes: Sequence[str], title: str) -> str:
    """Leaderboard and ablations of every kind as Markdown."""
    level = f"{100 * comparison.settings.level:g} %"
    lines = [f"# {title}", ""]
    lines += [
        f"Numbers of different sections are not comparable. low, high: {level} bootstrap interval over images; differences are "
        "paired, image by image, and taken from the row that has none. Where a threshold was chosen on the evaluated images, "
        "the number is optimistic."
    ]
    for kind, members in comparison.kinds.items():
        board = comparison.leaderboard(members)
        places = [board.columns.index(column) for column in _LEADERBOARD_IN_MARKDOWN]
        rows = tuple(tuple(row[place] for place in places) for row in board.rows)
        lines += ["", f"## {markdown_text(comparison.titles[kind])}", "", Table(_LEADERBOARD_IN_MARKDOWN, rows).markdown()]
        if (again := repeats(members)).rows:
            lines += ["", "### Over seeds", "", again.markdown()]
        for model, table in comparison.ablations(members).items():
            lines += ["", f"### {model}: what each setting changes", "", table.markdown()]
    if notes:
        lines += ["", "## Left out or apart", "", *(f"- {markdown_text(note)}" for note in notes)]
    return "\n".join(lines) + "\n"
