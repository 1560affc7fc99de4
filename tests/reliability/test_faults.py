"""Bad images, too little memory, signals, loggers that break, full disks: recorded, survived, or a clean stop."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from goca import config
from goca.backbones.unet import UNetBackbone
from goca.data.base import Sample
from goca.errors import DataError, Interrupted, OutputError
from goca.prediction import Failure, Prediction
from goca.runs.callbacks import Recorder
from goca.runs.evaluation import evaluate
from goca.runs.evaluator import Evaluator, is_out_of_memory
from goca.runs.folder import RunFolder
from goca.segmentor import Segmentor
from tests.helpers.kills import numbers

OWN = ["dataset=folder", "dataset.class_names=[red, green, blue]", "limit=null"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder data set of eight images: two are sound, the others fail or are odd, each in its way."""
    folder = tmp_path / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a_sound", "b_truncated", "c_size", "d_ids", "e_empty", "f_text", "g_colour", "h_sound"):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
        mask = rng.integers(0, 4, (24, 32), dtype=np.uint8)
        if name == "c_size":
            mask = mask[:20]
        elif name == "d_ids":
            mask[0, 0] = 77
        elif name == "e_empty":
            mask[:] = 0
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    cut = folder / "images" / "b_truncated.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (folder / "masks" / "f_text.png").write_text("no picture")
    Image.new("RGB", (32, 24)).save(folder / "masks" / "g_colour.png")
    return folder


REASONS = {
    "b_truncated": "cannot read the image",
    "c_size": "32 x 20, its image 32 x 24",
    "d_ids": "no ids of folder: 77",
    "f_text": "cannot read the image",
    "g_colour": "colour picture",
}


