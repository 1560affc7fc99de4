"""How runs end that have no number, or whose label maps depend on a threshold that is known at the end."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goca.errors import DataError
from goca.runs.evaluation import evaluate
from goca.runs.sweeps import run_folder

FOLDER = ["dataset=folder", "dataset.class_names=[red, green]", "limit=null", "figures.count=2", "dataset.background=true"]


def _data_set(folder: Path, images: int = 3, masks: bool = True) -> Path:
    rng = np.random.default_rng(0)
    for name in ("images", *(("masks",) if masks else ())):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
        if masks:
            Image.fromarray(rng.integers(0, 3, (24, 32), dtype=np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder


def test_a_run_of_which_every_image_fails_lists_the_reasons(compose, tmp_path: Path, capsys) -> None:
    data = _data_set(tmp_path / "data", images=2)
    for path in (data / "images").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    overrides = [*FOLDER, f"paths.data={data}"]
    with pytest.raises(DataError, match="2 of 2 images failed") as caught:
        evaluate(compose(*overrides), tmp_path / "run")
    assert caught.value.exit_code != 0
    assert "0.png" in str(caught.value)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["miou"] is None
    summary = evaluate(compose(*overrides, "run.max_failed=null"), tmp_path / "run")
    assert (summary.failed, summary.images, summary.near_ties) == (2, 2, None)
    assert "no image has a result" in capsys.readouterr().out


def test_without_any_mask_pictures_stand_for_the_middle_threshold(compose, tmp_path: Path) -> None:
    data = _data_set(tmp_path / "data", masks=False)
    cfg = compose(*FOLDER, "prompts=vocabulary", f"paths.data={data}")
    summary = evaluate(cfg, tmp_path / "run")
    assert (summary.miou, summary.threshold) == (None, 0.0)
    assert summary.threshold_choice == "middle of 9: there is no ground truth to choose by"
    assert (tmp_path / "run" / "figures" / "overview.png").is_file()
    for number in range(3):
        label = np.asarray(Image.open(tmp_path / "run" / "predictions" / f"{number}.png"))
        kept = np.asarray(Image.open(tmp_path / "run" / "predictions_by_threshold" / f"{number}.png"))
        assert (label == np.split(kept, 9)[4]).all()


def test_saved_label_maps_give_the_accuracy_of_the_summary(compose, tmp_path: Path) -> None:
    data = _data_set(tmp_path / "data")
    cfg = compose(*FOLDER, f"paths.data={data}", "save_predictions=true", "prompts=vocabulary")
    summary = evaluate(cfg, tmp_path / "run")
    pairs = [
        (
            np.asarray(Image.open(data / "masks" / f"{i}.png")),
            np.asarray(Image.open(tmp_path / "run" / "predictions" / f"{i}.png")),
        )
        for i in range(3)
    ]
    right = np.mean([truth == label for truth, label in pairs])
    assert 100 * right == pytest.approx(summary.pixel_accuracy, abs=1e-3)


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        folder = Path(run_folder(False, str(tmp_path), "2026-01-31_12-00-00"))
        folder.mkdir()
        names.append(folder.name)
    assert names == ["2026-01-31_12-00-00", "2026-01-31_12-00-00_2", "2026-01-31_12-00-00_3"]
