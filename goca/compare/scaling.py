"""How well the models of the runs generate: the horizontal axis of the scaling plot, one quantity at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca.compare.runs import Run


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Scale:
    """One quantity that says how well a model generates.

    Args:
        label: of the axis.
        better: which way it improves; better models stand to the right.
        scores: model name -> value, from a source of the user's; they go before what a run says of its own checkpoint.
    """

    label: str
    better: Literal["higher", "lower"] = "higher"
    scores: Mapping[str, float | None] = field(default_factory=dict)


def generative_power(run: Run, scales: Mapping[str, Scale]) -> dict[str, float]:
    """Quantity -> value of the model of one run, for those that are known."""
    known = run.summary.generator
    values = {name: scale.scores.get(run.summary.model, known.get(name)) for name, scale in scales.items()}
    return {name: float(value) for name, value in values.items() if value is not None}
