"""Sweeps continue without repeating finished jobs, go on after a failed one, and say at the end which failed and why."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from goca.runs import sweeps
from goca.runs.records import Summary
from tests.helpers.sweep import Sweep

FOUND = Summary(
    dataset="voc", split="val", model="sd15", method="goca", protocol="standard", prompts={"source": "classes"},
    classes=["background", "cat"], thresholds=[0.0], unseen_classes="skip", has_background=True, images=1, miou=50.0,
)  # fmt: skip


def finished(folder: Path, config: dict[str, Any], **summary: Any) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({**FOUND.json, **summary}))
    return folder


def test_a_finished_job_is_known_by_what_its_numbers_depend_on(tmp_path: Path) -> None:
    old = finished(tmp_path / "a" / "0_x", {"seed": 1, "logger": {"mode": "auto"}})
    summary = sweeps.job(
        {"logger": {"mode": "none"}, "seed": 1}, tmp_path / "b" / "3_x", tmp_path, lambda: pytest.fail("ran again")
    )
    assert summary is not None
    assert summary.miou == 50.0
    assert {job: again.miou for job, again in sweeps.results(tmp_path / "b").items()} == {"3_x": 50.0}
    assert json.loads((tmp_path / "b" / "3_x" / sweeps.FINISHED).read_text())["run"] == str(old)


def test_of_a_summary_and_a_run_that_was_found_the_later_one_counts(tmp_path: Path) -> None:
    job, elsewhere = finished(tmp_path / "b" / "0_x", {"seed": 1}), finished(tmp_path / "a" / "0_x", {"seed": 2}, miou=7.0)
    pointer = job / sweeps.FINISHED
    pointer.write_text(json.dumps({"run": str(elsewhere)}))
    for later, miou in ((1, 7.0), (-1, 50.0)):
        changed = (job / "summary.json").stat().st_mtime_ns + later * 10**9
        os.utime(pointer, ns=(changed, changed))
        assert sweeps.results(tmp_path / "b")["0_x"].miou == miou


@pytest.mark.parametrize(
    ("config", "summary"),
    [({"seed": 2}, {}), ({"seed": 1, "model": {"checkpoint": "other"}}, {}), ({"seed": 1}, {"failed": 3})],
    ids=["another seed", "another checkpoint", "images failed"],
)
def test_other_jobs_are_computed(tmp_path: Path, config: dict[str, Any], summary: dict[str, Any]) -> None:
    finished(tmp_path / "a" / "0_x", {"seed": 1}, **summary)
    assert sweeps.job(config, tmp_path / "b" / "0_x", tmp_path, lambda: {"miou": 7.0}) == {"miou": 7.0}


def test_half_written_neighbours_do_no_harm(tmp_path: Path) -> None:
    broken = finished(tmp_path / "a" / "0_x", {"seed": 1})
    (broken / "summary.json").write_text("{")
    assert sweeps.find_finished(tmp_path, sweeps.config_hash({"seed": 1})) is None


def summaries(folder: Path) -> int:
    return len(list(folder.rglob("summary.json")))


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_and_is_continued(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("aggregation.reference=nowhere,${model.layers.reference}", "seed=0,1") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [" job 0_scenes_scenes_unet", " job 1_scenes_scenes_unet"]
    assert all("no layer of this model matches 'nowhere'" in error for error in errors)
    assert summaries(tmp_path) == 2
    assert sweep("seed=1,0,2", "resume=true", f"output={tmp_path / 'default' / 'second'}") == 0
    assert capsys.readouterr().out.count("finished before: ") == 2
    assert summaries(tmp_path) == 3


@pytest.mark.slow
def test_settings_that_are_refused_before_a_job_begins_stop_no_other(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("batch_size=0,1", "figures.count=-1,0") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert "job 0_scenes_scenes_unet: batch_size: should be greater than 0 (got 0)" in errors[0]
    assert summaries(tmp_path) == 1


@pytest.mark.slow
def test_a_refused_job_does_not_show_the_number_that_stood_in_its_folder(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"output={tmp_path / 'out'}"
    assert sweep("seed=0,1", output) == 0
    assert sweep("seed=0,1", output) == 0  # finished before
    assert "│ 1 " in capsys.readouterr().out
    assert sweep("seed=0,2", output) == 2
    said = capsys.readouterr()
    assert "│ 0 " in said.out
    assert "│ 1 " not in said.out
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith("error: job 1_scenes_scenes_unet: ")
    assert sweep("seed=0,1", output) == 0
    assert not list(tmp_path.rglob("error.txt"))


@pytest.mark.slow
def test_joblib(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweep is not installed")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=2"]  # one process imports torch
    assert sweep("aggregation.reference=nowhere,${model.layers.reference}", *launcher) == 2  # though another process failed
    assert "error: job 0_scenes_scenes_unet: aggregation.reference: no layer" in capsys.readouterr().err
    assert summaries(tmp_path) == 1


@pytest.mark.slow
def test_joblib_tells_of_images_that_failed_and_of_settings_that_are_refused(
    sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweep is not installed")
    data = tmp_path / "data"
    for part, value in (("images", 200), ("masks", 1)):
        (data / part).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(np.full((24, 32), value, np.uint8)).save(data / part / f"{name}.png")
    cut = data / "images" / "a.png"
    cut.write_bytes(cut.read_bytes()[:45])
    given = ["dataset=folder", "dataset.class_names=[red]", f"paths.data={data}", "limit=2", "hydra/launcher=joblib"]
    assert sweep(*given, "hydra.launcher.n_jobs=2", "seed=0,x", f"output={tmp_path / 'out'}") == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert [error.split(":")[1] for error in errors] == [" job 0_folder_scenes_unet", " job 1_folder_scenes_unet"]
    assert "1 of 2 images failed, more than run.max_failed=0" in errors[0]
    assert "seed: " in errors[1]
    assert "│ 0 " in said.out  # the number that it has nevertheless
    assert "│ 1 " not in said.out


@pytest.mark.slow
def test_joblib_tells_what_failed_in_commands_without_a_table(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the extra sweep is not installed")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    command = [sys.executable, "-m", "goca.generate", "-m", "guidance.scale=2,3", "scheduler=Nope", *launcher]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2
    errors = [line.split(":")[:3] for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [["error", f" job scenes_unet_goca_{scale}", " scheduler"] for scale in (2, 3)]


@pytest.mark.slow
def test_submitit(sweep: Sweep, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra sweep is not installed")
    assert sweep("seed=0", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5") == 0
    assert summaries(tmp_path) == 1


@pytest.mark.slow
def test_optuna_looks_for_the_best_and_is_continued(sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra sweep is not installed")
    search = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.direction=maximize",
        "hydra.sweeper.n_jobs=1",
    ]
    folder = tmp_path / "default" / "search"
    assert sweep(*search, "seed=choice(0,1,2)", f"output={folder}") == 0
    best = OmegaConf.load(folder / "optimization_results.yaml")
    scores = {summary.seed: summary.miou for summary in sweeps.results(folder).values()}
    assert len(scores) == 3
    assert best.best_value == max(scores.values()) == scores[int(best.best_params.seed)]
    capsys.readouterr()
    assert sweep(*search, "seed=choice(0,1,2,3)", "resume=true", f"output={tmp_path / 'default' / 'more'}") == 0
    assert capsys.readouterr().out.count("finished before: ") == 3
    assert summaries(tmp_path) == 4


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_says_why(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra sweep is not installed")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.n_jobs=1"]
    assert sweep(*search, "seed=choice(0,1)", "aggregation.reference=nowhere") == 2
    assert "nowhere" in capsys.readouterr().err
