"""The comparison as one HTML file without any reference to the network, as CSV files and as Markdown."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from goca.compare.content import Comparison, repeats
from goca.compare.tables import written
from goca.runs.table import Table, markdown_text

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


def write_page(comparison: Comparison, tables: Mapping[str, Table], notes: Sequence[str], title: str, path: Path) -> Path:
    """Write the page; its tables can be taken from it as files."""
    from plotly.offline import get_plotlyjs  # takes a second

    files = resources.files("goca.compare")
    page = (files / "page.html").read_text(encoding="utf-8").replace("<!--TITLE-->", html.escape(title))
    parts = {
        "STYLE": (files / "page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": _script_json(
            {
                "title": title,
                "notes": list(notes),
                "files": {name: written(name, table) for name, table in tables.items()},
                "benchmarks": vars(tables["benchmarks"]) if "benchmarks" in tables else None,
                "worst": {name: vars(table) for name, table in tables.items() if name.startswith("worst_images")},
                **comparison.page_data(),
            }
        ),
        "SCRIPT": "".join((files / name).read_text(encoding="utf-8") for name in ("page.js", "grid.js")),
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


def markdown(comparison: Comparison, notes: Sequence[str], title: str, row: Table | None = None) -> str:
    """The row of the eight benchmarks where there is one, leaderboard and ablations of every kind as Markdown."""
    level = f"{100 * comparison.settings.level:g} %"
    lines = [f"# {title}", ""]
    lines += [
        f"Numbers of different sections are not comparable. low, high: {level} bootstrap interval over images; differences are "
        "paired, image by image, and taken from the row that has none. Where a threshold was chosen on the evaluated images, "
        "the number is optimistic."
    ]
    if row is not None:
        lines += ["", "## Eight benchmarks", "", row.markdown()]
    for kind, members in comparison.kinds.items():
        board = comparison.leaderboard(members).select(_LEADERBOARD_IN_MARKDOWN)
        lines += ["", f"## {markdown_text(comparison.titles[kind])}", "", board.markdown()]
        if (again := repeats(members)).rows:
            lines += ["", "### Over seeds", "", again.markdown()]
        for model, table in comparison.ablations(members).items():
            lines += ["", f"### {model}: what each setting changes", "", table.markdown()]
    if notes:
        lines += ["", "## Left out or apart", "", *(f"- {markdown_text(note)}" for note in notes)]
    return "\n".join(lines) + "\n"
