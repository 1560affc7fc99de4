"""Draws docs/images/growth.png from the lines of `benchmarks.growth`: `python -m benchmarks.growth_page`.

Log-log, a panel for each setting that varies; the slope of a straight line through the points (least squares) is the power that
the cost grows with. Lines of the newest date in benchmarks/results.jsonl are taken; a file as argument is read instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.growth import BASE
from goca.figures.plots import render

RESULTS, PICTURE = Path("benchmarks/results.jsonl"), Path("docs/images/growth.png")
UNITS = {"size": "pixels of the picture", "classes": "classes", "layers": "layers observed", "batch": "images in a batch"}
# What is drawn: its name, colour, and how it follows from a line.
CURVES = {
    "beyond the bare forward": ("#31688e", lambda line: line["beyond_bare"]),
    "whole image": ("#35b779", lambda line: line["seconds"]),
}


def read(path: Path) -> list[dict[str, Any]]:
    """The growth lines of the newest date; raises SystemExit where there are none."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line.get("benchmark") == "growth"]
    if not found:
        raise SystemExit(f"{path} has no lines of benchmarks.growth")
    newest = max(line["date"] for line in found)
    return [line for line in found if line["date"] == newest]


def points(lines: list[dict[str, Any]], varied: str) -> list[tuple[float, dict[str, Any]]]:
    """(value, line) of one setting, ascending; the setting that all others share counts for each of them."""
    base = [line for line in lines if all(line[key] == value for key, value in BASE.items() if key not in ("layers", varied))]
    full = max(line["layers"] for line in lines)
    shared = {
        line[varied]: line for line in base if varied == "layers" or line["layers"] == full
    }  # a base that was measured again is one point
    return sorted(((value**2 if varied == "size" else value, line) for value, line in shared.items()), key=lambda pair: pair[0])


def slope(values: list[float], seconds: list[float]) -> float:
    """Of the straight line through the logarithms."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def panel(axes: Axes, lines: list[dict[str, Any]], varied: str) -> None:
    found = points(lines, varied)
    values = [value for value, _ in found]
    for name, (colour, seconds_of) in CURVES.items():
        seconds = [seconds_of(line) for _, line in found]
        power = slope(values, seconds)
        print(f"{UNITS[varied]:24} {name:24} slope {power:.2f}")
        axes.plot(values, seconds, "o-", color=colour, label=f"{name}: slope {power:.2f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    names = [f"{line['size']}²" if varied == "size" else str(line[varied]) for _, line in found]
    axes.set_xticks(values, names)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(UNITS[varied])
    axes.set_ylabel("seconds an image")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main(path: Path = RESULTS, to: Path = PICTURE) -> None:
    lines = read(path)
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    for axes, varied in zip(figure.subplots(2, 2).flat, UNITS, strict=True):
        panel(axes, lines, varied)
    figure.suptitle(f"Stable Diffusion 1.5, GoCA + affinity, {lines[0]['machine']}, {lines[0]['date']}", fontsize=10)
    to.parent.mkdir(parents=True, exist_ok=True)
    render(figure).quantize(64).save(to, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
