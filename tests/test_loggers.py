"""Loggers: what they wrote is read back by each destination's own reader."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from goca import config
from goca.errors import ConfigError
from goca.loggers import CsvLogger, Logger, Report, Several, TensorBoardLogger, WandbLogger
from tests.helpers.fake_runs import TAUS, report
from tests.helpers.wandb_run import WandbRun


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def wandb_run(made_up: Report) -> WandbRun:
    where = WandbLogger(mode="offline", tags=("mine",)).log(made_up)
    assert where is not None
    assert "wandb sync" in where
    return WandbRun(made_up.folder)


def test_wandb_holds_the_configuration_in_full_and_what_to_filter_by(made_up: Report, wandb_run: WandbRun) -> None:
    update = wandb_run.run["config"]["update"]
    assert {key: update[key] for key in made_up.config} == made_up.config
    assert (wandb_run.run["run_group"], wandb_run.run["job_type"]) == ("made up", "evaluate")
    assert wandb_run.run["tags"] == ["mine", "made up", "tiny", "standard", "method=goca"]


def test_wandb_tags_are_never_longer_than_the_service_takes(made_up: Report, tmp_path: Path) -> None:
    method = "aggregation=" + "x" * 90 + ", calibration=goca"
    long = replace(made_up, folder=tmp_path, tags=[f"method={method}"], figures={}, galleries={}, examples=())
    assert WandbLogger(mode="offline").log(long)
    assert max(map(len, WandbRun(tmp_path).run["tags"])) == 64


def test_wandb_starts_without_the_launch_agent_unless_somebody_staged_inputs(
    made_up: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb.sdk.launch")]:
        monkeypatch.delitem(sys.modules, name)
    small = replace(made_up, folder=tmp_path, figures={}, galleries={}, examples=())
    assert WandbLogger(mode="offline").log(small)
    assert not [name for name in sys.modules if name.startswith("wandb.sdk.launch")]
    asked: list[object] = []
    staged = ModuleType("staged")
    staged.StagedLaunchInputs = lambda: SimpleNamespace(apply=asked.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb.sdk.launch.inputs.internal", staged)
    assert WandbLogger(mode="offline").log(small)
    assert len(asked) == 1


def test_wandb_summary_has_miou_at_the_best_and_at_every_threshold(made_up: Report, wandb_run: WandbRun) -> None:
    assert wandb_run.summary["miou"] == pytest.approx(made_up.scalars["miou"])
    assert [wandb_run.summary[f"miou/{tau:g}"] for tau in TAUS] == pytest.approx(
        [value for _, value in made_up.tables["miou_by_threshold"].rows]
    )
    assert wandb_run.summary["seconds/forward"] == 0.2
    assert wandb_run.summary["peak_memory_bytes"] == 2**20


def test_wandb_tables_hold_classes_confusion_layers_heads_and_stages(made_up: Report, wandb_run: WandbRun) -> None:
    assert dict(wandb_run.table("iou_by_class")) == pytest.approx(dict(made_up.tables["iou_by_class"].rows))
    pixels = sum(count for _, _, count in wandb_run.table("confusion"))
    assert pixels == 6 * 12 * 12
    layers = {row[0]: row[1:] for row in wandb_run.table("layer_weights")}
    assert layers["down.attn2"] == pytest.approx([0.275, np.std(0.01 * np.arange(6)), 0.25, 0.3], abs=1e-5)
    assert [row[:3] for row in wandb_run.table("head_weights")][:2] == [["down.attn2", 0, 0.4], ["down.attn2", 1, 0.6]]
    assert dict(wandb_run.table("seconds_by_stage")) == {"decide": 0.05, "forward": 0.2}
    assert len(wandb_run.table("images")) == 6
    assert "charts/layer_weights_table.path" in wandb_run.history


def test_wandb_examples_are_masks_with_class_names(made_up: Report, wandb_run: WandbRun) -> None:
    history = wandb_run.history
    assert history["examples.captions"] == ["image 0", "image 1"]
    masks = history["examples.all_masks"][0]
    for kind, expected in (("prediction", made_up.examples[0].labels[1]), ("ground_truth", made_up.examples[0].truth)):
        assert (np.asarray(Image.open(wandb_run.files / masks[kind]["path"])) == expected).all()
    labels = json.dumps(wandb_run._records)
    assert '"2": "grass <b>"' in labels


def test_wandb_shows_class_maps_through_the_stages_and_token_maps(wandb_run: WandbRun) -> None:
    captions = wandb_run.history["maps/image 0/classes.captions"]
    assert captions[:3] == ["cat, before calibration", "grass <b>, before calibration", "cat, after calibration"]
    assert wandb_run.history["maps/image 0/tokens.captions"] == ["1: cat", "3: gra", "4: ss"]
    assert {"figures/layer_weights.path", "figures/confusion.path"} <= wandb_run.history.keys()


def test_csv_tables_agree_with_the_summary(made_up: Report) -> None:
    folder = Path(str(CsvLogger().log(made_up)))
    with open(folder / "iou_by_class.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", "IoU"]
    assert {name: float(value) for name, value in rows[1:]} == pytest.approx(dict(made_up.tables["iou_by_class"].rows))
    assert {path.stem for path in folder.iterdir()} >= {"summary", "confusion", "images", "layer_weights", "miou_by_threshold"}


def test_tensorboard_events_hold_scalars_and_tables(made_up: Report) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TensorBoardLogger().log(made_up)
    events = EventAccumulator(str(made_up.folder / "tensorboard"))
    events.Reload()
    assert events.Scalars("miou")[0].value == pytest.approx(made_up.scalars["miou"])
    assert "tables/iou_by_class/text_summary" in events.Tags()["tensors"]


class _Broken(Logger):
    def log(self, report: Report) -> str:
        raise OSError("the service is away")


def test_several_loggers_do_not_keep_each_other_from_logging(
    made_up: Report, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goca.runs.report.PAUSES", (0.0, 0.0))
    where = Several({"broken": _Broken(), "csv": CsvLogger()}).log(made_up)
    assert where == str(made_up.folder / "tables")
    assert "the service is away" in caplog.text


def test_every_logger_config_builds_and_several_can_be_chosen() -> None:
    for name in ("none", "wandb", "csv", "tensorboard", "several"):
        assert isinstance(config.build(config.compose([f"logger={name}"]), "logger"), Logger)
    chosen = config.build(config.compose(["logger=several", "logger.use=[csv,wandb]"]), "logger")
    assert chosen.use == ("csv", "wandb")
    assert config.build(config.compose(["logger.mode=online"]), "logger").mode == "online"


def test_an_unknown_logger_is_named_beside_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"no logger csw; choices are wandb, csv, tensorboard"):
        config.build(config.compose(["logger=several", "logger.use=[csw]"]), "logger")
    with pytest.raises(ConfigError, match="'auto', 'online' or 'offline'"):
        config.build(config.compose(["logger.mode=on"]), "logger")


@pytest.mark.parametrize(
    ("mode", "variable", "offline"),
    [
        ("auto", None, True),
        ("auto", "online", False),
        ("auto", "offline", True),
        ("online", "offline", False),
        ("auto", "disabled", None),
        ("online", "disabled", None),
    ],
)
def test_wandb_uploads_only_where_it_is_asked_to(made_up, monkeypatch, mode, variable, offline) -> None:
    """A key on this machine is not an order to upload."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    asked: list[bool] = []
    monkeypatch.setattr(WandbLogger, "_log", lambda self, report, offline: asked.append(offline))
    WandbLogger(mode=mode).log(made_up)
    assert asked == ([] if offline is None else [offline])
