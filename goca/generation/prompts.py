"""The prompts to draw: from a CSV or text file, the command line, or the bundled scenes."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from goca.errors import ConfigError, DataError
from goca.generation.pipeline import Request
from goca.scenes.generator import TEST_SEEDS, scene

SCENES = "scenes"
_SEEDS = range(2**64)  # what torch's generators take
_MAX_NAME = 200  # bytes of a file name that every file system takes, with room for an ending


def read_prompts(
    source: str | Sequence[object],
    limit: int | None = None,
    seed: int = 42,
    seeds: Literal["same", "by_id"] = "same",
    negative: str = "",
) -> list[Request]:
    """Requests in order.

    Args:
        source: a .csv with the columns `image_id,text` (and `seed`, `negative_prompt` if wanted), a .txt with a prompt a line,
            a list of prompts, a single prompt, or `scenes`: the words of the bundled test scenes.
        limit: only the first N.
        seed: of the first noise of every picture.
        seeds: `same` gives every picture that seed, as the paper does; `by_id` derives one from (seed, image id).
        negative: negative prompt of the rows that have none of their own.

    Raises:
        ConfigError: an argument that is none of these.
        DataError: no such file, missing columns, rows without text, ids that are given twice or are no file names.
    """
    _check_arguments(source, limit, seed, seeds)
    if source == SCENES:
        if limit is None:
            raise ConfigError("prompts=scenes has no end: set limit to the number of pictures")
        rows = [{"image_id": str(i), "text": ", ".join(scene(i).words)} for i in TEST_SEEDS[:limit]]
        where = SCENES
    elif isinstance(source, str) and Path(source).suffix.lower() in (".csv", ".txt"):
        rows, where = _read_file(Path(source)), source
    else:
        texts = [source] if isinstance(source, str) else [str(text) for text in source]  # [2001, a dog] begins with a number
        width = len(str(max(len(texts) - 1, 0)))
        rows, where = [{"image_id": f"{i:0{width}}", "text": text} for i, text in enumerate(texts)], "prompts"
    _check(rows, where)
    return [
        Request(row["image_id"], row["text"].strip(), _seed(row, seed, seeds, where), row.get("negative_prompt") or negative)
        for row in rows[:limit]
    ]


def _read_file(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"prompts: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"prompts: {path} is not UTF-8 text ({error})") from error
    if path.suffix.lower() == ".txt":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        width = len(str(lines[-1][0])) if lines else 1
        return [{"image_id": f"{number:0{width}}", "text": line} for number, line in lines]
    reader = csv.DictReader(text.splitlines(keepends=True), restval="")
    missing = {"image_id", "text"} - set(reader.fieldnames or ())
    if missing:
        columns = ", ".join(reader.fieldnames or ()) or "none"
        raise DataError(f"prompts: {path} lacks the column {' and '.join(sorted(missing))}; it has {columns}")
    return [{key: value for key, value in row.items() if isinstance(value, str)} for row in reader]


def _check_arguments(source: object, limit: object, seed: object, seeds: object) -> None:
    items = source if isinstance(source, Sequence) else [source]
    if not isinstance(source, (str, Sequence)) or not all(isinstance(item, (str, int, float)) for item in items):
        raise ConfigError(f"prompts: give FILE.csv, FILE.txt, [a dog,a cat], one prompt or {SCENES}; got {source!r}")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"limit: must be a whole number from 1, or null for all prompts; got {limit!r}")
    if not isinstance(seed, int) or seed not in _SEEDS:
        raise ConfigError(f"seed: must be a whole number from 0 to {_SEEDS[-1]}; got {seed!r}")
    if seeds not in ("same", "by_id"):
        raise ConfigError(f"seeds: choices are same and by_id; got {seeds!r}")


def _check(rows: Sequence[dict[str, str]], where: str) -> None:
    """Refuse rows that could not become a file each."""
    if not rows:
        raise DataError(f"prompts: {where} has no prompt")
    blank = [row["image_id"] or f"row {number}" for number, row in enumerate(rows, 1) if not row["text"].strip()]
    twice = [image_id for image_id, count in Counter(row["image_id"] for row in rows).items() if count > 1]
    unfit = [row["image_id"] for row in rows if not _is_file_name(row["image_id"])]
    for what, ids in (
        ("rows without text", blank),
        ("ids that occur more than once", twice),
        ("ids that are no file names (letters, digits, . _ - and spaces, not too long)", unfit),
    ):
        if ids:
            raise DataError(f"prompts: {where} has {len(ids)} {what}: {_some(ids)}")


def _is_file_name(image_id: str) -> bool:
    """Whether `<id>.png` is one plain file on every system."""
    allowed = all(letter.isalnum() or letter in "._- " for letter in image_id)
    return bool(image_id) and allowed and image_id[0] not in ". " and len(image_id.encode()) <= _MAX_NAME


def _seed(row: dict[str, str], seed: int, seeds: str, where: str) -> int:
    """The row's own seed, or one made from the run's."""
    if row.get("seed"):
        if not row["seed"].strip().isdecimal() or int(row["seed"]) not in _SEEDS:
            raise DataError(
                f"prompts: {where}: the seed of {row['image_id']} is not a whole number from 0 to {_SEEDS[-1]}: {row['seed']!r}"
            )
        return int(row["seed"])
    if seeds == "same":
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{row['image_id']}".encode()).digest()[:4], "big")


def _some(ids: Iterable[str]) -> str:
    ids = list(ids)
    return ", ".join(repr(image_id) for image_id in ids[:5]) + (" ..." if len(ids) > 5 else "")
