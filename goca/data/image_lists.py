"""Lists of images: text files with one image a line."""

from __future__ import annotations

import codecs
from pathlib import Path, PurePosixPath

from goca.data.files import inside, readable_name
from goca.data.pictures import ENDINGS
from goca.errors import DataError


def read_lines(file: Path) -> list[str]:
    """Lines of a text file in UTF-8, or in UTF-16 if it begins with that mark; DataError where it is neither."""
    try:
        content = file.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if marked else "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {file}: {error}") from error


def listed_id(line: str, number: int, file: Path) -> str:
    """The image id of a list's line: `id`, `folder/id.jpg`, or such a path and that of its mask."""
    words = line.split()
    for word in words:
        inside(file.parent, word)
    stems = {_stem(word) for word in words}
    if len(stems) > 1:
        raise DataError(
            f"line {number} of the list {file} should hold one image id (or a picture and its mask): {line.strip()!r}"
        )
    return readable_name(stems.pop())


def _stem(word: str) -> str:
    path = PurePosixPath(word.replace("\\", "/"))
    return path.stem if path.suffix.lower() in (*ENDINGS, ".mat") else path.name
