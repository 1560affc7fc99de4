"""What runs and groups of runs are called on the page: short names that say what was run and tell them apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from goca.compare.runs import Kind

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


def kind_titles(kinds: Sequence[Kind]) -> dict[Kind, str]:
    """The title of every group; where several have the same one, with what else they differ in."""
    titles = {kind: kind.title for kind in kinds}
    seen = Counter(titles.values())
    for title in (title for title, count in seen.items() if count > 1):
        same = [kind for kind in kinds if titles[kind] == title]
        by_classes = len({kind.classes for kind in same}) == len(same)
        for number, kind in enumerate(same, start=1):
            apart = f"classes {_span(kind.classes[1:])}" if by_classes else f"images {_span(kind.image_ids)}"
            titles[kind] = f"{title} - set {number}: {apart}"
    return titles


def _short(folder: Path) -> str:
    parts = [part for part in folder.parts if not _DATE.fullmatch(part)]
    job = _JOB.fullmatch(parts[-1]) if len(parts) < len(folder.parts) else None  # a sweep's folder has the date above the jobs
    return f"{parts[-2]}/{job[1]}" if job and len(parts) > 1 else parts[-1]


def _dated(folder: Path) -> str:
    """With the parts from the last date on, and what stands before it."""
    parts = folder.parts
    dates = [place for place, part in enumerate(parts) if _DATE.fullmatch(part)]
    return "/".join(parts[max(0, dates[-1] - 1) :]) if dates else folder.name


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]}"
