"""Sweeps that can be repeated: jobs that finished before are known by their configuration and are not computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from goca.config.identity import FREE_UNREAD, decisive
from goca.errors import DataError
from goca.runs.records import Summary

FINISHED = "finished.json"  # in the folder of a job that another folder holds the results of
NUMBERS = ("summary.json", FINISHED)  # in a job's folder, what says its numbers


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of the settings that numbers depend on; where results lie and what is shown do not count.

    >>> config_hash({"seed": 0, "logger": {"mode": "auto"}}) == config_hash({"logger": {"mode": "offline"}, "seed": 0})
    True
    >>> config_hash({"seed": 0}) == config_hash({"seed": 1})
    False
    """
    return hashlib.sha256(json.dumps(decisive(config, FREE_UNREAD), sort_keys=True, default=str).encode()).hexdigest()[:16]


def job(
    config: Mapping[str, Any],
    folder: Path,
    group: Path,
    evaluate: Callable[[], Summary | None],
    holds: Callable[[Path], bool] = lambda folder: True,
) -> Summary | None:
    """The summary of one job of a sweep: that of a finished run of the same configuration, else computed now.

    Args:
        config: the job's configuration, as plain data.
        folder: the job's own folder.
        group: folder in whose runs a finished one is looked for.
        evaluate: computes the job.
        holds: whether a finished run read what this job would read.
    """
    found = find_finished(group, config_hash(config), holds)
    if found is None or found == folder:
        return evaluate()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FINISHED).write_text(json.dumps({"run": str(found.resolve())}) + "\n", encoding="utf-8")
    print(f"finished before: {found}")
    return read_summary(found)


def find_finished(group: Path, wanted: str, holds: Callable[[Path], bool] = lambda folder: True) -> Path | None:
    """The run under `group` that is complete, has this configuration hash and still holds; the last one of several."""
    for summary in sorted(group.rglob("summary.json"), reverse=True):
        try:
            config = yaml.safe_load((summary.parent / "config.yaml").read_text(encoding="utf-8"))
            facts = json.loads(summary.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        whole = isinstance(config, dict) and isinstance(facts, dict) and not facts.get("failed")
        if whole and config_hash(config) == wanted and holds(summary.parent):
            return summary.parent
    return None


def newest_unfinished(parent: Path) -> Path | None:
    """The run folder under `parent`, or the sweep, that was begun last among those without a summary."""
    begun = {path.parent for path in parent.glob("*/config.yaml")}
    begun |= {path.parent.parent for path in parent.glob("*/*/config.yaml") if not (path.parent / "summary.json").exists()}
    unfinished = [path for path in begun if not (path / "summary.json").exists()]
    return max(unfinished, key=lambda path: path.name, default=None)


def run_folder(resume: bool, parent: str, new: str) -> str:
    """Where a run writes: the newest unfinished folder where it is to be resumed, else a new one.

    New folders are named by the second; one that is there already belongs to another run, and the name is counted up.
    """
    unfinished = newest_unfinished(Path(parent)) if resume else None
    names = chain([new], (f"{new}_{number}" for number in count(2)))
    return str(unfinished or next(path for name in names if not (path := Path(parent, name)).exists()))


def read_summary(folder: Path) -> Summary:
    """The summary of a finished run."""
    return Summary.from_json(json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def reused(folder: Path) -> Path | None:
    """The finished run that the job of this folder names in place of one of its own; it may be gone. None where there is none.

    Of a summary of the job's own and a name the later one counts: a sweep that is repeated with other settings may find
    elsewhere what it computed here before, or the other way round.

    Raises:
        DataError: the file that names it is damaged.
    """
    own, pointer = folder / "summary.json", folder / FINISHED
    if not pointer.is_file() or (own.is_file() and own.stat().st_mtime_ns > pointer.stat().st_mtime_ns):
        return None
    try:
        return Path(json.loads(pointer.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{pointer} names no run; delete it and repeat the sweep with resume=true") from error


def results(folder: Path) -> dict[str, Summary]:
    """Job of a sweep -> its summary, for those that are finished, also from a run before."""
    found = {}
    for job_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        run = reused(job_folder) or job_folder
        if (run / "summary.json").is_file():
            found[job_folder.name] = read_summary(run)
    return found
