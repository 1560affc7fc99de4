"""The table after a sweep, as text and as cells."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from goca.runs.records import Summary
from goca.runs.terminal import print_sweep


def summary(folder: str, miou: float | None, **changed: Any) -> tuple[str, Summary]:
    """A job of a sweep and what it found."""
    facts: dict[str, Any] = {
        "dataset": "voc", "split": "val", "protocol": "standard", "prompts": {"source": "classes"}, "model": "sd15",
        "method": "aggregation=goca, decision=offset", "classes": ["background", "cat"], "thresholds": [0.0],
        "unseen_classes": "skip", "has_background": True,
    }  # fmt: skip
    numbers: dict[str, Any] = {
        "images": 5,
        "judged": 5,
        "image_set": "a",
        "rules_hash": "a",
        "pixel_accuracy": 81.25,
        "seconds_per_image": 0.5,
    }
    return folder, Summary(**facts | numbers | changed, miou=miou)


def table(*jobs: tuple[str, Summary], folder: Path = Path("sweep")) -> str:
    console = Console(file=io.StringIO(), width=160, emoji=False)
    print_sweep(dict(jobs), folder, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows(text: str) -> list[list[str]]:
    """The cells of a printed table, without its head."""
    return [
        [cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in text.splitlines() if line[:1] == "\u2502"
    ]
