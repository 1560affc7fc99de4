"""Draws docs/images/growth.png from the lines of `benchmarks.growth`: `python -m benchmarks.growth_page`.

Log-log, a panel for each setting that varies; the slope of a straight line through the points (least squares) is the power that
the cost grows with. With lines of `benchmarks.growth --peers` there are two more panels, tools that keep all maps beside ours.
Lines of the newest date in benchmarks/results.jsonl are taken; a file as argument is read instead.
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


PEERS = {  # variant -> colour and style
    "goca+affinity": ("#31688e", "o-"),
    "goca, maps stored": ("#31688e", "s--"),
    "daam": ("#fd8d3c", "o-"),
    "daam, maps stored": ("#fd8d3c", "s--"),
}


def read(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """The lines of a benchmark, of the newest date."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line.get("benchmark") == benchmark]
    newest = max((line["date"] for line in found), default=None)
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
    names = [f"{line['size']}²" if varied == "size" else str(line[varied]) for _, line in found]
    _log_log(axes, values, names, UNITS[varied], "seconds an image")


def beside_peers(axes: Axes, lines: list[dict[str, Any]], key: str, what: str) -> None:
    """What each tool takes beside the bare forward, by the size of the picture; bars: the range over the rounds."""
    sizes = sorted({line["size"] for line in lines})
    by_name = {(line["variant"], line["size"]): line for line in lines}
    for place, (name, (colour, style)) in enumerate(PEERS.items()):
        found = [by_name[name, size] for size in sizes]
        ratios = np.array([line[key] for line in found])
        print(f"{what:8} {name:24} beside the bare forward: {dict(zip(sizes, ratios.tolist(), strict=True))}")
        # Side by side, so that bars do not hide one another.
        places = np.arange(len(sizes)) + 0.06 * (place - 1.5)
        ranges = np.array([line["ratio_range"] for line in found]).T
        bars = abs(ranges - ratios) if key == "ratio_time" else None
        axes.errorbar(places, ratios, bars, fmt=style, color=colour, markersize=5, capsize=3, label=name)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(sizes)), [f"{size}²" for size in sizes])
    axes.set_xlabel(UNITS["size"])
    axes.set_ylabel(f"{what} beside the bare forward")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _log_log(axes: Axes, values: list[float], names: list[str], x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, names)
    axes.set_xticks([], minor=True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def main(path: Path = RESULTS, to: Path = PICTURE) -> None:
    lines, peers = read(path, "growth"), read(path, "growth peers")
    if not lines:
        raise SystemExit(f"{path} has no lines of benchmarks.growth")
    figure = Figure(figsize=(13 if peers else 9, 6.5), layout="constrained")
    panels = figure.subplots(2, 3 if peers else 2)
    for axes, varied in zip(panels[:, :2].flat, UNITS, strict=True):
        panel(axes, lines, varied)
    title = f"Stable Diffusion 1.5, GoCA + affinity, {lines[0]['machine']}, {lines[0]['date']}"
    if peers:
        beside_peers(panels[0, 2], peers, "ratio_time", "time")
        beside_peers(panels[1, 2], peers, "ratio_memory", "memory")
        title += f"; right, beside tools that keep all maps: {peers[0]['machine']}, {peers[0]['date']}"
    figure.suptitle(title, fontsize=10)
    to.parent.mkdir(parents=True, exist_ok=True)
    render(figure).quantize(64).save(to, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
