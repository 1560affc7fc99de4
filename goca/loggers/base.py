"""No logger, and several."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ConfigDict, field_validator, model_validator
from pydantic.dataclasses import dataclass as config_dataclass

from goca.runs.report import Logger, Report

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


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
