"""Seconds by stage and peak memory of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Adds up seconds per named stage; a stage inside another one is taken out of it, so that stages add up to the whole.

    On an accelerator kernels run on after the call that started them has returned. There each change of stage is marked by an
    event in the stream, and `take` waits once for all of them: timing never makes the device wait.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since: float | torch.Event | None = None
        self._spans: list[tuple[str, torch.Event, torch.Event]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._charge()
        self._open.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Seconds so far, and start again at zero."""
        if self._spans:
            torch.accelerator.synchronize()
            for stage, start, end in self._spans:
                self.seconds[stage] += start.elapsed_time(end) / 1000
            self._spans.clear()
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def _charge(self) -> None:
        """Charge the innermost open stage with the time since the last change, and restart the clock."""
        now: float | torch.Event = time.perf_counter()
        if torch.accelerator.is_available():
            now = torch.Event(enable_timing=True)
            now.record()
        if self._open and isinstance(now, torch.Event):
            assert isinstance(self._since, torch.Event)
            self._spans.append((self._open[-1], self._since, now))
        elif self._open:
            assert isinstance(self._since, float) and isinstance(now, float)
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU's allocator where one is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
