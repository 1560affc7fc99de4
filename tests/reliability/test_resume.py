"""A run that was stopped continues, and ends with the numbers of one that was not."""

import json
import shutil
from pathlib import Path

import pytest

from goca import config
from goca.errors import ConfigError, DataError
from goca.runs.folder import RunFolder
from goca.runs.sweeps import newest_unfinished
from tests.helpers.kills import campaign, numbers


def _cut(folder: Path, to: Path, keep: float) -> Path:
    """A copy of a run folder as a kill would leave it: the first `keep` lines of the records, the last of them torn."""
    shutil.copytree(folder, to)
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    whole = int(keep)
    (to / "records.jsonl").write_bytes(b"".join(lines[:whole]) + lines[whole][: int((keep - whole) * len(lines[whole]))])
    (to / "summary.json").unlink()
    return to


@pytest.mark.parametrize("keep", [0, 0.5, 3.3])
def test_a_continued_run_equals_an_uninterrupted_one(run, undisturbed: Path, tmp_path: Path, keep: float) -> None:
    folder = _cut(undisturbed, tmp_path / "cut", keep)
    figures = {path.name: path.read_bytes() for path in (undisturbed / "figures").iterdir()}
    shutil.rmtree(folder / "figures")
    kept = (folder / "records.jsonl").read_bytes().splitlines()[: int(keep)]
    summary = run(folder)
    assert summary == numbers(json.loads((undisturbed / "summary.json").read_text()))
    lines = (folder / "records.jsonl").read_bytes().splitlines()
    assert lines[: len(kept)] == kept
    assert len({json.loads(line)["image_id"] for line in lines}) == len(lines) == 7
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == figures


def test_a_finished_run_is_not_computed_again(run, undisturbed: Path, tmp_path: Path, monkeypatch) -> None:
    from goca.backbones.unet import UNetBackbone

    folder = shutil.copytree(undisturbed, tmp_path / "again")
    monkeypatch.delattr(UNetBackbone, "load")
    assert run(folder)["images"] == 7


def test_other_settings_are_refused_and_shown(run, undisturbed: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(undisturbed, "seed=1", "aggregation.heads=average", "data.batch_size=3")
    message = str(caught.value)
    assert "seed: 0 -> 1" in message
    assert "aggregation.heads: dot_product -> average" in message
    assert "batch_size" not in message


def test_other_weights_are_refused(run, checkpoint: Path, undisturbed: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = _cut(undisturbed, tmp_path / "cut", 2)
    other = shutil.copytree(checkpoint, tmp_path / "other")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match=r"another checkpoint.*\n  checkpoint_hash"):
        run(folder, f"model.checkpoint={other}")
    assert run(folder, f"model.checkpoint={shutil.copytree(checkpoint, tmp_path / 'same')}")["images"] == 7


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_a_damaged_run_folder_says_what_is_damaged(run, undisturbed: Path, tmp_path: Path, name: str) -> None:
    folder = _cut(undisturbed, tmp_path / "cut", 2)
    (folder / name).write_text("{ : [")
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        run(folder)


def test_resume_takes_the_newest_unfinished_folder(tmp_path: Path) -> None:
    for name in ("2026-01-01", "2026-01-02", "2026-01-03"):
        RunFolder(tmp_path / name).claim({"seed": 0})
    (tmp_path / "2026-01-03" / "summary.json").touch()
    assert newest_unfinished(tmp_path) == tmp_path / "2026-01-02"
    assert newest_unfinished(tmp_path / "nowhere") is None
    RunFolder(tmp_path / "2026-01-04" / "1_voc").claim({"seed": 0})
    assert newest_unfinished(tmp_path) == tmp_path / "2026-01-04"
    overrides = [f"paths.output={tmp_path.parent}", f"group={tmp_path.name}"]
    assert config.compose([*overrides, "resume=true"]).output == str(tmp_path / "2026-01-04")
    assert Path(config.compose(overrides).output).parent == tmp_path


@pytest.mark.slow
def test_kills_at_random_moments(tiny: list[str], tmp_path: Path) -> None:
    """The small campaign; docs/reliability.md has the large one."""
    outcome = campaign([*tiny, "figures.count=0"], tmp_path, kills=4, seed=1)
    assert (outcome.kills, outcome.torn, outcome.identical, outcome.lost, outcome.doubled) == (4, 1, 4, 0, 0)
