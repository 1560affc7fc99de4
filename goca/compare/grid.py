"""Methods against models, for every set of images and what methods were told about them: a heat map, and cost against mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from goca.compare.runs import Run
from goca.runs.kinds import Kind, regime
from goca.runs.table import Table

LEAST = 2  # methods and models; fewer are a list


@dataclass(frozen=True)
class Grid:
    """Mean mIoU and seconds per image over the runs of each method and model (seeds, wordings of the prompt).

    Args:
        title: the images, and what methods were told.
        methods: rows, best mean first.
        models: columns.
        miou, seconds: (method, model) -> value in per cent, or seconds; pairs without a run are left out.
    """

    title: str
    methods: tuple[str, ...]
    models: tuple[str, ...]
    miou: Mapping[tuple[str, str], float]
    seconds: Mapping[tuple[str, str], float]

    def table(self) -> Table:
        """mIoU, a row per method."""
        rows = tuple((method, *(self._rounded(method, model) for model in self.models)) for method in self.methods)
        return Table(("method", *self.models), rows, better=dict.fromkeys(self.models, "higher"))

    def json(self) -> dict[str, Any]:
        """What the page draws."""
        points = [
            {"method": method, "model": model, "miou": round(value, 2), "seconds": round(self.seconds[method, model], 5)}
            for (method, model), value in self.miou.items()
        ]
        return {"title": self.title, "methods": self.methods, "models": self.models, "points": points}

    def _rounded(self, method: str, model: str) -> float | None:
        value = self.miou.get((method, model))
        return None if value is None else round(value, 2)


def grids(runs: Sequence[Run]) -> list[Grid]:
    """The grids of these runs, in their order.

    How a prompt is worded belongs to a method here, as presets word prompts; whether it was made with the help of ground truth
    does not, and divides grids, as do pictures, classes, protocol and rules that it does not promise.
    """
    groups: dict[Kind, list[Run]] = {}
    for run in runs:
        kind = replace(run.kind, prompts=regime(run.summary.prompts), rules=str(run.summary.rules_version))
        groups.setdefault(kind, []).append(run)
    found = [_grid(kind, members) for kind, members in groups.items()]
    return [grid for grid in found if len(grid.methods) >= LEAST and len(grid.models) >= LEAST]


def _grid(kind: Kind, runs: Sequence[Run]) -> Grid:
    cells: dict[tuple[str, str], list[Run]] = {}
    weights: dict[str, set[str]] = {}
    for run in runs:
        weights.setdefault(run.summary.model, set()).add(run.summary.checkpoint)
    for run in runs:
        model, checkpoint = run.summary.model, run.summary.checkpoint
        several = len(weights[model]) > 1 and checkpoint
        cells.setdefault((run.summary.method, f"{model} ({checkpoint})" if several else model), []).append(run)
    miou = {key: fmean(float(run.summary.miou or 0.0) for run in members) for key, members in cells.items()}
    seconds = {key: fmean(run.summary.seconds_per_image for run in members) for key, members in cells.items()}
    means: dict[str, list[float]] = {}
    for (method, _), value in miou.items():
        means.setdefault(method, []).append(value)
    methods = tuple(sorted(means, key=lambda name: -fmean(means[name])))
    parts = (f"{kind.dataset} {kind.split}", f"protocol {kind.protocol}", kind.prompts, f"{kind.images} images", kind.unusual)
    title = ", ".join(filter(None, parts))
    return Grid(title, methods, tuple(sorted({model for _, model in cells})), miou, seconds)
