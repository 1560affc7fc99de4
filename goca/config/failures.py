"""What fails in a sweep: a job leaves its reason in its folder, and the process that launched the sweep tells all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from goca.config.redact import redact
from goca.errors import GocaError

ERROR = "error.txt"

failed_jobs: dict[str, str] = {}  # folder of a sweep's job -> why it failed, as far as this process knows


def report_failures(failures: Mapping[str, str]) -> None:
    """Have the command end with these messages, by job; other processes may have computed the jobs."""
    failed_jobs.update(failures)


def by_job(reasons: Mapping[str, str]) -> list[str]:
    """A message per job; long ones that repeat an earlier job's only say so.

    >>> by_job({"0": "no data.\\nTree: a/ (x=1)", "1": "no data.\\nTree: a/ (x=2)"})
    ['job 0: no data.\\nTree: a/ (x=1)', 'job 1: as job 0 (x=2)']
    """
    first: dict[str, str] = {}
    messages = []
    for name, reason in reasons.items():
        why, _, overrides = reason.rpartition(" (")
        earlier = first.setdefault(why or reason, name)
        messages.append(f"job {name}: {reason if earlier == name or chr(10) not in why else f'as job {earlier} ({overrides}'}")
    return messages


class SweepFailures(Callback):
    """Hydra callback of every command: it ends with the messages of all jobs that failed, whichever process computed them.

    Jobs may run in other processes and on other machines (joblib, submitit), and tell by the files in their folders. A file is
    of this launch if it is new, or another file than the one that stood there when the sweep was launched; clocks of two
    machines are never compared. Hydra sends this object along with each job, to the process that computes it.
    """

    watched: ClassVar[tuple[str, ...]] = (ERROR,)

    def __init__(self) -> None:
        self.before: dict[Path, tuple[int, int]] = {}  # path of a watched file when the sweep was launched -> its stamp

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        with suppress(OmegaConfBaseException):  # a folder that cannot be named: the sweeper says so
            folder = Path(config.hydra.sweep.dir)
            files = [file for name in self.watched for file in folder.glob(f"*/{name}")]
            self.before = {file.resolve(): stamp for file in files if (stamp := _stamp(file)) is not None}

    def on_job_start(self, config: Any, **_: Any) -> None:
        """Remove the reason of an earlier launch."""
        error = Path(config.hydra.runtime.output_dir, ERROR)
        # A job of a sweep that is computed again alone. Elsewhere a file of this name may be anyone's.
        alone = config.hydra.mode == RunMode.RUN and (error.parent.parent / "multirun.yaml").is_file()
        # Another job of this launch may write to the same folder: its reason stays.
        if alone or not self.is_new(error):
            with suppress(OSError):
                error.unlink(missing_ok=True)

    def on_job_end(self, config: Any, job_return: JobReturn, **_: Any) -> None:
        """Keep an error that the user can fix, so that the sweep goes on; any other is Hydra's, and stops it."""
        error = job_return._return_value  # asked for its return value, a failed job would raise
        if config.hydra.mode != RunMode.MULTIRUN or not isinstance(error, GocaError):
            return
        folder = Path(config.hydra.runtime.output_dir)
        reason = f"{error} ({config.hydra.job.override_dirname})"
        if os.access(folder, os.W_OK):
            (folder / ERROR).write_text(f"{redact(reason)}\n", encoding="utf-8")
        elif config.hydra.runtime.choices.get("hydra/launcher", "basic") != "basic":
            return  # no file can tell the process that launched the sweep; Hydra brings it the error, and it stops
        report_failures({folder.name: reason})
        job_return.return_value, job_return.status = None, JobStatus.COMPLETED

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        report_failures(self.failures(Path(config.hydra.sweep.dir)))

    def is_new(self, file: Path) -> bool:
        """Whether this launch has written the file; False where there is none."""
        stamp = _stamp(file)
        return stamp is not None and stamp != self.before.get(file.resolve())

    def failures(self, folder: Path) -> dict[str, str]:
        """Job of the sweep in `folder` -> why it failed in this launch."""
        new = [file for file in sorted(folder.glob(f"*/{ERROR}")) if self.is_new(file)]
        return {file.parent.name: file.read_text(encoding="utf-8").strip() for file in new}


def _stamp(file: Path) -> tuple[int, int] | None:
    """What tells a file from the one that replaces it; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
