"""Fetching the official archives: with progress, continued where it stopped, checked, unpacked where the data sets look."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from goca.data.archives import unpack
from goca.errors import DataError

_BLOCK = 1 << 20
_NETWORK = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Archive:
    """One official archive, see `downloads.yaml`."""

    url: str
    into: str = "."
    hash: str | None = None
    split: str | None = None
    nested: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


def archives_of(name: str, split: str | None = None) -> list[Archive]:
    """The archives of a data set, those of one split where it is given; empty if it cannot be fetched."""
    rows = yaml.safe_load((resources.files("goca.data") / "downloads.yaml").read_text(encoding="utf-8"))
    archives = [Archive(**{**row, "nested": tuple(row.get("nested", ()))}) for row in rows.get(name, [])]
    return [archive for archive in archives if split is None or archive.split in (None, split)]


def get(archive: Archive, root: Path, mirror: str | None = None, attempts: int = 5) -> int:
    """Fetch and unpack one archive under `root`; returns the number of files unpacked.

    The archive itself is removed afterwards, a note in `root/.downloads` keeps a second call from fetching it again.

    Args:
        mirror: folder of another server that holds the archive under the same name.
        attempts: how often a broken transfer is continued.

    Raises:
        DataError: the server, the transfer, the checksum or the archive failed.
    """
    folder = root / ".downloads"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {root}: {error}") from error
    note = folder / f"{archive.file_name}.done"
    if note.is_file():
        return 0
    file = folder / archive.file_name
    if not file.is_file():
        url = f"{mirror.rstrip('/')}/{archive.file_name}" if mirror else archive.url
        fetch(url, file, attempts)
    verify(file, archive.hash)
    count = unpack(file, root / archive.into)
    for nested in archive.nested:
        inner = root / archive.into / nested
        if inner.is_file():
            count += unpack(inner, inner.parent) - 1
            inner.unlink()
    note.write_text(f"{archive.url} {archive.hash or 'no published checksum'} {count} files\n", encoding="utf-8")
    file.unlink()
    return count


def fetch(url: str, file: Path, attempts: int = 5, pause: float = 1.0) -> None:
    """Download to `file`, by way of `file.part`, which a later call or attempt continues.

    Raises:
        DataError: the server refuses, or the transfer breaks off `attempts` times.
    """
    part = file.with_name(file.name + ".part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(file.name, total=None)
        for attempt in range(1, attempts + 1):
            try:
                _continue(url, part, lambda done, total: progress.update(task, completed=done, total=total))
                part.replace(file)
                return
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise DataError(f"{url}: the server answers {error.code} {error.reason}") from error
                reason: Exception = error
            except _NETWORK as error:
                reason = error
            except OSError as error:
                raise DataError(f"cannot write {part}: {error}") from error
            if attempt < attempts:
                time.sleep(pause * 2 ** (attempt - 1))
    raise DataError(f"{url}: {reason}; {attempts} attempts. The same command continues where this one stopped")


def _continue(url: str, part: Path, report: Callable[[int, int | None], None]) -> None:
    """One attempt to bring `part` to its full length; `report` is told the bytes done and the total."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return  # nothing is left to fetch
        part.unlink()
        raise ConnectionError("the file on the server has changed; starting over") from error
    with response:
        if response.status != 206:
            have = 0  # the server sends everything: nothing had been fetched, or it cannot continue
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as output:
            report(have, total)
            while block := response.read(_BLOCK):
                output.write(block)
                have += len(block)
                report(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the transfer broke off after {have:,} of {total:,} bytes")


def verify(file: Path, expected: str | None) -> None:
    """Compare a file with `algorithm:hex`; a file that differs is removed, so that it is fetched anew.

    Raises:
        DataError: they differ.
    """
    if expected is None:
        return
    algorithm, digest = expected.split(":")
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, algorithm).hexdigest()
    if actual != digest:
        file.unlink()
        raise DataError(f"{file.name} has the {algorithm} {actual}, the official one is {digest}; it was removed, try again")
