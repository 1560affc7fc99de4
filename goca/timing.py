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

    On an accelerator stages are synchronised at their ends, for kernels run on after the call that started them returned.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._charge()
        self._open.append((stage, time.perf_counter()))
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Seconds so far, and start again at zero."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def _charge(self) -> None:
        """Charge the innermost open stage with the time since the last change, and restart the clocks."""
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if self._open:
            stage, since = self._open[-1]
            self.seconds[stage] += now - since
        self._open = [(stage, now) for stage, _ in self._open]


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU's allocator where one is in use, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
