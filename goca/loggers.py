"""Where a finished run is shown besides its own folder. Results are on disk before a logger is asked; none can stop a run."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import requests
from PIL import Image
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as config_dataclass

from goca.data.base import Sample
from goca.data.classes import ClassTable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """Everything a logger may show of a finished run."""

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    classes: ClassTable
    figures: Mapping[str, Image.Image] = field(default_factory=dict)  # name -> picture
    examples: Sequence[tuple[Sample, np.ndarray]] = ()  # images with their predicted labels (H, W)


class Logger(ABC):
    """One destination."""

    @abstractmethod
    def log(self, report: Report) -> str | None:
        """Show the report; returns a line that says where it can be seen."""

    def log_safely(self, report: Report) -> str | None:
        """`log`, where a failure is a warning: the results are on disk already."""
        try:
            return self.log(report)
        except Exception as error:  # any failure of a service or its client
            log.warning("%s could not log this run (%s: %s); results are in %s", type(self).__name__, type(error).__name__, error, report.folder)
            return None


@config_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NoLogger(Logger):
    """Nothing but the run folder."""

    def log(self, report: Report) -> None:
        return None


@config_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WandbLogger(Logger):
    """Weights & Biases: configuration, numbers, per-class table, figures and images with their masks.

    Args:
        mode: `auto` is online where this machine is logged in and offline elsewhere.
        project, entity, tags: as in `wandb.init`.
    """

    mode: Literal["auto", "online", "offline"] = "auto"
    project: str = "goca"
    entity: str | None = None
    tags: tuple[str, ...] = ()

    def log(self, report: Report) -> str | None:
        import wandb  # takes a second; runs without it should not wait

        summary = report.summary
        labels = [str(summary[key]) for key in ("dataset", "model", "protocol", "method")]
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=report.folder,
            mode="offline" if self.mode == "offline" or (self.mode == "auto" and not logged_in()) else "online",
            config=dict(report.config),
            group=str(report.config.get("experiment", "default")),
            job_type="evaluate",
            tags=[*self.tags, *labels],
            settings=wandb.Settings(silent=True, disable_git=True, console="off", x_disable_stats=True),
        )
        run.summary.update({key: value for key, value in summary.items() if isinstance(value, (int, float, str))})
        if summary["miou"] is not None:
            thresholds = wandb.Table(columns=["threshold", "mIoU"], data=[[k, v] for k, v in summary["miou_by_threshold"].items()])
            by_class = wandb.Table(columns=["class", "IoU"], data=[[k, v] for k, v in summary["iou_by_class"].items()])
            run.log({"miou_by_threshold": thresholds, "iou_by_class": by_class})
            run.summary.update({f"miou/{key}": value for key, value in summary["miou_by_threshold"].items()})
        if summary["layer_weights"]:
            weights = wandb.Table(columns=["layer", "weight"], data=[[k, v] for k, v in summary["layer_weights"].items()])
            run.log({"layer_weights": wandb.plot.bar(weights, "layer", "weight", title="Mean layer weights")})
        if report.examples:
            run.log({"examples": [_masked(sample, label, report.classes) for sample, label in report.examples]})
        run.log({f"figures/{name}": wandb.Image(picture) for name, picture in report.figures.items()})
        where = run.url or f"{run.dir.removesuffix('/files')}  (offline; `wandb sync` uploads it)"
        run.finish()
        return where


def logged_in() -> bool:
    """Whether a Weights & Biases key is known, from the environment or from the netrc file."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(host))


def _masked(sample: Sample, label: np.ndarray, classes: ClassTable) -> Any:
    import wandb

    names = dict(enumerate(classes.names)) | {255: "ignored"}
    masks = {"prediction": {"mask_data": label.astype(np.uint8), "class_labels": names}}
    if sample.label is not None:
        masks["ground_truth"] = {"mask_data": sample.label, "class_labels": names}
    return wandb.Image(sample.image, masks=masks, caption=sample.image_id)
