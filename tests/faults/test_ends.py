"""How runs end and begin again: what a person is told, and that the numbers are those of all images."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from rich.console import Console

from goca import config
from goca.run import main
from goca.runs.folder import RunFolder
from goca.runs.terminal import print_summary, print_sweep
from tests.helpers.fake_runs import run_folder
from tests.helpers.tiny_unet import tiny_sd

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that needs a moment."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_sd().save_pretrained(folder)
    layers = ["model.layers.cross=['*attn2']", "model.layers.affinity=['up_blocks.1*attn1']", "model.layers.manual=['*attn2']"]
    reference = "model.layers.reference=up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    model = [f"model.checkpoint={folder}", "model.size=32", "model.device=cpu", reference, *layers]
    return [*model, "limit=4", "figures.count=0", "figures.gallery=0", "logger=none", "data.batch_size=2"]


@pytest.fixture
def run(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, hydra_restore_singletons) -> Iterator[Run]:
    """`python -m goca.run` in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def call(*overrides: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["goca.run", *overrides[:1], *tiny, f"paths.output={tmp_path}", *overrides[1:]])
        capsys.readouterr()
        code = 0
        try:
            config.command(main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    yield call
    GlobalHydra.instance().clear()


def test_a_continued_run_says_so_and_shows_the_miou_of_the_whole(run: Run, tmp_path: Path) -> None:
    whole = tmp_path / "default" / "whole"
    assert run(f"output={whole}")[0] == 0
    summary = json.loads((whole / "summary.json").read_text())
    (whole / "summary.json").unlink()
    lines = (whole / "records.jsonl").read_text().splitlines(keepends=True)
    (whole / "records.jsonl").write_text("".join(lines[:2]))
    code, out, _ = run("resume=true")
    assert code == 0
    assert f"continuing {whole}: 2 of 4 images are done" in out
    assert f"mIoU={summary['miou']:.1f}" in out.split("\r")[-1]  # the last state of the bar
    assert json.loads((whole / "summary.json").read_text())["miou"] == summary["miou"]


def test_a_finished_run_is_not_computed_again_and_says_so(run: Run, tmp_path: Path) -> None:
    first = tmp_path / "default" / "first"
    assert run(f"output={first}")[0] == 0
    records = (first / "records.jsonl").read_bytes()
    told = f"finished before: all 4 images are recorded in {first}; nothing is computed again"
    for override in ("resume=true", f"output={first}"):
        code, out, _ = run(override)
        assert code == 0
        assert told in out
    assert (first / "records.jsonl").read_bytes() == records
    assert len(list(tmp_path.rglob("records.jsonl"))) == 1


def test_without_masks_the_default_prompts_are_refused_before_the_model_loads(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine" / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "mine" / "images" / "a.png")
    mine = ["dataset=folder", f"paths.data={tmp_path / 'mine'}", "dataset.class_names=[moon,star]", "limit=null"]
    code, _, err = run(*mine, "model.checkpoint=/nowhere")
    assert code == 2
    assert err.count("error: ") == 1
    assert "prompts=vocabulary" in err
    assert run(*mine, "prompts=vocabulary")[0] == 0


def test_captions_of_a_few_images_serve_a_run_on_these(run: Run, tmp_path: Path) -> None:
    """The file need not describe images that the limit leaves out; those it lacks are left out of the numbers if so asked."""
    from goca.data.protocol import Protocol
    from goca.data.scenes import Scenes

    scenes = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"))
    scenes.setup()
    entries = {image_id: {"caption": "moon, star, circle"} for image_id in scenes.image_ids[:4]}
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(entries))
    prompts = ["prompts=published", f"prompts.path={file}"]
    assert run(*prompts, f"output={tmp_path / 'four'}")[0] == 0
    assert "no caption for 1 of 5 images" in run(*prompts, "limit=5", f"output={tmp_path / 'five'}")[2]
    assert run(*prompts, "limit=5", "prompts.on_missing=skip", f"output={tmp_path / 'skip'}")[0] == 0
    four, skip = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("four", "skip"))
    assert skip["miou"] == four["miou"]
    assert skip["warnings"]["no prompt: there is no class to look for in this image"] == 1


