"""Fetch or check a data set.

python -m goca.data get dataset=voc paths.data=data      download and unpack what may be fetched
python -m goca.data check dataset=voc paths.data=data    verify counts, pairs, sizes and the ids in the masks

Other settings are those of conf/config.yaml; `split=val` restricts both commands to one split.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress

from goca import config
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.data.base import SegmentationDataset
    from goca.data.check import Report

_SHOWN = 20  # problems printed per split


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all is well; 1: the check found problems; 2: the command could not run."""
    parser = argparse.ArgumentParser("python -m goca.data", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("get", "check"))
    parser.add_argument("overrides", nargs="+", help="dataset=<name> and any other setting, such as paths.data=<folder>")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder of your own with data sets, as for goca.run")
    parser.add_argument("--mirror", help="get: folder of another server with archives of the same names")
    parser.add_argument("--workers", type=int, default=0, help="check: processes that read images")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        cfg = config.compose(options.overrides, folder=options.config_dir)
        dataset: SegmentationDataset = config.build(cfg, "dataset")
        split = OmegaConf.select(cfg, "dataset.split")  # null: all of them
        if options.command == "get":
            return _get(dataset, split, options, console)
        return _check(dataset, split, options.workers, console)
    except GocaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130


def _get(dataset: SegmentationDataset, split: str | None, options: argparse.Namespace, console: Console) -> int:
    from goca.data.download import archives_of, get

    archives = archives_of(dataset.archives, split)
    if not dataset.TREE:
        console.print(f"{dataset.name} needs no files: its pictures are generated when they are read")
        return 0
    if not archives:
        console.print(f"{dataset.name} cannot be fetched by a program.\nSource: {dataset.SOURCE}")
        console.print(f"Unpack it under {dataset.root} so that it looks like this:\n{dataset.TREE}")
        return 2
    for archive in archives:
        count = get(archive, dataset.root, options.mirror)
        checked = "checksum matches" if archive.hash else "no checksum is published for it"
        console.print(f"{archive.file_name}: {f'{count} files, {checked}' if count else 'had been fetched before'}")
    console.print(f"\nNext: python -m goca.data check {shlex.join(options.overrides)}")
    return 0


def _check(dataset: SegmentationDataset, split: str | None, workers: int, console: Console) -> int:
    from goca.data.check import check

    logging.getLogger("goca.data.base").setLevel(logging.ERROR)  # what it would say stands in the report
    reports = []
    with Progress(console=console, transient=True) as progress:
        for name in [split] if split else dataset.SPLITS:
            one = dataclasses.replace(dataset, split=name)
            task = progress.add_task(f"{dataset.name} {name}", total=one.official_count)
            reports.append(check(one, workers, lambda task=task: progress.advance(task)))  # type: ignore[misc]
    for report in reports:
        _print(report, dataset, console)
    if all(report.complete for report in reports):
        return 0
    console.print(f"\nExpected under {dataset.root}:\n{dataset.TREE}\nSource: {dataset.SOURCE}")
    return 1


def _print(report: Report, dataset: SegmentationDataset, console: Console) -> None:
    official = "" if report.expected is None else f" of {report.expected}"
    seen = f", {len(report.classes)} of {len(dataset.classes) - 1} classes occur" if report.images else ""
    count = len(report.problems)
    verdict = "complete" if report.complete else f"{count} problem{'s' * (count > 1)}" if count else "incomplete"
    console.print(f"{dataset.name} {report.split}: {report.images}{official} images{seen}: {verdict}")
    if report.images:
        failed = report.images - report.read
        console.print(f"  read {report.read} pictures, {report.masks} of them with a mask; {failed} could not be read")
    for note in report.notes:
        console.print(f"  {note}")
    for problem in report.problems[:_SHOWN]:
        console.print(f"  {problem.splitlines()[0]}")  # what follows the first line is printed once, at the end
    if len(report.problems) > _SHOWN:
        console.print(f"  ... and {len(report.problems) - _SHOWN} more")


if __name__ == "__main__":
    sys.exit(main())
