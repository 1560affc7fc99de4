"""SIGTERM and SIGINT end a run after the current batch, with everything written."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from goca.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(pl.Callback):
    """Raises `Interrupted` at the end of the batch in which a signal came; add it after the callback that records the batch.

    Handlers are set when prediction starts, after Lightning's own (which speak to other processes from inside the handler), and
    taken back afterwards. A second SIGINT ends the process at once. The processes that Lightning started stop with this one,
    whether for a signal or for an error.
    """

    def __init__(self, how_to_continue: str) -> None:
        self.how_to_continue = how_to_continue
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers

        def stop(signum: int, frame: FrameType | None) -> None:
            self.received = signum
            if trainer.is_global_zero:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                _signal_others(trainer)

        for signum in _SIGNALS:
            self._before[signum] = signal.signal(signum, stop) or signal.SIG_DFL

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.received is None:
            return
        if not trainer.is_global_zero:
            sys.exit(0)  # the first process says why, and Lightning would kill it if this one seemed to fail
        raise Interrupted(f"stopped by {signal.Signals(self.received).name}; {self.how_to_continue}", self.received)

    def on_predict_end(self, *_: Any) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        _signal_others(trainer)
        self.on_predict_end()


def _signal_others(trainer: pl.Trainer) -> None:
    """Have the processes that Lightning started from this one finish their batch and stop."""
    for process in getattr(trainer.strategy.launcher, "procs", ()):
        process.send_signal(signal.SIGTERM)
