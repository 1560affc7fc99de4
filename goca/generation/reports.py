"""What loggers are given of a generation or of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from goca.loggers import Report
from goca.runs.tables import Table


@dataclass(frozen=True)
class GenerationReport(Report):
    """A report whose tables are handed over instead of being read from segmentation records."""

    numbers: Mapping[str, Table] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Table]:  # type: ignore[override]
        return dict(self.numbers)

    @property
    def scalars(self) -> dict[str, float]:
        return {key: value for key, value in self.summary.items() if isinstance(value, (int, float))}
