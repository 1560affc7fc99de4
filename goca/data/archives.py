"""Unpacking archives from elsewhere: nothing lands outside the target, nothing fills the disk, links are not made."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from goca.data.files import inside
from goca.disk import replacing
from goca.errors import DataError

Member = tuple[str, int, IO[bytes] | None]  # name, size, content (None for a folder)


def unpack(archive: Path, target: Path) -> int:
    """Unpack a zip or tar archive (tar also compressed) into a folder; returns the number of files written.

    Files that exist with the right size are kept, so that an interrupted unpacking continues.

    Raises:
        DataError: not an archive, damaged, larger than the free disk space, or with members that are links or lead out.
    """
    target.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with _members(archive) as members:
            for name, size, content in members:
                path = inside(target, name)
                if content is None:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                if size > shutil.disk_usage(target).free:
                    raise DataError(f"no space left to unpack {name} of {archive} into {target}: it needs {size:,} bytes")
                if not (path.is_file() and path.stat().st_size == size):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _copy(content, path, size)
                written += 1
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"cannot unpack {archive}: {error}") from error
    return written


def _copy(content: IO[bytes], path: Path, size: int) -> None:
    """Write under a temporary name, no more than the size the archive declares."""
    with replacing(path) as part, part.open("wb") as file:
        remaining = size
        while block := content.read(min(1 << 20, remaining + 1)):
            remaining -= len(block)
            if remaining < 0:
                raise DataError(f"{path.name} is larger than its archive says")
            file.write(block)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield _zip_members(opened)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            yield _tar_members(opened_tar)
    else:
        raise DataError(f"{archive} is neither a zip nor a tar archive")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if info.filename.startswith("__MACOSX/"):
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{info.filename} of {archive.filename} is a link or a device; only files are unpacked")
        if info.is_dir():
            yield info.filename, 0, None
        else:
            with archive.open(info) as content:
                yield info.filename, info.file_size, content


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.isdir():
            yield info.name, 0, None
        elif info.isreg():
            yield info.name, info.size, archive.extractfile(info)
        else:
            raise DataError(f"{info.name} of {archive.name!s} is a link or a device; only files are unpacked")
