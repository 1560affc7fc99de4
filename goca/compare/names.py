"""What runs are called on the page: short names that say what was run and tell them apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}(-\d+)?")
_JOB = re.compile(r"(\d+)_.+")  # of a sweep: number, data set and model


def run_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The shortest names that tell run folders apart: `group`, `group/job` of a sweep, with the date where that is needed.

    >>> folders = [Path("/o/ablation/2026-01-02_03-04-05", job) for job in ("0_voc_sd15", "1_voc_sd15")]
    >>> list(run_names(folders).values())
    ['ablation/0', 'ablation/1']
    >>> list(run_names([Path("/o/default/2026-01-02_03-04-05"), Path("/o/default/2026-01-02_03-04-06")]).values())
    ['default/2026-01-02_03-04-05', 'default/2026-01-02_03-04-06']
    """
    short = {folder: _short(folder) for folder in folders}
    repeated = {name for name, count in Counter(short.values()).items() if count > 1}
    names = {folder: name if name not in repeated else _dated(folder) for folder, name in short.items()}
    for length in range(2, 12):
        if len(set(names.values())) == len(folders):
            return names
        names = {folder: "/".join(folder.parts[-length:]) for folder in folders}
    return {folder: str(folder) for folder in folders}


def _short(folder: Path) -> str:
    parts = [part for part in folder.parts if not _DATE.fullmatch(part)]
    job = _JOB.fullmatch(parts[-1]) if len(parts) < len(folder.parts) else None  # a sweep's folder has the date above the jobs
    return f"{parts[-2]}/{job[1]}" if job and len(parts) > 1 else parts[-1]


def _dated(folder: Path) -> str:
    """With the parts from the last date on, and what stands before it."""
    parts = folder.parts
    dates = [place for place, part in enumerate(parts) if _DATE.fullmatch(part)]
    return "/".join(parts[max(0, dates[-1] - 1) :]) if dates else folder.name
