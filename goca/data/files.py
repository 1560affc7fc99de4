"""Names of files as people, lists and other systems write them: inside their folder, whatever their Unicode form."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from goca.errors import DataError


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, where the name comes from a list or a manifest and must not lead out of the folder.

    The test is on the words of the path, not on the disk, so that data may still lie behind symbolic links.

    Raises:
        DataError: an absolute name, or one that climbs above the folder.
    """
    first, *_ = parts = os.path.normpath(name.replace("\\", "/")).split("/")
    if not name or "\0" in name or first in ("", "..") or ":" in first:
        raise DataError(f"{name!r} leads out of its folder {folder}; only names inside it are read")
    return folder.joinpath(*parts)


def printable(name: str | os.PathLike[str]) -> str:
    """A file's name with bytes that are not UTF-8 as `%E9`, so that it can be printed and stored.

    >>> printable(os.fsdecode(b"caf\\xe9"))
    'caf%E9'
    """
    return "".join(f"%{ord(char) - 0xDC00:02X}" if "\udc80" <= char <= "\udcff" else char for char in os.fspath(name))


def readable_name(name: str) -> str:
    """`printable`, and in the one Unicode form in which names are compared (NFC).

    macOS stores é as e and an accent (NFD) where lists and other systems write one character (NFC).

    >>> readable_name("cafe\\u0301") == "caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", printable(name))


def existing(path: Path) -> Path:
    """The path as it is on the disk: itself, or one whose names differ in nothing but their Unicode form (NFC or NFD)."""
    if path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (found / part).exists():
            try:
                part = next(entry.name for entry in found.iterdir() if readable_name(entry.name) == readable_name(part))
            except (StopIteration, OSError):
                return path
        found /= part
    return found


def file_name(name: str, ending: str = "", most: int = 255) -> str:
    """A name, such as an image id, as the name of a file to write; what is too long is cut and told apart by a digest.

    Args:
        most: bytes that each part of the path may have; file systems take 255.

    >>> file_name("city/a", ".png"), len(file_name("图" * 100, ".png").encode()) <= 255
    ('city/a.png', True)
    """
    *folders, last = name.split("/")
    return "/".join([*(_cut(part, most) for part in folders), _cut(last, most - len(ending.encode())) + ending])


def _cut(part: str, most: int) -> str:
    if len(part.encode()) <= most:
        return part
    kept = part.encode()[: most - 13].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(part.encode()).hexdigest()[:12]}"


def shown(names: Iterable[str], most: int = 8) -> str:
    """The first few names, for messages.

    >>> shown(["a", "b", "c"], 2)
    'a, b, ...'
    """
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]
