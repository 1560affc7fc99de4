"""What is going on while weights are fetched and read: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

_EVERY = 10.0  # seconds between lines of a log
_WORTH_A_LINE = 2**26  # bytes; weights smaller than this are read before a line about them could be


class Meter:
    """Counts bytes of several files that arrive at once; may be called from any thread.

    Args:
        what: what is done, such as "fetching owner/name".
        total: bytes to come.
        files: how many files they are in.
    """

    def __init__(self, what: str, total: int, files: int) -> None:
        self.what, self.total, self.files = what, total, files
        self.done, self.finished = 0, 0
        self.active = self._started = self._said = time.monotonic()
        self._lock = Lock()
        self._bar: Progress | None = None
        self._task: Any = None

    def add(self, count: int) -> None:
        """So many bytes more have arrived."""
        with self._lock:
            self.done += count
            self.touch()
        self._show()

    def finish_file(self) -> None:
        with self._lock:
            self.finished += 1
            self.touch()
        self._show()

    def touch(self, ahead: float = 0) -> None:
        """Something has happened, if no byte arrived, and will not for `ahead` seconds."""
        self.active = max(self.active, time.monotonic() + ahead)

    @property
    def idle(self) -> float:
        """Seconds since something happened."""
        return time.monotonic() - self.active

    @property
    def state(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        amount = f"{size(self.done)} of {size(self.total)}" if self.total else size(self.done)
        return f"{self.finished} of {self.files} files, {amount}, {size(self.done / seconds)}/s"

    def _show(self) -> None:
        if self._bar is not None:
            text = f"{self.what} ({self.finished}/{self.files} files)"
            self._bar.update(self._task, completed=self.done, total=max(self.total, self.done), description=text)
        elif time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            log.info("%s: %s", self.what, self.state)

    @contextmanager
    def shown(self) -> Iterator[Meter]:
        """Show the count while the block runs."""
        if not _is_first_process():
            yield self
        elif sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=Console(stderr=True), transient=True) as self._bar:
                self._task = self._bar.add_task(self.what, total=self.total or None)
                yield self
            self._bar = None
        else:
            log.info("%s: %d files, %s", self.what, self.files, size(self.total))
            yield self
        if _is_first_process():
            log.info("%s: done, %s", self.what, self.state)


@contextmanager
def loading(component: str, count: int) -> Iterator[None]:
    """Around the reading of one component's weights of `count` bytes."""
    if count < _WORTH_A_LINE or not _is_first_process():
        yield
        return
    started = time.monotonic()
    if sys.stderr.isatty():
        with Console(stderr=True).status(f"reading {component} ({size(count)})"):
            yield
    else:
        log.info("reading %s (%s)", component, size(count))
        yield
    log.info("read %s (%s) in %.1f s", component, size(count), time.monotonic() - started)


def size(count: float) -> str:
    """Bytes for people.

    >>> size(4_266_600_000), size(12_300_000), size(812)
    ('4.27 GB', '12.3 MB', '812 B')
    """
    for unit, scale, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if count >= scale:
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count:.0f} B"


def _is_first_process() -> bool:
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
