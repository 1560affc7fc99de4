"""Weights & Biases: configuration, numbers, tables and pictures of a finished run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import requests
from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass

from goca.data.base import IGNORE
from goca.data.classes import ClassTable
from goca.data.files import file_name
from goca.figures import plots
from goca.loggers.base import CONFIG, Example, Logger, Report
from goca.runs.identity import group_of

if TYPE_CHECKING:
    import wandb

_TAG_LENGTH = 64  # the service's limit
_LOCAL_START = 90.0  # seconds until W&B's own process has started, on a busy machine


@dataclass(frozen=True, config=CONFIG)
class WandbLogger(Logger):
    """Weights & Biases; the run's group is `group`.

    Args:
        mode: `auto` follows the variable WANDB_MODE and is offline without it, so that nothing is uploaded unasked.
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
        mode = self.mode if self.mode != "auto" else os.environ.get("WANDB_MODE", "offline")
        return None if mode == "disabled" else self._log(report, offline=mode != "online")

    def keep(self, report: Report) -> str | None:
        """The service is away: an offline run, which waits in the run folder."""
        return self._log(report, offline=True)

    def _log(self, report: Report, offline: bool) -> str | None:
        import wandb  # takes a second; runs without it should not wait

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=report.folder,
            name=f"{report.summary['model']} {report.summary['dataset']} {report.summary['method']}"[:128],
            mode="offline" if offline else "online",
            config=dict(report.config),
            group=group_of(report.config),
            job_type="evaluate",
            tags=list(dict.fromkeys([*self.tags, *_labels(report)])),
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
            run.summary.update({key: value for key, value in report.summary.items() if isinstance(value, str)} | report.scalars)
            run.log(_numbers(report) | _pictures(report))
            where = f"{folder}  (offline; `wandb sync {folder}` uploads it)" if offline else run.url
        finally:
            try:
                run.finish()
            except TimeoutError:
                where = f"{folder}  (not all of it has arrived; `wandb sync {folder}` uploads the rest)"
        return where


def logged_in() -> bool:
    """Whether a Weights & Biases key is known, from the environment or from the netrc file."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(host))


def _labels(report: Report) -> list[str]:
    """Tags to filter by: what was evaluated, and each part of the method."""
    summary = report.summary
    parts = [str(part) for key in ("dataset", "model", "protocol") if (part := summary[key])]
    parts += [f"method={part.strip()}" if "=" not in part else part.strip() for part in str(summary["method"]).split(",")]
    return [part[:_TAG_LENGTH] for part in parts]


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
    """Figures of the run, images with their masks, and the maps of each drawn image through the method."""
    import wandb

    pictures: dict[str, Any] = {f"figures/{name}": wandb.Image(picture) for name, picture in report.figures.items()}
    if "layer_weights" in report.tables:
        names, means, spreads = zip(*(row[:3] for row in report.tables["layer_weights"].rows), strict=True)
        chart = plots.bars(names, means, spreads, "weight (mean and std over images)")
        pictures["figures/layer_weights"] = wandb.Image(chart)
    if "confusion" in report.tables:
        pictures["figures/confusion"] = wandb.Image(plots.confusion_figure(report.tables["confusion"].rows))
    if report.examples:
        pictures["examples"] = [_masked(example, report.classes) for example in report.examples]
    for example in report.examples:
        prediction, name = example.prediction, file_name(example.sample.image_id, most=120)
        if not prediction.maps.ids or prediction.token_maps is None:
            continue
        pictures[f"maps/{name}/classes"] = [
            wandb.Image(plots.heat(channel, float(maps.max())), caption=f"{report.classes.names[class_id]}, {stage}")
            for stage, maps in _stages(example)
            for class_id, channel in zip(prediction.maps.ids, maps, strict=True)
        ]
        prompt, maps = prediction.prompts[0], prediction.token_maps.cpu().numpy()
        pictures[f"maps/{name}/tokens"] = [
            wandb.Image(plots.heat(maps[i], float(maps[i].max())), caption=f"{i}: {prompt.tokens[i]}") for i in prompt.content
        ]
    return pictures


def _stages(example: Example) -> list[tuple[str, np.ndarray]]:
    """(C, h, w) class maps before and after calibration and after refinement."""
    before, after = example.prediction.calibrated, example.prediction.maps
    maps = {"before calibration": before.raw, "after calibration": before.scores, "refined": after.scores}
    return [(stage, values.cpu().numpy()) for stage, values in maps.items()]


def _masked(example: Example, classes: ClassTable) -> wandb.Image:
    """The image with its prediction and ground truth as masks that can be switched on and off."""
    import wandb

    names = dict(enumerate(classes.names)) | {IGNORE: "ignored"}
    masks = {"prediction": {"mask_data": example.label.astype(np.uint8), "class_labels": names}}
    if example.sample.label is not None:
        masks["ground_truth"] = {"mask_data": example.sample.label, "class_labels": names}
    return wandb.Image(example.sample.image, masks=masks, caption=example.sample.image_id)
