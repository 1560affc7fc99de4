"""The dashboard without a network: what it describes, and what it hands to W&B's own classes."""

from typing import Any

import pytest

pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from goca import config
from goca.dashboard import Dashboard, View, run
from goca.errors import ConfigError


def test_offline_it_says_what_it_would_create() -> None:
    lines = "\n".join(run(config.build(config.compose([], "dashboard"), "dashboard"), offline=True))
    assert "Not logged in" in lines
    assert "mIoU by backbone" in lines
    assert "voc, protocol upstream" in lines


def test_every_view_holds_one_protocol_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(workspaces.Workspace, "url", "https://example.org/workspace")
    monkeypatch.setattr(reports.Report, "save", lambda self: saved.append(self))
    monkeypatch.setattr(reports.Report, "url", "https://example.org/report")
    views = (View("voc", "upstream"), View("voc", "standard"))
    assert len(Dashboard("goca", views, "somebody").create()) == 3
    for workspace, view in zip(saved, views, strict=False):
        chosen = str(workspace.runset_settings.filters)
        assert "dataset.name" in chosen
        assert f"'{view.protocol}'" in chosen.replace('"', "'")
    grids = [block for block in saved[-1].blocks if isinstance(block, reports.PanelGrid)]
    assert [grid.runsets[0].name for grid in grids] == [view.title for view in views]
    assert all("protocol.name" in str(grid.runsets[0].filters) for grid in grids)


def test_a_wrong_key_is_named() -> None:
    with pytest.raises(ConfigError, match="projekt"):
        config.build(config.compose(["+dashboard.projekt=x"], "dashboard"), "dashboard")
