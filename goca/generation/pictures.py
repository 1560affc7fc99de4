"""The folder of finished pictures: one PNG per prompt with its origin inside, a manifest, and what a restart has to check."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from goca.disk import Journal, replacing
from goca.errors import ConfigError, DataError
from goca.generation.pipeline import Request

MANIFEST = "manifest.jsonl"
CHECKPOINT = "checkpoint.json"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve digits that stand for the settings which decide what a picture looks like."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class PictureFolder:
    """Where pictures go.

    images/<id>.png   the picture; prompt, negative prompt, seed and the settings' fingerprint are in its text fields
    manifest.jsonl    one line per picture, written after it
    checkpoint.json   which weights they are made with

    Args:
        path: the folder; it is made.
        settings: fingerprint of the run's settings.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path, self.settings = path, settings
        self.images = path / "images"
        try:
            self.images.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable_{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"the output folder {path} cannot be written to ({error.strerror}); set output") from error
        self._listed = {record["image_id"] for record in read_manifest(path)}

    def checkpoint(self) -> dict[str, Any]:
        """Which weights the pictures here were made with; {} where it was not written down."""
        try:
            facts = json.loads((self.path / CHECKPOINT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def begin(self, checkpoint: Mapping[str, Any]) -> None:
        """Write down which weights pictures are made with, and what else only a loaded pipeline tells.

        Args:
            checkpoint: `goca.runs.provenance.checkpoint_identity`, and further facts.

        Raises:
            ConfigError: pictures that are here were made with others.
        """
        earlier = self.checkpoint()
        if self._listed and earlier and earlier.get("checkpoint_hash") != checkpoint.get("checkpoint_hash"):
            raise ConfigError(
                f"the pictures in {self.path} were made with other weights (revision {earlier.get('checkpoint_revision')}, now "
                f"{checkpoint.get('checkpoint_revision')}); set output to another folder, or set model.revision to theirs"
            )
        self.write_json(CHECKPOINT, dict(checkpoint))

    def file(self, image_id: str) -> Path:
        return self.images / f"{image_id}.png"

    def is_finished(self, request: Request) -> bool:
        """Whether the picture is there and opens; one that does not open is made again.

        Raises:
            ConfigError: it was made with other settings or from another prompt.
        """
        path = self.file(request.image_id)
        if not path.exists():
            return False
        try:
            with Image.open(path) as image:
                image.load()
                found = dict(image.info)
        except (OSError, SyntaxError):  # what PIL raises for broken PNG files
            return False
        wanted = self._fields(request)
        different = [key for key, value in wanted.items() if found.get(key) != value]
        if different:
            raise ConfigError(
                f"{path} was made with another {' and '.join(different)} than this run's; set output to another folder, or "
                "remove that one"
            )
        if request.image_id not in self._listed:  # interrupted between picture and line
            self._list(request, None)
        return True

    def save(self, request: Request, image: Image.Image, seconds: float) -> None:
        """Write picture and line; the picture is complete or not there.

        Raises:
            DataError: the disk is full, or something else keeps the file from being written; all that was written stays valid.
        """
        info = PngInfo()
        for key, value in self._fields(request).items():
            info.add_itxt(key, value)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", pnginfo=info)
        self.write(self.file(request.image_id), buffer.getvalue())
        self._list(request, seconds)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file as a whole or not at all."""
        try:
            with replacing(path) as part:
                part.write_bytes(content)
        except OSError as error:
            raise self._cannot_write(path, error) from error

    def write_json(self, name: str, content: Any) -> None:
        self.write(self.path / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def _fields(self, request: Request) -> dict[str, str]:
        return {
            "prompt": request.text,
            "negative_prompt": request.negative,
            "seed": str(request.seed),
            "settings": self.settings,
        }

    def _list(self, request: Request, seconds: float | None) -> None:
        """Add a line to the manifest in one write, so that several processes can share it."""
        record: dict[str, Any] = {"image_id": request.image_id, "file": f"images/{request.image_id}.png"}
        record |= {**self._fields(request), "seed": request.seed}
        record["seconds"] = None if seconds is None else round(seconds, 4)
        path = self.path / MANIFEST
        try:
            with closing(Journal(path, shared=True)) as manifest:
                manifest.append(record)
        except OSError as error:
            raise self._cannot_write(path, error) from error
        self._listed.add(request.image_id)

    def _cannot_write(self, path: Path, error: OSError) -> DataError:
        return DataError(
            f"{path} cannot be written ({error.strerror}); {len(self._listed)} pictures are finished, and the same command "
            "goes on from there"
        )


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """The manifest's lines, one per picture; a line that was cut off is left out."""
    path = folder / MANIFEST
    records: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            records[record["image_id"]] = record
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return list(records.values())


def origin(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What pictures of several folders are paired by: they were made from the same prompts and seed."""
    return tuple(record.get(key) for key in ("image_id", "prompt", "negative_prompt", "seed"))


def batches(requests: Sequence[Request], size: int, shard: tuple[int, int] = (0, 1)) -> list[list[Request]]:
    """Requests in batches, handed out whole to shards: what is drawn together depends on the batch size alone."""
    cut = [list(requests[first : first + size]) for first in range(0, len(requests), size)]
    return cut[shard[0] :: shard[1]]
