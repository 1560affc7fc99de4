"""Published rows of others on the eight benchmarks, to stand beside runs of the same regime, marked as quoted."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from goca.errors import ConfigError
from goca.runs.benchmark_row import BENCHMARKS, PROTOCOL, Row, group_name
from goca.runs.kinds import Regime


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Quoted:
    """One entry of `quoted.yaml`; its comments say what the keys mean."""

    method: str
    model: str
    regime: Regime
    source: str
    setting: str
    miou: dict[str, float]

    def row(self, version: int) -> Row:
        """Under the heading of runs that follow the field's protocol."""
        return Row(
            group_name(self.regime, PROTOCOL, version), self.method, self.model, self.miou, f"{self.source}; {self.setting}"
        )


def read_quoted(path: Path | None = None, version: int = 1) -> list[Row]:
    """The rows of a file in the form of `goca/compare/quoted.yaml`; of that file itself without one.

    Args:
        version: of the protocol that the runs beside them follow.

    Raises:
        ConfigError: the file is missing, or an entry is not what it should be; the message names it.
    """
    where = path or resources.files("goca.compare") / "quoted.yaml"
    try:
        entries = TypeAdapter(list[Quoted]).validate_python(yaml.safe_load(where.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"settings.quoted: {where} cannot be read: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"settings.quoted: {where}, entry {place}: {first['msg']}; see goca/compare/quoted.yaml") from error
    for entry in entries:
        if unknown := sorted(entry.miou.keys() - BENCHMARKS.keys()):
            names = f"{', '.join(unknown)}; there are {', '.join(BENCHMARKS)}"
            raise ConfigError(f"settings.quoted: {where}, {entry.method}: no benchmark is called {names}")
    return [entry.row(version) for entry in entries]
