"""Sweeps continue without repeating finished jobs, go on after a failed one, and say at the end which failed and why."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from goca import sweeps
from tests.backbones.tiny import tiny_sd


def finished(folder: Path, config: dict[str, Any], **summary: Any) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({"miou": 50.0, "failed": 0, **summary}))
    return folder


def test_a_finished_job_is_known_by_what_its_numbers_depend_on(tmp_path: Path) -> None:
    old = finished(tmp_path / "a" / "0_x", {"seed": 1, "logger": {"mode": "auto"}})
    summary = sweeps.job(
        {"logger": {"mode": "none"}, "seed": 1}, tmp_path / "b" / "3_x", tmp_path, lambda: pytest.fail("ran again")
    )
    assert summary["miou"] == 50.0
    (again,) = sweeps.results(tmp_path / "b")
    assert (again["miou"], again["folder"]) == (50.0, "3_x")
    assert json.loads((tmp_path / "b" / "3_x" / sweeps.FINISHED).read_text())["run"] == str(old)


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_sd().save_pretrained(folder)
    return folder


def sweep(output: Path, checkpoint: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    layers = ["model.layers.cross=['*attn2']", "model.layers.affinity=['up_blocks.1*attn1']", "model.layers.manual=['*attn2']"]
    reference = "model.layers.reference=up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    model = [f"model.checkpoint={checkpoint}", "model.size=32", "model.device=cpu", reference, *layers]
    light = ["limit=2", "figures.count=0", "figures.gallery=0", "logger=none", "trainer.enable_progress_bar=false"]
    command = [sys.executable, "-m", "goca.run", "-m", f"paths.output={output}", *model, *light, *overrides]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_sweep_goes_on_after_a_failure_and_is_continued(tmp_path: Path, checkpoint: Path) -> None:
    first = sweep(tmp_path, checkpoint, "aggregation.reference=${model.layers.reference},nowhere", "seed=0,1")
    assert first.returncode != 0
    assert "failed    2_scenes_scenes_unet" in first.stdout
    assert "nowhere" in first.stdout
    assert len(list(tmp_path.rglob("summary.json"))) == 2
    second = sweep(tmp_path, checkpoint, "seed=1,0,2", "resume=true", "run.dir=" + str(tmp_path / "default" / "second"))
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finished before: ") == 2
    assert len(list(tmp_path.rglob("summary.json"))) == 3


@pytest.mark.parametrize(
    ("package", "launcher"),
    [
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]),
    ],
    ids=["joblib", "submitit"],
)
def test_launchers(tmp_path: Path, checkpoint: Path, package: str, launcher: list[str]) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed (extra sweep)")
    done = sweep(tmp_path, checkpoint, "seed=0,1", *launcher)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("summary.json"))) == 2
