"""Loggers that write files: CSV tables and TensorBoard events."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from goca.errors import require
from goca.loggers.base import CONFIG
from goca.runs.report import Logger, Report
from goca.runs.table import Table


@dataclass(frozen=True, config=CONFIG)
class CsvLogger(Logger):
    """One CSV file per table, in the folder `tables` of the run: summary, thresholds, classes, confusion, layers, images."""

    def log(self, report: Report) -> str:
        folder = report.folder / "tables"
        folder.mkdir(exist_ok=True)
        summary = Table(("key", "value"), tuple(report.scalars.items()))
        for name, table in {"summary": summary, **report.tables}.items():
            (folder / f"{name}.csv").write_text(table.csv(), encoding="utf-8")
        return str(folder)


@dataclass(frozen=True, config=CONFIG)
class TensorBoardLogger(Logger):
    """TensorBoard (the extra `tensorboard`): scalars, tables as text, configuration, pictures.

    Args:
        level: `full` also writes pictures.
    """

    level: Literal["numbers", "full"] = "full"

    def check(self) -> None:
        require("tensorboard", "tensorboard", "tensorboard", "logger=tensorboard")

    def log(self, report: Report) -> str:
        from torch.utils.tensorboard import SummaryWriter

        folder = report.folder / "tensorboard"
        with SummaryWriter(folder) as writer:
            for name, value in report.scalars.items():
                writer.add_scalar(name, value)
            writer.add_text("config", f"```json\n{json.dumps(report.config, indent=2, default=str)}\n```")
            for name, table in report.tables.items():
                writer.add_text(f"tables/{name}", table.markdown())
            if self.level == "full":
                for name, picture in report.figures.items():
                    writer.add_image(f"figures/{name}", np.asarray(picture), dataformats="HWC")
                for name, pictures in report.galleries.items():
                    for caption, picture in pictures:
                        writer.add_image(f"{name}/{caption}", np.asarray(picture.convert("RGB")), dataformats="HWC")
        return f"{folder}  (tensorboard --logdir {report.folder.parent})"
