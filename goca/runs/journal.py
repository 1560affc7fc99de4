"""A file that grows by one line per record and survives a kill, a power cut and a full disk."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from goca.errors import DataError

Record = dict[str, Any]
SYNC_SECONDS = 5.0  # what a power cut may cost; a killed process loses no record that `append` has taken


class Journal:
    """Appends records to a JSONL file; one process per file.

    A line that an earlier process had only half written is cut off, and so is what a full disk leaves of a line: the file never
    holds anything but whole records and, at most, one torn line at its end.

    Raises:
        OSError: the file cannot be opened; from `append`, the record did not fit. Earlier records are intact.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0)  # unbuffered: nothing to lose, and nothing to write twice after an error
        self._file.truncate(_whole_lines(path))
        self._synced = time.monotonic()

    def append(self, record: Record) -> None:
        """Add a record; it is with the operating system when this returns, and on the disk some seconds later."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
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


def read_journal(path: Path) -> list[Record]:
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
