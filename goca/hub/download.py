"""Files of one commit of a hub repository: fetched several at once, shown, compared with their hashes, given up in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from huggingface_hub import constants, hf_hub_download

from goca.hub import network_errors
from goca.hub.digests import file_digest
from goca.hub.network_errors import Damaged, Silence
from goca.hub.progress import Meter

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds without a byte or an answer after which a download is given up
ATTEMPTS = 4
_AT_ONCE = 4  # files
_FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one


def fetch_all(name: str, commit: str, paths: list[str], meter: Meter) -> None:
    """Several files at once, in threads that are left behind when one fails, the hub falls silent or the user interrupts."""
    todo: SimpleQueue[str] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    stop = Event()
    for path in paths:
        todo.put(path)

    def work() -> None:
        while not stop.is_set():
            try:
                path = todo.get_nowait()
            except Empty:
                return
            try:
                _fetch_one(name, commit, path, meter, stop)
                done.put(None)
            except BaseException as error:
                done.put(error)
                return

    for _ in range(min(_AT_ONCE, len(paths))):
        Thread(target=work, daemon=True).start()
    finished, told = 0, 0.0
    try:
        while finished < len(paths):
            try:
                error = done.get(timeout=0.5)
            except Empty:
                if meter.idle > PATIENCE:
                    raise Silence(PATIENCE) from None
                if meter.idle > 15 and time.monotonic() - told > 15:
                    told = time.monotonic()
                    log.info("fetching %s: nothing for %.0f s; given up after %.0f s", name, meter.idle, PATIENCE)
                continue
            if error is not None:
                raise error
            finished += 1
            meter.finish_file()
    finally:
        stop.set()


def _fetch_one(name: str, commit: str, path: str, meter: Meter, stop: Event) -> None:
    """One file, again after a wait where that may help."""
    fruitless, furthest = 0, 0
    while True:
        bar = _Bar(meter)
        try:
            where: Any = {"revision": commit, "endpoint": constants.ENDPOINT, "tqdm_class": bar}
            with hub_is_quiet():  # in this thread too: it may go on after the others have given up
                _compare(Path(hf_hub_download(name, path, **where)), path, meter)
            return
        except Exception as error:
            further = bar.count > furthest and not isinstance(error, Damaged)
            fruitless, furthest = (1 if further else fruitless + 1), max(furthest, bar.count)
            wait = max(network_errors.wait_wanted(error), _FIRST_WAIT * 2 ** (fruitless - 1))
            if fruitless >= ATTEMPTS or wait > PATIENCE or not network_errors.is_passing(error) or stop.is_set():
                raise
            meter.add(-bar.count)  # the client begins a file anew
            log.info("fetching %s of %s: again in %.0f s (%s)", path, name, wait, network_errors.first_line(error))
            meter.touch(wait)
            stop.wait(wait)


class _Bar:
    """What huggingface_hub takes for a class of progress bars: counts into the meter and draws nothing."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self.count = meter, 0

    def __call__(self, **options: Any) -> _Bar:
        return self

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, count: float | None = 1) -> None:
        self.count += int(count or 0)
        self._meter.add(int(count or 0))

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def _compare(file: Path, path: str, meter: Meter) -> None:
    """Large files are named by their SHA-256 in the cache: what has another content is removed and reported.

    Raises:
        Damaged: it has another content.
    """
    blob = file.resolve()
    if len(blob.name) == 64 and file_digest(blob, lambda _: meter.touch()) != blob.name:
        file.unlink()
        blob.unlink()
        raise Damaged(f"what arrives as {path} is not the file that the hub names (its SHA-256 differs)")


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result; given up a little after `seconds`, for a name server that hangs is under nobody's timeout."""
    answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            with hub_is_quiet():
                answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    Thread(target=work, daemon=True).start()
    try:
        result, error = answer.get(timeout=seconds + 2)
    except Empty:
        raise Silence(seconds) from None
    if error is not None:
        raise error
    return result


@contextmanager
def hub_is_quiet() -> Iterator[None]:
    """Keep what the hub's client says of requests and retries, signed addresses included, out of terminals and logs.

    Several threads may be inside at once, and one that was given up still is: levels come back when the last one leaves.
    """
    global _inside
    with _levels_lock:
        if _inside == 0:
            for logger in _CHATTY:
                _levels[logger] = logger.level
                logger.setLevel(logging.ERROR)
        _inside += 1
    try:
        yield
    finally:
        with _levels_lock:
            _inside -= 1
            if _inside == 0:
                for logger, level in _levels.items():
                    logger.setLevel(level)


_CHATTY = [logging.getLogger(name) for name in ("httpx", "httpx2", "httpcore", "huggingface_hub")]
_levels: dict[logging.Logger, int] = {}
_levels_lock = Lock()
_inside = 0
