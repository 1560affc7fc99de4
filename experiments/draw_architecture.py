"""Draw the rooms of the package and what each imports, from its source: `python -m experiments.draw_architecture`.

Writes docs/images/architecture.png. A room stands one floor above the highest room that it imports; an arrow that a longer way
makes superfluous is left out.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

from tests.helpers.import_graph import commands, drawn_arrows, room, rooms

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("docs/images/architecture.png")
GROUND = {"errors", "paths", "redact", "timing", "ops", "registry", "config", "layer_names", "goca"}
COLOURS = {"command": "#f6d6b8", "room": "#cfe3f5", "module": "#e8e8e8"}


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its floor: 0 where it imports no other."""
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((floor(target) for target in graph.get(name, ())), default=-1)
        return found[name]

    for name in graph:
        floor(name)
    return found


def main() -> None:
    runnable = {room(name) for name in commands()} - {"compare", "data", "scenes"}
    graph = {
        name: {target for target in targets if target not in GROUND and target not in runnable}
        for name, targets in rooms().items()
        if name not in GROUND and name not in runnable
    }
    height = floors(graph)
    rows = [sorted(name for name in graph if height[name] == floor) for floor in range(max(height.values()) + 1)]
    place = {name: (x - (len(row) - 1) / 2, floor) for floor, row in enumerate(rows) for x, name in enumerate(row)}
    figure, axes = plt.subplots(figsize=(11, 1.05 * len(rows) + 1.6))
    for source, target in drawn_arrows(graph):
        (x0, y0), (x1, y1) = place[source], place[target]
        bend = 0.0 if y0 - y1 == 1 else 0.12 * (1 if x0 >= x1 else -1)
        style = {"arrowstyle": "-|>", "color": "#777777", "lw": 0.9, "shrinkA": 13, "shrinkB": 20}
        axes.annotate("", (2 * x1, y1), (2 * x0, y0), arrowprops={**style, "connectionstyle": f"arc3,rad={bend}"})
    for name, (x, y) in place.items():
        kind = "room" if Path("goca", name).is_dir() else "module"
        box = {"boxstyle": "round,pad=0.45", "facecolor": COLOURS[kind], "edgecolor": "#555555", "lw": 0.8}
        axes.text(2 * x, y, name, ha="center", va="center", fontsize=11, bbox=box)
    wide = max(len(row) for row in rows)
    box = {"boxstyle": "round,pad=0.5", "facecolor": COLOURS["command"], "edgecolor": "#555555", "lw": 0.8}
    above = ", ".join(sorted(runnable - GROUND)).replace("evaluate_generation, ", "evaluate_generation,\n")
    axes.text(0, len(rows) + 0.15, f"commands: {above}", ha="center", va="center", fontsize=10, bbox=box)
    box = {**box, "facecolor": COLOURS["module"]}
    axes.text(0, -1.0, f"ground floor: {', '.join(sorted(GROUND - {'goca'}))}", ha="center", va="center", fontsize=10, bbox=box)
    axes.set_xlim(-wide - 0.6, wide + 0.6)
    axes.set_ylim(-1.5, len(rows) + 0.7)
    axes.axis("off")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=110, bbox_inches="tight")
    print(OUT)


if __name__ == "__main__":
    main()
