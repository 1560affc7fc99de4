"""What a logger is given, and what it has to do."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import ConfigDict, field_validator, model_validator
from pydantic.dataclasses import dataclass as config_dataclass

from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.errors import GocaError
from goca.redact import redact
from goca.runs.folder import Record, RunFolder
from goca.runs.tables import Table, run_tables

if TYPE_CHECKING:
    from goca.prediction import Prediction

log = logging.getLogger(__name__)
PAUSES = (2.0, 10.0)  # seconds before the second and the third attempt
CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Example:
    """One of the drawn images: the sample, what was predicted, and its labels (H, W) at the summary's threshold."""

    sample: Sample
    prediction: Prediction
    label: np.ndarray


@dataclass(frozen=True)
class Report:
    """Everything a logger may show of a finished run."""

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    classes: ClassTable
    figures: Mapping[str, Image.Image] = field(default_factory=dict)  # name -> picture
    examples: Sequence[Example] = ()

    @cached_property
    def records(self) -> list[Record]:
        """One record per image, from the run folder."""
        return RunFolder(self.folder).records()

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The numbers as tables."""
        heads = [example.prediction.head_weights for example in self.examples if example.prediction.head_weights]
        return run_tables(self.summary, self.records, self.classes.names, heads)

    @property
    def scalars(self) -> dict[str, float]:
        """Single numbers by name; sweeps and stages as `miou/<threshold>` and `seconds/<stage>`."""
        plain = {key: value for key, value in self.summary.items() if isinstance(value, (int, float)) and value is not None}
        sweep = {f"miou/{tau}": value for tau, value in self.summary.get("miou_by_threshold", {}).items() if value is not None}
        return plain | sweep | {f"seconds/{stage}": value for stage, value in self.summary["seconds_by_stage"].items()}


class Logger(ABC):
    """One destination."""

    @abstractmethod
    def log(self, report: Report) -> str | None:
        """Show the report; returns a line that says where it can be seen."""

    def check(self) -> None:
        """Refuse, before anything is computed, what cannot work: a package that is not installed.

        Raises:
            ConfigError: with what to install.
        """
        return

    def keep(self, report: Report) -> str | None:
        """Where `log` fails for good: keep the report for later, if the destination can; returns how it gets there by hand."""
        return None

    def log_safely(self, report: Report) -> str | None:
        """`log`, tried again after pauses, then `keep`. Failures are warnings: the results are on disk already."""
        for pause in (*PAUSES, None):
            try:
                return self.log(report)
            except Exception as error:  # any failure of a service or its client
                if pause is None or isinstance(error, GocaError):  # what a person has to mend does not mend itself
                    self._warn(error, f"the same command with run.dir={report.folder} logs it again without computing")
                    break
                self._warn(error, f"next attempt in {pause:g} s")
                time.sleep(pause)
        try:
            return self.keep(report)
        except Exception as error:
            self._warn(error, f"the results are in {report.folder}")
            return None

    def _warn(self, error: Exception, consequence: str) -> None:
        name, kind = type(self).__name__, type(error).__name__
        log.warning("%s could not log this run (%s: %s); %s", name, kind, redact(str(error)), consequence)


@config_dataclass(frozen=True, config=CONFIG)
class NoLogger(Logger):
    """Nothing but the run folder."""

    def log(self, report: Report) -> None:
        return None


@config_dataclass(frozen=True, config=CONFIG)
class Several(Logger):
    """Several destinations; one that fails keeps none of the others from their part.

    Args:
        loggers: destinations by name.
        use: names of those to use, in this order; None uses all.
    """

    loggers: Mapping[str, Logger]
    use: tuple[str, ...] | None = None

    @field_validator("loggers")
    @classmethod
    def _not_empty(cls, loggers: Mapping[str, Logger]) -> Mapping[str, Logger]:
        if not loggers:
            raise ValueError("no logger is left; use logger=none for nothing but the run folder")
        return loggers

    @model_validator(mode="after")
    def _known(self) -> Several:
        unknown = [name for name in self.use or () if name not in self.loggers]
        if unknown:
            raise ValueError(f"use: there is no logger {', '.join(unknown)}; choices are {', '.join(self.loggers)}")
        return self

    def check(self) -> None:
        for name in self.use or self.loggers:
            self.loggers[name].check()

    def log(self, report: Report) -> str | None:
        places = [self.loggers[name].log_safely(report) for name in self.use or self.loggers]
        return "\n          ".join(place for place in places if place) or None
