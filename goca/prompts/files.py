"""Reading caption files, with messages that say where a file is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goca.data.files import readable_name
from goca.data.pictures import ENDINGS
from goca.errors import DataError


def image_key(name: str) -> str:
    """What identifies an image in caption files: its file name without folder, extension and Cityscapes' ending, in NFC.

    >>> image_key("val/lindau/lindau_000027_000019_leftImg8bit.png")
    'lindau_000027_000019'
    """
    path = Path(name)
    name = path.stem if path.suffix.lower() in ENDINGS else path.name
    return readable_name(name).removesuffix("_leftImg8bit")


def read_captions(path: Path) -> dict[str, str]:
    """Image key -> caption, from the authors' JSON or from JSONL records; records without a caption are left out.

    Raises:
        DataError: for a missing file, malformed JSON (with its line), another structure, or an image that occurs twice.
    """
    rows = ((f"line {number}", row) for number, row in read_jsonl(path)) if path.suffix == ".jsonl" else _json_rows(path)
    captions: dict[str, str] = {}
    for where, (name, caption) in ((where, _entry(path, where, row)) for where, row in rows):
        if caption is None:
            continue
        key = image_key(name)
        if key in captions:
            raise DataError(f"{path}, {where}: image {name!r} occurs twice; keep one of its captions")
        captions[key] = caption
    return captions


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line. A last line without a line break is a write that was cut off, and is left out."""
    *lines, _unfinished = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, column {error.colno}: not valid JSON ({error.msg})") from None


def read_folder(folder: Path, extension: str) -> dict[str, str]:
    """Image key -> content of the caption file of that name.

    Raises:
        DataError: for a missing folder, or one without caption files.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; prompts.path names the folder with one caption file per image")
    captions = {file.name.removesuffix(extension): read_text(file).strip() for file in sorted(folder.glob(f"*{extension}"))}
    if not captions:
        raise DataError(f"{folder} holds no *{extension} file; prompts.extension names the ending of caption files")
    return {image_key(name): caption for name, caption in captions.items() if caption}


def _json_rows(path: Path) -> list[tuple[str, tuple[str, Any]]]:
    """The entries of the authors' file, repeated keys included."""
    try:
        entries = json.loads(read_text(path), object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in entries):
        raise DataError(f'{path}: expected an object {{file name: {{"caption": text}}}}')
    return [(f"entry {name!r}", (name, dict(value) if isinstance(value, list) else value)) for name, value in entries]


def _entry(path: Path, where: str, row: Any) -> tuple[str, str | None]:
    """Image name and caption of a row of either format."""
    name, value = (row.get("image_id"), row) if isinstance(row, dict) else row if isinstance(row, tuple) else (None, None)
    caption = value.get("caption", "") if isinstance(value, dict) else ""
    if not isinstance(name, str) or not (caption is None or (isinstance(caption, str) and caption)):
        raise DataError(f'{path}, {where}: expected an image name and a "caption" that is text')
    return name, caption


def read_text(path: Path) -> str:
    """The text of a file that `prompts.path` names; DataError where it is missing or not UTF-8."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; prompts.path names the caption file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from None