def test_a_sweep_whose_jobs_all_fail_says_that_there_is_nothing(run: Run, tmp_path: Path) -> None:
    code, out, err = run("-m", "dataset=voc", f"paths.data={tmp_path}", "seed=0,1,2", "hydra/job_logging=none")
    assert code == 2
    assert "No job of this sweep finished" in out
    assert "Pictures" not in out
    assert err.count("Expected under") == 1
    assert err.count(": as job 0_voc_scenes_unet (") == 2


def test_a_folder_below_proc_is_one_message(run: Run) -> None:
    code, _, err = run("output=/proc/x")
    assert code == 2
    assert err.startswith("error: cannot write to /proc/x")


def test_names_in_brackets_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]grass", "[/x]", ":cat:"]
    run_folder(tmp_path / "a", classes=["background", *names], iou_by_class=dict.fromkeys(names, 50.0))
    folder = RunFolder(tmp_path / "a")
    summary = replace(folder.summary(), warnings={"needs [crf]": 1}, model="[bold]m")
    print_summary(summary, Console(width=200, emoji=False))
    print_sweep({"0_x": summary}, tmp_path, Console(width=200, emoji=False))
    printed = capsys.readouterr().out
    for text in (*names, "needs [crf]", "[bold]m on made up"):
        assert text in printed


@pytest.mark.slow
def test_ctrl_c_leaves_the_bars_line_before_it_says_why(tiny: list[str], warm_python: str, tmp_path: Path) -> None:
    command = [warm_python, "-m", "goca.run", *tiny, "limit=null", f"output={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = ""
    while "mIoU" not in text:
        read = process.stdout.read(1)
        assert read, text  # it ended
        text += read
    process.send_signal(signal.SIGINT)
    bar, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert bar.endswith("\n")
    assert said.startswith("error: stopped by SIGINT; the same command with output=")


def _folder(root: Path, sizes: dict[str, tuple[int, int]], mode: str) -> list[str]:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for name, size in sizes.items():
            Image.new("RGB" if kind == "images" else mode, size, (1, 1, 1) if kind == "images" or mode == "RGB" else 1).save(
                root / kind / f"{name}.png"
            )
    (root / "classes.txt").write_text("grass\n[red]sky $x^{2\n雪\n", encoding="utf-8")
    return ["dataset=folder", f"paths.data={root}"]


def test_a_run_whose_images_all_fail_lists_why(run: Run, tmp_path: Path) -> None:
    code, _, err = run(*_folder(tmp_path / "colour", {"a": (8, 8), "b": (8, 8)}, "RGB"), f"output={tmp_path / 'out'}")
    assert code == 2
    assert err.count("is a colour picture (mode RGB)") == 2
    assert "2 of 2 images failed" in err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["miou"] is None


def test_odd_names_and_shapes_run_to_the_end(run: Run, tmp_path: Path) -> None:
    """One column of 5000 pixels; names in every notation, one of 249 bytes."""
    sizes = {"tall": (1, 5000), "wide": (5000, 1), "one": (1, 1), "图" * 83: (9, 9), "Ba$$in [red]{x} 100%_\udce9": (9, 9)}
    folder, out = _folder(tmp_path / "odd", sizes, "L"), tmp_path / "out"
    options = [
        "limit=null",
        "figures.count=5",
        "figures.gallery=5",
        "save_predictions=true",
        "logger=csv",
        "data.num_workers=1",
    ]
    code, _, err = run(*folder, *options, f"output={out}")
    assert (code, err) == (0, "")
    names = {name.replace("\udce9", "%E9") for name in sizes}
    assert {record["image_id"] for record in RunFolder(out).records()} == names
    for image_id, size in zip(sorted(names), [sizes[name] for name in sorted(sizes)], strict=True):
        with Image.open(out / "predictions" / f"{image_id}.png") as prediction:
            assert prediction.size == size
    figures = list((out / "figures").glob("*.png"))
    assert len([file for file in figures if file.name.startswith("attention_")]) == 5
    assert all(max(Image.open(file).size) < 3000 for file in figures)
    assert len(list((out / "gallery").glob("*.jpg"))) == 5
