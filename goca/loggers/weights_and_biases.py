"""Weights & Biases: configuration, numbers, tables and pictures of a finished run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass

from goca.data.base import IGNORE
from goca.figures.example import Example
from goca.loggers.base import CONFIG
from goca.runs.report import Logger, Report

if TYPE_CHECKING:
    import wandb

_TAG_LENGTH = 64  # the service's limit
_LOCAL_START = 90.0  # seconds until W&B's own process has started, on a busy machine


@dataclass(frozen=True, config=CONFIG)
class WandbLogger(Logger):
    """Weights & Biases; the run's group is `group`.

    Args:
        mode: `auto` follows the environment variable WANDB_MODE and is offline without it: nothing is uploaded unasked.
            With WANDB_MODE=disabled nothing is logged, whatever the mode.
        project, entity, tags: as in `wandb.init`; data set, model, protocol, method and its parts become tags too.
        init_timeout, finish_timeout: seconds to wait for the service at the start, and for the upload. What has not arrived by
            then stays in the run folder.
    """

    mode: Literal["auto", "online", "offline"] = "auto"
    project: str = "goca"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    init_timeout: PositiveFloat = 30.0
    finish_timeout: PositiveFloat = 300.0

    def log(self, report: Report) -> str | None:
        mode = self._mode()
        return None if mode == "disabled" else self._log(report, offline=mode == "offline")

    def keep(self, report: Report) -> str | None:
        """The service is away: an offline run, which waits in the run folder."""
        return None if self._mode() == "disabled" else self._log(report, offline=True)

    def _mode(self) -> str:
        """`online`, `offline` or `disabled`."""
        asked = os.environ.get("WANDB_MODE", "").lower()
        if asked in ("disabled", "dryrun"):
            return "disabled" if asked == "disabled" else "offline"
        return self.mode if self.mode != "auto" else "online" if asked == "online" else "offline"

    def _log(self, report: Report, offline: bool) -> str | None:
        import wandb  # takes a second; runs without it should not wait

        with _without_launch_agent():
            run = wandb.init(
                project=self.project,
                entity=self.entity,
                dir=report.folder,
                name=report.name[:128],
                mode="offline" if offline else "online",
                config=dict(report.config),
                group=report.group,
                job_type=report.kind,
                tags=list(dict.fromkeys([*self.tags, *(tag[:_TAG_LENGTH] for tag in report.tags)])),
                settings=wandb.Settings(
                    silent=True,
                    disable_git=True,
                    console="off",
                    x_disable_stats=True,
                    finish_timeout=self.finish_timeout,
                    finish_timeout_raises=True,
                    init_timeout=_LOCAL_START if offline else self.init_timeout,
                ),
            )
        folder = Path(run.dir).parent
        try:
            run.summary.update({**report.texts, **report.scalars})
            run.log(_numbers(report) | _pictures(report))
            where = f"{folder}  (offline; `wandb sync {folder}` uploads it)" if offline else run.url
        finally:
            try:
                run.finish()
            except TimeoutError:
                where = f"{folder}  (not all of it has arrived; `wandb sync {folder}` uploads the rest)"
        return where


@contextmanager
def _without_launch_agent() -> Iterator[None]:
    """`wandb.init` asks whether inputs of a launched job were staged, and imports W&B's launch agent to ask: half of its time.

    They are staged by functions of that module, so that there are none where nobody has imported it.
    """
    name = "wandb.sdk.launch.inputs.internal"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = nothing_staged = ModuleType(name)
    nothing_staged.__dict__["StagedLaunchInputs"] = _NothingStaged
    try:
        yield
    finally:
        sys.modules.pop(name, None)


class _NothingStaged:
    def apply(self, run: object) -> None:
        """Leaves the run as it is."""


def _numbers(report: Report) -> dict[str, Any]:
    """Every table, and the layer weights once more as a chart."""
    import wandb

    logged: dict[str, Any] = {
        f"tables/{name}": wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        for name, table in report.tables.items()
    }
    if "layer_weights" in report.tables:
        rows = [list(row[:2]) for row in report.tables["layer_weights"].rows]
        weights = wandb.Table(columns=["layer", "weight"], data=rows)
        logged["charts/layer_weights"] = wandb.plot.bar(weights, "layer", "weight", title="Mean layer weights")
    return logged


def _pictures(report: Report) -> dict[str, Any]:
    """Figures and films of the run, images with their masks, and the maps of each drawn image through the method."""
    import wandb

    pictures: dict[str, Any] = {f"figures/{name}": wandb.Image(picture) for name, picture in report.figures.items()}
    for name, film in report.films.items():
        pictures[f"films/{name}"] = wandb.Video(str(film), format="mp4" if film.suffix == ".mp4" else "gif")
    for name, gallery in report.galleries.items():
        pictures[name] = [wandb.Image(picture, caption=caption) for caption, picture in gallery]
    if report.examples:
        pictures["examples"] = [_masked(example, report) for example in report.examples]
    return pictures


def _masked(example: Example, report: Report) -> wandb.Image:
    """The image with its prediction and ground truth as masks that can be switched on and off."""
    import wandb

    names = dict(enumerate(report.class_names)) | {IGNORE: "ignored"}
    label = example.labels[min(report.threshold, len(example.labels) - 1)]
    masks = {"prediction": {"mask_data": label.astype(np.uint8), "class_labels": names}}
    if example.truth is not None:
        masks["ground_truth"] = {"mask_data": example.truth, "class_labels": names}
    return wandb.Image(example.image, masks=masks, caption=example.image_id)
