"""From measured pictures to numbers with confidence intervals, and to differences between kinds of guidance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from goca.generation.frechet import Gaussian, bootstrap, frechet_distance
from goca.runs.table import Table

Z95 = 1.959964  # half width of a 95 % interval in standard errors


@dataclass(frozen=True)
class Run:
    """Measurements of one folder, picture by picture.

    Args:
        name: of the folder.
        guidance, scale: how it was made; None where that is not known.
        values: measure -> (N,) one number per picture.
        features: (N, D), if there is a reference to compare with.
        ids: what the pictures of several runs are paired by.
        made_with: what else decides how its pictures look; {} where that is not known.
    """

    name: str
    guidance: str | None
    scale: float | None
    ids: tuple[Hashable, ...]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    features: np.ndarray | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A number and half the width of its 95 % confidence interval."""

    value: float
    margin: float

    def __str__(self) -> str:
        return f"{self.value:.2f} +- {self.margin:.2f}"

    def json(self) -> dict[str, float]:
        return {"value": round(self.value, 4), "ci95": round(self.margin, 4)}


def mean(values: np.ndarray) -> Estimate:
    """Mean over pictures."""
    return Estimate(float(values.mean()), Z95 * float(values.std(ddof=1) / len(values) ** 0.5))


def estimates(run: Run, reference: Gaussian | None, distance: str, rounds: int) -> dict[str, Estimate]:
    """Every number of one run; the interval of the distance is that of a bootstrap over its pictures."""
    found = {name: mean(values) for name, values in run.values.items()}
    if reference is not None and run.features is not None:
        value = frechet_distance(Gaussian.of(run.features), reference)
        spread = bootstrap(run.features, reference, rounds).std(ddof=1) if rounds > 1 else float("nan")
        found = {distance: Estimate(value, Z95 * float(spread)), **found}
    return found


def differences(run: Run, baseline: Run, reference: Gaussian | None, distance: str, rounds: int) -> dict[str, Estimate]:
    """Run minus baseline on the same prompts and seeds, in pairs: what both share does not widen the interval."""
    found = {name: mean(values - baseline.values[name]) for name, values in run.values.items() if name in baseline.values}
    if reference is not None and run.features is not None and baseline.features is not None:
        both = [frechet_distance(Gaussian.of(one), reference) for one in (run.features, baseline.features)]
        spread = float("nan")
        if rounds > 1:
            pairs = [bootstrap(one, reference, rounds) for one in (run.features, baseline.features)]
            spread = float((pairs[0] - pairs[1]).std(ddof=1))
        found = {distance: Estimate(both[0] - both[1], Z95 * spread), **found}
    return found


def baseline_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run with plain guidance that differs from this one in nothing else, if there is one besides it."""
    for other in runs:
        alike = (other.scale, other.ids, other.made_with) == (run.scale, run.ids, run.made_with)
        if other is not run and other.guidance == "cfg" and alike:
            return other
    return None


# Keys of the model section that name the model, or say how attention is read, and leave its pictures as they are.
_OF_READING = (
    *("name", "checkpoint", "revision", "size", "timestep", "layers", "affinity_order", "heads", "feature_size"),
    *("allow_pickle", "device", "placement", "prompt_cache", "text_encoders"),
)


def besides_guidance(summary: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how pictures look beside prompt, seed and guidance, from a run's `summary.json` and `config.yaml`.

    >>> found = besides_guidance({"model": "sd15", "steps": 50}, {"model": {"dtype": "float16", "size": 512}})
    >>> {key: value for key, value in found.items() if value is not None}
    {'weights': 'sd15', 'steps': 50, 'model.dtype': 'float16'}
    """
    found = {"weights": summary.get("checkpoint_hash") or summary.get("model"), "steps": summary.get("steps")}
    found["size"] = summary.get("size")
    # As configured: `own` and `auto` may be one class with other settings.
    found |= {key: configuration.get(key) for key in ("scheduler", "scheduler_options", "pipeline_options")}
    model = configuration.get("model") or {}
    return found | {f"model.{key}": value for key, value in model.items() if key not in _OF_READING}


def table(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> Table:
    """One row per run: numbers with intervals, and differences to plain guidance."""
    columns = ["run", "guidance", "scale", "pictures"]
    for name in measures:
        columns += [name, f"{name} +-", f"{name} - cfg", f"{name} - cfg +-"]
    cells = []
    for row in rows:
        line: list[Any] = [row["run"], row["guidance"], row["scale"], row["pictures"]]
        for name in measures:
            for part in (row["measures"].get(name), row["minus_cfg"].get(name)):
                line += [None, None] if part is None else [part["value"], part["ci95"]]
        cells.append(tuple(line))
    return Table(tuple(columns), tuple(cells))
