"""`python -m goca.dashboard`: W&B workspaces and a report that compare backbones (extra `dashboard`).

One workspace and one section of the report per data set and protocol: panels of W&B would mix protocols, whose numbers are not
comparable.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.dashboard", "dashboard")

import os
from collections.abc import Sequence
from typing import Any

import requests
from omegaconf import DictConfig
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from rich.console import Console

from goca import config
from goca.errors import ConfigError, require


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class View:
    """Runs whose numbers may stand side by side."""

    dataset: str
    protocol: str

    @property
    def title(self) -> str:
        return f"{self.dataset}, protocol {self.protocol}"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Dashboard:
    """What to create.

    Args:
        project, entity: as in the logger; entity null is the one that is logged in.
        views: data set and protocol of each comparison.
    """

    project: str
    views: tuple[View, ...]
    entity: str | None = None

    def describe(self) -> list[str]:
        """What `create` would make, line by line."""
        where = f"{self.entity or '(your entity)'}/{self.project}"
        lines = [f"report in {where}: Backbones compared, a section per view, each with"]
        lines += [f"    {_name(panel)}" for panel in _panels()]
        lines += [f"workspace in {where}: {view.title}, the same panels and the pictures" for view in self.views]
        return lines

    def create(self) -> list[str]:
        """Save workspaces and report; returns their addresses. Needs to be logged in."""
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces

        entity = self.entity or _own_entity()
        saved = []
        blocks: list[Any] = [reports.TableOfContents()]
        for view in self.views:
            chosen = [workspaces.Config("dataset.name") == view.dataset, workspaces.Config("protocol.name") == view.protocol]
            sections = [
                workspaces.Section(name="Numbers", panels=_panels(), is_open=True),
                workspaces.Section(name="Pictures", panels=[reports.MediaBrowser(media_keys=["examples"])], is_open=True),
            ]
            settings = workspaces.RunsetSettings(filters=chosen)
            workspace = workspaces.Workspace(entity, self.project, view.title, sections, runset_settings=settings)
            saved.append(workspace.save().url)
            filters = f"Config('dataset.name') = '{view.dataset}' and Config('protocol.name') = '{view.protocol}'"
            runs = reports.Runset(entity=entity, project=self.project, name=view.title, filters=filters)
            blocks += [reports.H2(text=view.title), reports.PanelGrid(runsets=[runs], panels=_panels())]
        report = reports.Report(project=self.project, entity=entity, title="Backbones compared", blocks=blocks, width="fluid")
        report.save()
        return [*saved, report.url]


def _panels() -> list[Any]:
    """The panels of one view, new objects each time because W&B places them."""
    import wandb_workspaces.reports.v2 as reports

    model, miou = reports.Config("model.name"), reports.SummaryMetric("miou")
    return [
        reports.BarPlot(title="mIoU by backbone", metrics=[miou], groupby=model, orientation="h"),
        reports.BarPlot(title="mIoU by method", metrics=[miou], groupby=reports.Config("aggregation.heads"), orientation="h"),
        reports.ScatterPlot(title="mIoU against seconds an image", x=reports.SummaryMetric("seconds_per_image"), y=miou),
        reports.BarPlot(title="Peak memory in bytes", metrics=[reports.SummaryMetric("peak_memory_bytes")], groupby=model),
        reports.ParallelCoordinatesPlot(
            columns=[
                reports.ParallelCoordinatesPlotColumn(metric=reports.Config(name))
                for name in ("model.name", "aggregation.heads", "aggregation.layers", "model.timestep")
            ]
            + [reports.ParallelCoordinatesPlotColumn(metric=miou)],
            title="Settings and mIoU",
        ),
        reports.RunComparer(diff_only="split"),
    ]


def _name(panel: Any) -> str:
    return getattr(panel, "title", None) or type(panel).__name__


def _own_entity() -> str:
    import wandb

    entity = wandb.Api().default_entity
    if not entity:
        raise ConfigError("W&B names no default entity; set dashboard.entity")
    return str(entity)


def logged_in() -> bool:
    """Whether a Weights & Biases key is known, from the environment or from the netrc file."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(host))


def run(dashboard: Dashboard, offline: bool, console: Console | None = None) -> Sequence[str]:
    """Create the dashboard, or say what would be created; returns what was printed."""
    require("wandb_workspaces", "wandb-workspaces", "dashboard", "the dashboard")
    lines = (
        ["Not logged in to W&B (wandb login). This would be created:", *dashboard.describe()] if offline else dashboard.create()
    )
    for line in lines:
        (console or Console(emoji=False)).print(line, markup=False, highlight=False, soft_wrap=True)
    return lines


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "dashboard"):
        run(config.build(cfg, "dashboard"), cfg.offline or not logged_in())
