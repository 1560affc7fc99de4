"""SHA-256 of files by content, remembered by path, size and time of change: gigabytes are read once, not in every run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

_REMEMBERED_FROM = 2**24  # bytes; reading a smaller file takes no longer than looking it up
_BLOCK = 2**24


def cache_folder() -> Path:
    """Where GoCA keeps what it can always compute again: `$XDG_CACHE_HOME/goca`, else `~/.cache/goca`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goca"


def file_digest(file: Path, tick: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file's content, in hex.

    Args:
        file: links are followed.
        tick: told the number of bytes of every block that is read.

    Raises:
        OSError: it cannot be read.
    """
    path = file.resolve()
    state = path.stat()
    if state.st_size < _REMEMBERED_FROM:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    known = {"path": str(path), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    note = cache_folder() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        if {key: noted[key] for key in known} == known:
            return str(noted["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not computed yet, or the note is damaged
    digest = _read(path, tick)
    _write(note, {**known, "sha256": digest})
    return digest


def _read(path: Path, tick: Callable[[int], None] | None) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as content:
        while block := content.read(_BLOCK):
            total.update(block)
            if tick is not None:
                tick(len(block))
    return total.hexdigest()


def _write(note: Path, content: dict[str, object]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(content), encoding="utf-8")
        part.replace(note)
    except OSError:
        pass  # a home that cannot be written to: the file is read again next time
