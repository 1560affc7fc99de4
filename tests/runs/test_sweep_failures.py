"""What failed in a sweep reaches the process that launched it by the files of the jobs, and an earlier launch's does not."""

import pickle
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from goca.config import failures
from goca.config.failures import ERROR, SweepFailures
from goca.errors import DataError
from goca.paths import CONF
from goca.runs.sweeps import FINISHED
from goca.runs.terminal import SweepTable
from tests.helpers.fake_runs import run_folder
from tests.helpers.terminal import rows


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """That of the launching process, where nothing has failed."""
    known: dict[str, str] = {}
    monkeypatch.setattr(failures, "failed_jobs", known)
    return known


def config(folder: Path, name: str = "", mode: RunMode = RunMode.MULTIRUN, launcher: str = "joblib") -> DictConfig:
    runtime = {"output_dir": str(folder / name), "choices": {"hydra/launcher": launcher}}
    job = {"override_dirname": "seed=1"}
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "mode": mode, "runtime": runtime, "job": job}})


class Launch:
    """A sweep whose jobs are computed by another process."""

    def __init__(self, folder: Path, callback: SweepFailures | None = None) -> None:
        self.folder, self.here = folder, callback or SweepFailures()
        self.here.on_multirun_start(config(folder))
        self.there = pickle.loads(pickle.dumps(self.here))

    def job(self, name: str, error: Exception | None = None, launcher: str = "joblib", **content: Any) -> JobReturn:
        """One job: it leaves a run of this content, if any is given, and then ends with the error."""
        cfg, folder = config(self.folder, name, launcher=launcher), self.folder / name
        folder.mkdir(exist_ok=True)
        self.there.on_job_start(cfg, task_function=None)
        if content:
            run_folder(folder, **content)
        found = JobReturn(status=JobStatus.COMPLETED if error is None else JobStatus.FAILED)
        found.return_value = error
        before = dict(failures.failed_jobs)
        self.there.on_job_end(cfg, job_return=found)
        failures.failed_jobs.clear()  # what another process remembers does not reach this one
        failures.failed_jobs.update(before)
        return found

    def end(self) -> None:
        self.here.on_multirun_end(config(self.folder))


def test_what_failed_in_another_process_is_told(tmp_path: Path, memory: dict[str, str]) -> None:
    launch = Launch(tmp_path)
    failed = launch.job("0_x", DataError("no data"))
    assert (failed.status, failed.return_value) == (JobStatus.COMPLETED, None)  # Hydra would stop the sweep
    launch.job("1_x")
    launch.end()
    assert memory == {"0_x": "no data (seed=1)"}


def test_a_job_whose_images_failed_is_told_although_it_has_a_summary(tmp_path: Path, memory: dict[str, str]) -> None:
    launch = Launch(tmp_path)
    launch.job("0_x", DataError("1 of 6 images failed"), noise=0.1)
    launch.end()
    assert list(memory) == ["0_x"]


def test_reasons_of_an_earlier_launch_are_not_told_and_go_when_their_job_begins(tmp_path: Path, memory: dict[str, str]) -> None:
    launch = Launch(tmp_path)
    for name in ("0_x", "1_x", "2_x"):
        launch.job(name, DataError("no data"))
    again = Launch(tmp_path)  # of two jobs
    again.job("0_x")
    again.job("1_x", DataError("no data"))  # the same words
    again.end()
    assert list(memory) == ["1_x"]
    assert [path.parent.name for path in sorted(tmp_path.glob(f"*/{ERROR}"))] == ["1_x", "2_x"]


def test_jobs_of_one_folder_do_not_hide_each_other(tmp_path: Path, memory: dict[str, str]) -> None:
    launch = Launch(tmp_path)
    launch.job("x", DataError("no data"))
    launch.job("x")
    launch.end()
    assert list(memory) == ["x"]


def test_errors_that_the_user_cannot_fix_stay_hydras(tmp_path: Path, memory: dict[str, str]) -> None:
    launch = Launch(tmp_path)
    assert launch.job("0_x", RuntimeError("a fault of ours")).status == JobStatus.FAILED
    assert not (tmp_path / "0_x" / ERROR).exists()


@pytest.mark.parametrize(("launcher", "status"), [("joblib", JobStatus.FAILED), ("basic", JobStatus.COMPLETED)])
def test_where_no_file_can_tell_hydra_brings_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, status: JobStatus
) -> None:
    monkeypatch.setattr("goca.config.failures.os.access", lambda path, mode: False)
    assert Launch(tmp_path).job("0_x", DataError("no data"), launcher).status == status


@pytest.mark.parametrize("inside", [True, False])
def test_a_run_alone_removes_the_reason_of_a_sweep_and_no_other_file(tmp_path: Path, inside: bool) -> None:
    folder = tmp_path / "0_x"
    folder.mkdir()
    (folder / ERROR).write_text("no data\n")
    if inside:
        (tmp_path / "multirun.yaml").touch()
    SweepFailures().on_job_start(config(tmp_path, "0_x", RunMode.RUN), task_function=None)
    assert (folder / ERROR).exists() is not inside


def test_a_number_of_an_earlier_launch_is_no_failed_jobs_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, noise in (("0_refused", 0.1), ("1_images_failed", 0.2), ("2_done_before", 0.3)):
        run_folder(tmp_path / name, noise)
    (tmp_path / "3_found").mkdir()
    (tmp_path / "3_found" / FINISHED).write_text(f'{{"run": "{tmp_path / "0_refused"}"}}')
    launch = Launch(tmp_path, SweepTable())
    launch.job("0_refused", DataError("holds a run of another configuration"))
    launch.job("1_images_failed", DataError("1 of 6 images failed"), noise=0.05)
    launch.job("3_found", DataError("no data"))
    launch.end()
    assert sorted(row[0] for row in rows(capsys.readouterr().out)) == ["1", "2"]
    assert list(failures.failed_jobs) == ["0_refused", "1_images_failed", "3_found"]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_tells_what_failed(name: str) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        callbacks = hydra.compose(name, return_hydra_config=True).hydra.callbacks
    found = [hydra.utils.instantiate(each) for each in callbacks.values()]
    assert [isinstance(each, SweepTable) for each in found] == [name == "config"]
    assert all(isinstance(each, SweepFailures) for each in found)
