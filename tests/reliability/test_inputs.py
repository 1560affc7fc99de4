"""A number is of the pictures, words and weights that the command names: whatever lies in a folder from before."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from goca.errors import ConfigError, DataError
from goca.runs.evaluation import still_holds
from goca.runs.folder import RunFolder
from goca.runs.records import Facts
from goca.scenes.generator import CLASSES, scene


def pictures(root: Path, seeds: dict[str, int], name: str = "folder") -> list[str]:
    """Overrides for a folder of scenes: file name -> seed."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for stem, seed in seeds.items():
        drawn = scene(seed)
        Image.fromarray(drawn.image).save(root / "images" / f"{stem}.png")
        Image.fromarray(drawn.label).save(root / "masks" / f"{stem}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES[1:]))
    return [f"dataset={name}", f"dataset.root={root}", "limit=2", "batch_size=1"]


def cut(folder: Path, records: int = 1) -> None:
    """As a kill would leave the folder: some records, no summary."""
    lines = (folder / "records.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "records.jsonl").write_bytes(b"".join(lines[:records]))
    (folder / "summary.json").unlink()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("other", "message"),
    [({"c": 3, "d": 4}, r"ids of the images: .*\n  recorded images: a"), ({"a": 3, "b": 4}, "picture or mask of a")],
    ids=["other names", "the same names"],
)
def test_other_pictures_do_not_continue_a_run(run, tmp_path: Path, finished: bool, other: dict[str, int], message: str) -> None:
    run(tmp_path / "run", *pictures(tmp_path / "one", {"a": 1, "b": 2}))
    if not finished:
        cut(tmp_path / "run")
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", *pictures(tmp_path / "other", other))


def test_pictures_may_move_and_broken_ones_be_mended(run, compose, tmp_path: Path) -> None:
    settings = pictures(tmp_path / "one", {"a": 1, "b": 2})
    run(tmp_path / "whole", *settings)
    (tmp_path / "one" / "images" / "a.png").write_bytes(b"no picture")
    assert run(tmp_path / "run", *settings, "run.max_failed=1")["failed"] == 1
    moved = pictures(tmp_path / "moved", {"a": 1, "b": 2})
    mended = run(tmp_path / "run", *moved)
    assert (mended["failed"], mended["miou"]) == (0, RunFolder(tmp_path / "whole").summary().miou)
    assert still_holds(compose(*moved), tmp_path / "whole")


def test_a_finished_run_of_other_pictures_or_words_is_no_answer(run, compose, tmp_path: Path) -> None:
    settings = pictures(tmp_path / "one", {"a": 1, "b": 2})
    run(tmp_path / "run", *settings)
    assert still_holds(compose(*settings), tmp_path / "run")
    assert not still_holds(compose(*pictures(tmp_path / "other", {"a": 3, "b": 4})), tmp_path / "run")
    with pytest.raises(DataError):  # a mistyped folder is not the one that the run was of
        still_holds(compose(*settings, f"dataset.root={tmp_path / 'nowhere'}"), tmp_path / "run")
    shutil.rmtree(tmp_path / "one")  # what is gone cannot have changed
    assert still_holds(compose(*settings), tmp_path / "run")


def test_edited_captions_do_not_continue_a_run(run, compose, tmp_path: Path) -> None:
    captions = tmp_path / "captions"
    captions.mkdir()
    for stem, text in {"a": "grass, circle", "b": "sky, ring", "later": "snow"}.items():
        (captions / f"{stem}.txt").write_text(text)
    settings = [*pictures(tmp_path / "one", {"a": 1, "b": 2}), "prompts=folder", f"prompts.path={captions}"]
    run(tmp_path / "run", *settings)
    (captions / "later.txt").write_text("sand")  # of an image that this run does not look at
    assert still_holds(compose(*settings), tmp_path / "run")
    cut(tmp_path / "run")
    assert run(tmp_path / "run", *settings)["images"] == 2
    cut(tmp_path / "run")
    (captions / "b.txt").write_text("sky, triangle")
    with pytest.raises(ConfigError, match="class names, words or captions"):
        run(tmp_path / "run", *settings)


def test_weights_that_were_trained_on_are_others(run, compose, checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trained = shutil.copytree(checkpoint, tmp_path / "trained")
    settings = [f"model.checkpoint={trained}", "limit=2"]
    run(tmp_path / "run", *settings)
    assert still_holds(compose(*settings), tmp_path / "run")
    file = trained / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(file).items()}, file)
    assert not still_holds(compose(*settings), tmp_path / "run")
    with pytest.raises(ConfigError, match="checkpoint_hash"):  # though every image is recorded
        run(tmp_path / "run", *settings)


def test_numbers_of_a_part_do_not_pass_for_those_of_the_whole(run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5 of 7 images have no record.*trainer\.limit_predict_batches"):
        run(tmp_path / "run", "+trainer.limit_predict_batches=1", "batch_size=2")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_label_maps_that_are_wanted_later_are_computed(run, compose, tmp_path: Path, caplog) -> None:
    settings = [*pictures(tmp_path / "one", {"a": 1, "b": 2})]
    run(tmp_path / "run", *settings)
    assert not still_holds(compose(*settings, "save_predictions=true"), tmp_path / "run")
    run(tmp_path / "run", *settings, "save_predictions=true")
    assert "no label map was kept of 2 images" in caplog.text


def test_what_earlier_versions_did_not_note_is_not_compared(undisturbed: Path) -> None:
    facts = json.loads((undisturbed / "run.json").read_text())
    now = {key: facts[key] for key in ("pictures", "words_hash")}
    assert Facts.from_json(facts).other_inputs(now) == {}
    old = Facts.from_json({key: value for key, value in facts.items() if key not in now})
    assert old.other_inputs({"pictures": {"ids": "x", "first": "y", "content": "z"}, "words_hash": "w"}) == {}
