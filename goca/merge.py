"""Join the shards of one run.

python -m goca.merge outputs/default/2026-01-31_12-00-00 --out outputs/default/whole

The folders are run folders, or folders that hold run folders, such as that of a sweep over `shard`. The result is a run
folder like that of a single run over all images: the same records, the same summary.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from goca.config.identity import FREE, SHARD, difference
from goca.config.redact import redact
from goca.errors import ConfigError, DataError, GocaError

if TYPE_CHECKING:
    from goca.runs.folder import RunFolder
    from goca.runs.records import ImageRecord, Summary

_SAME = ("checkpoint_hash", "dtype", "classes", "thresholds", "unseen_classes", "has_background", "total_images")

_ELSEWHERE = "a merge is made of its shards alone: give another --out, or delete that folder"


def merge(folders: Sequence[Path], out: Path) -> Summary:
    """Write the records of all shards, in the order of the data set, and their summary to `out`; returns the summary.

    Raises:
        ConfigError: the shards are of different runs, or `out` holds something else, such as the records of a shard that was
            computed again since.
        DataError: an image is missing, or in two shards; a folder that is not a run folder.
    """
    from goca.runs.folder import RunFolder, stops_cleanly  # imports torch, which --help should not wait for

    shards = [RunFolder(path) for path in _run_folders(folders, out)]
    first = shards[0]
    facts, config = first.facts(), first.config()
    for shard in shards[1:]:
        _same_run(first, shard)
    found: dict[str, tuple[ImageRecord, Path]] = {}
    for shard in shards:
        for record in shard.records():
            image_id = record.image_id
            if image_id in found:
                raise DataError(f"image {image_id} is in {found[image_id][1]} and in {shard.path}; give each shard once")
            found[image_id] = (record, shard.path)
    _complete(len(found), facts.total_images, shards)
    merged = RunFolder(out)
    with stops_cleanly(out):
        config["data"] = {**config["data"], "shard": None}
        if "shard" in config:
            config["shard"] = None
        merged.claim(config)
        before = _merged_before(merged, found)
        merged.begin(facts)
        for record in sorted((record for record, _ in found.values()), key=lambda record: record.index):
            if record.image_id not in before:
                merged.append(record)
        merged.close()
        return merged.conclude()


def _run_folders(folders: Sequence[Path], out: Path) -> list[Path]:
    """The run folders among and directly below these, without the output."""
    found = []
    for folder in folders:
        here = [folder] if (folder / "run.json").is_file() else sorted(path.parent for path in folder.glob("*/run.json"))
        if not here:
            why = "holds no run folder" if folder.is_dir() else "does not exist"
            raise DataError(f"{folder} {why}; give the folders of the shards")
        found += [path for path in here if path.resolve() != out.resolve()]
    if not found:
        raise DataError(f"beside {out}, which is to be written, no shard is left; give the shards' folders, or another --out")
    return found


def _merged_before(merged: RunFolder, found: Mapping[str, tuple[ImageRecord, Path]]) -> set[str]:
    """The images of shards that `merged` holds already, from an earlier merge of the same records.

    Raises:
        ConfigError: it holds other records; the merged numbers would be of neither.
    """
    before = {record.image_id: record for record in merged.records()}
    for image_id, record in before.items():
        if image_id not in found:
            raise ConfigError(f"{merged.path} holds a record of image {image_id}, and the shards hold none; {_ELSEWHERE}")
        current, shard = found[image_id]
        if record.json != current.json:
            raise ConfigError(f"{merged.path} holds another record of image {image_id} than the shard {shard}; {_ELSEWHERE}")
    return set(before)


def _same_run(first: RunFolder, other: RunFolder) -> None:
    from goca.runs.provenance import same_weights

    changed = difference(first.config(), other.config(), FREE + SHARD)
    before, now = first.facts(), other.facts()
    changed |= {key: (before.get(key), now.get(key)) for key in _SAME if before.get(key) != now.get(key)}
    read = {"ids of the images": (before.pictures.get("ids"), now.pictures.get("ids"))}
    if "path" not in before.prompts:  # captions of further images may have been added to a file between two shards
        read["class names and words"] = (before.rules_hash, now.rules_hash)
    changed |= {key: pair for key, pair in read.items() if all(pair) and pair[0] != pair[1]}
    if same_weights(before, now):
        changed.pop("checkpoint_hash", None)  # of two schemes
    if changed:
        lines = [f"  {key}: {a} and {b}" for key, (a, b) in changed.items()]
        raise ConfigError("\n".join([f"{first.path} and {other.path} are no shards of one run; they differ in", *lines]))


def _complete(images: int, total: int, shards: Sequence[RunFolder]) -> None:
    if images == total:
        return
    given = ", ".join(sorted(str(shard.config()["data"].get("shard")) for shard in shards))
    raise DataError(
        f"the shards hold {images} of {total} images; given are {given}. Give the missing ones too, or finish a shard by its "
        "command with output=<its folder>"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m goca.merge", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders of the shards, or a folder that holds them")
    parser.add_argument("--out", type=Path, required=True, help="the run folder to write")
    options = parser.parse_args(arguments)
    try:
        summary = merge(options.folders, options.out)
        from goca.runs.terminal import print_summary
    except GocaError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return error.exit_code
    console = Console(emoji=False)
    print_summary(summary, console)
    console.print(f"numbers   {options.out / 'summary.json'}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
