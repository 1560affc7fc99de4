"""Runs in processes of their own, which can be killed and continued."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by the processes: threads that wait leave the core to others instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
CONTEXT = multiprocessing.get_context("forkserver")  # a fresh process per run, without importing torch each time
CONTEXT.set_forkserver_preload(["goca.runs.evaluation", "pyarrow.parquet", "matplotlib.pyplot"])
# What two equal runs may differ in: times, memory, and the commit, while somebody works on the checkout.
TIMES = ("seconds_per_image", "seconds_by_stage", "peak_memory_bytes", "commit")


@dataclass
class Outcome:
    """What a campaign found."""

    kills: int = 0
    torn: int = 0  # of these, in the middle of a record
    identical: int = 0  # continued runs with the summary of the undisturbed one
    lost: int = 0  # records that were there before a continuation and not after
    doubled: int = 0
    before_the_first_record: int = 0


def run(overrides: Sequence[str], folder: Path, tear: int | None = None) -> None:
    """One run in this process; with `tear`, it dies while it writes that record."""
    from goca import config, disk
    from goca.runs.evaluation import evaluate

    config.quiet()
    if tear is not None:
        whole, count = disk.Journal.append, [0]

        def append(self: disk.Journal, record: Any) -> None:
            count[0] += 1
            if count[0] == tear:
                self._file.write(json.dumps(record).encode()[: tear * 7 + 1])
                os.kill(os.getpid(), signal.SIGKILL)
            whole(self, record)

        disk.Journal.append = append  # type: ignore[method-assign]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        evaluate(config.compose(overrides), folder)


def start(overrides: Sequence[str], folder: Path, tear: int | None = None) -> Any:
    process = CONTEXT.Process(target=run, args=(list(overrides), folder, tear))
    process.start()
    return process


def finish(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run, or continue, to the end; returns the summary without its times."""
    process = start(overrides, folder)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"the run in {folder} ended with exit code {process.exitcode}")
    return numbers(json.loads((folder / "summary.json").read_text()))


def campaign(overrides: Sequence[str], folder: Path, kills: int, seed: int = 0) -> Outcome:
    """`kills` runs, each killed once and continued to its end."""
    dice, outcome = random.Random(seed), Outcome()
    began = time.perf_counter()
    expected = finish(overrides, folder / "undisturbed")
    duration = time.perf_counter() - began
    while outcome.kills < kills:
        here = folder / f"kill_{outcome.kills}"
        tear = dice.randint(1, expected["images"]) if outcome.kills % 5 == 2 else None
        process = start(overrides, here, tear)
        process.join(None if tear else dice.uniform(0.1, 0.95) * duration)
        if process.exitcode is None:
            process.kill()
            process.join()
        elif not tear:
            duration *= 0.9  # it was faster than the first run and had ended: no kill
            here.rename(folder / f"too_late_{time.monotonic_ns()}")
            continue
        outcome.kills += 1
        outcome.torn += tear is not None
        before = _lines(here)
        outcome.before_the_first_record += not before
        outcome.identical += finish(overrides, here) == expected
        after = _lines(here)
        outcome.lost += len(set(before) - set(after)) + (expected["images"] - len({_image(line) for line in after}))
        outcome.doubled += len(after) - len({_image(line) for line in after})
    return outcome


def _lines(folder: Path) -> list[bytes]:
    """Whole lines of the records."""
    file = folder / "records.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def _image(line: bytes) -> str:
    return str(json.loads(line)["image_id"])


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """What two equal runs have in common: everything but times, memory and the commit."""
    return {key: value for key, value in summary.items() if key not in TIMES}


def growth(folder: Path, after: int = 100) -> dict[str, float]:
    """Peak memory in MB after `after` images and at the end; each record holds the peak until then."""
    from goca.runs.folder import RunFolder

    peaks = [record["peak_memory_bytes"] / 1e6 for record in RunFolder(folder).records()]
    return {
        "images": len(peaks),
        "after": after,
        "mb": peaks[after - 1],
        "mb_at_end": peaks[-1],
        "growth_mb": peaks[-1] - peaks[after - 1],
    }