def test_bad_images_are_recorded_with_their_reason(compose, pictures: Path, tmp_path: Path) -> None:
    cfg = compose(*OWN, f"paths.data={pictures}", "data.batch_size=3")
    with pytest.raises(DataError) as caught:
        evaluate(cfg, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith("5 of 8 images failed, more than run.max_failed=0:")
    assert f"output={tmp_path / 'run'}" in message
    records = {record["image_id"]: record for record in RunFolder(tmp_path / "run").records()}
    assert len(records) == 8
    for image_id, record in records.items():
        assert (REASONS[image_id] in record["error"]) if image_id in REASONS else record["error"] is None
    assert any("no prompt" in warning for warning in records["e_empty"]["warnings"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["images"], summary["failed"], set(summary["failures"])) == (8, 5, set(REASONS))

    # Mended images are computed when the run is continued; the others stay as they are.
    mended = pictures / "masks" / "c_size.png"
    Image.fromarray(np.ones((24, 32), np.uint8)).save(mended)
    cfg.run.max_failed = 4
    assert evaluate(cfg, tmp_path / "run")["failed"] == 4


def test_one_failing_image_does_not_take_its_batch_with_it(run, undisturbed: Path, tmp_path: Path, monkeypatch) -> None:
    original = UNetBackbone.observe

    def poisoned(self, pixels, texts, image_ids, *rest):
        observation = original(self, pixels, texts, image_ids, *rest)
        for row, image_id in enumerate(image_ids):
            if image_id == "1000002":
                observation.token_maps[row] = torch.nan
        return observation

    monkeypatch.setattr(UNetBackbone, "observe", poisoned)
    summary = run(tmp_path, "run.max_failed=1")
    assert summary["failed"] == 1
    assert "not finite" in summary["failures"]["1000002"]
    expected = {record["image_id"]: record for record in RunFolder(undisturbed).records()}
    for record in RunFolder(tmp_path).records():
        if record["image_id"] not in ("1000002", "1000003"):  # 1000003 shares its batch, and was computed once more, alone
            assert record["confusion"] == expected[record["image_id"]]["confusion"]


@pytest.mark.slow
@pytest.mark.parametrize(("fits", "failed"), [(2, 0), (1, 0), (0, 7)])
def test_out_of_memory_halves_the_batch(run, tmp_path: Path, monkeypatch, fits: int, failed: int) -> None:
    original, sizes = UNetBackbone.observe, []

    def small(self, pixels, *rest):
        sizes.append(len(pixels))
        if len(pixels) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, pixels, *rest)

    monkeypatch.setattr(UNetBackbone, "observe", small)
    summary = run(tmp_path, "data.batch_size=4", "run.max_failed=null")
    assert summary["failed"] == failed
    if failed:
        assert all("out of memory, even alone" in reason for reason in summary["failures"].values())
    else:
        assert sizes.count(4) == 1  # what did not fit once is not tried again


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def test_a_bug_is_not_taken_for_a_bad_image(run, tmp_path: Path, monkeypatch) -> None:
    def wrong(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(UNetBackbone, "observe", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_behind_the_batch_and_says_how_to_continue(
    run, undisturbed: Path, tmp_path: Path, monkeypatch, signum: int
) -> None:
    original, handlers = Evaluator.predict_step, [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(self, batch, batch_idx=0):
        os.kill(os.getpid(), signum)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Evaluator, "predict_step", interrupted)
    with pytest.raises(Interrupted) as caught:
        run(tmp_path)
    monkeypatch.undo()
    assert signal.Signals(signum).name in str(caught.value)
    assert f"output={tmp_path} continues" in str(caught.value)
    assert caught.value.exit_code == 128 + signum
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert len(RunFolder(tmp_path).records()) == 2  # the batch at hand, whole
    assert run(tmp_path) == numbers(json.loads((undisturbed / "summary.json").read_text()))


def test_a_logger_that_fails_stops_nothing(compose, tmp_path: Path, monkeypatch, capsys) -> None:
    from goca.loggers import NoLogger

    def down(self, report):
        raise ConnectionError("the network is unreachable")

    monkeypatch.setattr(NoLogger, "log", down)
    monkeypatch.setattr("goca.runs.report.PAUSES", (0.0, 0.0))
    assert evaluate(compose(), tmp_path)["images"] == 7
    assert (tmp_path / "summary.json").is_file()


def test_a_full_disk_is_a_clean_stop(run, undisturbed: Path, tmp_path: Path, monkeypatch) -> None:
    """From the second batch on no file may grow beyond what the records hold by then."""
    original, before = Recorder.on_predict_batch_end, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(self, trainer, segmentor, outputs, batch, batch_idx, *rest):
        if batch_idx == 1:
            size = (tmp_path / "records.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
        original(self, trainer, segmentor, outputs, batch, batch_idx, *rest)

    monkeypatch.setattr(Recorder, "on_predict_batch_end", filling)
    try:
        with pytest.raises(OutputError, match="written so far are intact; make room"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.undo()
    assert [record["image_id"] for record in RunFolder(tmp_path).records()] == ["1000000", "1000001"]
    assert run(tmp_path) == numbers(json.loads((undisturbed / "summary.json").read_text()))


def test_failures_stand_where_predictions_would(checkpoint: Path, compose) -> None:
    from goca.data.classes import ClassTable
    from goca.data.datamodule import Unreadable
    from goca.data.sizes import to_pixels
    from goca.prompts import Classes

    evaluator = Evaluator(Segmentor.build(compose()), Classes(), ClassTable.load("scenes"), has_background=False)
    evaluator.prepare([])
    image = np.zeros((32, 32, 3), np.uint8)
    good = Sample("good", image, np.ones((32, 32), np.uint8), (1,), pixels=to_pixels(image, 32))
    results = evaluator.predict_step([Unreadable("first", "gone"), good, Unreadable("last", "broken")])
    assert [type(result) for result in results] == [Failure, Prediction, Failure]
    assert [result.image_id for result in results] == ["first", "good", "last"]


def test_keep_unreadable_can_be_turned_off(compose, pictures: Path, tmp_path: Path) -> None:
    cfg = compose(*OWN, f"paths.data={pictures}", "data.keep_unreadable=false")
    with pytest.raises(DataError, match=r"b_truncated\.png"):
        evaluate(cfg, tmp_path / "run")
    assert config.compose().data.keep_unreadable
