"""Files that survive a kill, a power cut and a full disk: replaced as a whole, or grown line by line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from goca.errors import DataError

SYNC_SECONDS = 5.0  # what a power cut may cost; a killed process loses no record that `append` has taken


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block has ended; under its name there is never half a file.

    Several processes may do so at the same time; the last one stays. The folder is made. After an error nothing is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, so that it fits where the name itself does.
    part = path.with_name(
        f".{hashlib.sha256(path.name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.{os.getpid()}.part"
    )
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class Journal:
    """Appends records to a JSONL file. One process writes it, or, where it is shared, several; any number of threads.

    A line that an earlier process had only half written is cut off, and so is what a full disk leaves of a line: the file never
    holds anything but whole records and, at most, one torn line at its end. Of a shared file nothing is cut off, as it may be
    somebody's; a torn line is ended, and stays by itself.

    Args:
        path: the file; it is made with its folder.
        shared: other processes append at the same time.

    Raises:
        OSError: the file cannot be opened; from `append`, the record did not fit. Earlier records are intact.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._shared, self._lock = shared, Lock()
        self._file = open(path, "ab", buffering=0)  # unbuffered: nothing to lose, and nothing to write twice after an error
        whole = _whole_lines(path)
        if not shared:
            self._file.truncate(whole)
        elif whole < path.stat().st_size:
            self._file.write(b"\n")
        self._synced = time.monotonic()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is with the operating system when this returns, and on the disk some seconds later."""
        with self._lock:
            self._append(json.dumps(dict(record), ensure_ascii=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            if not self._shared:
                self._file.truncate(end)
            raise
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have the disk hold what has been appended."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file; a torn line at its end is left out.

    Raises:
        DataError: another line is damaged; the message says which.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "image_id" not in record:
                raise ValueError("no record of an image")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}, is damaged ({error}); delete it and continue the run: its image is computed again"
            ) from error
        records.append(record)
    return records


def _whole_lines(path: Path) -> int:
    """Bytes up to and including the last line break."""
    return path.read_bytes().rfind(b"\n") + 1
