"""Folders of pictures to be judged: which files, which prompts, and how they are brought to one size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from goca.data.pictures import ENDINGS, read_rgb
from goca.disk import replacing
from goca.errors import DataError
from goca.generation.pictures import origin, read_manifest
from goca.scenes.generator import TEST_SEEDS, scene

Resize = Literal["crop", "squash"]


@dataclass(frozen=True)
class ImageSet:
    """Pictures in a fixed order.

    Args:
        name: for tables.
        files: paths, or seeds of scenes that are drawn when asked for.
        prompts: of each picture; None where they are not known.
        ids: what pictures of several sets are paired by.
    """

    name: str
    files: tuple[Path | int, ...]
    prompts: tuple[str, ...] | None = None
    ids: tuple[Hashable, ...] = ()

    @classmethod
    def open(cls, source: str) -> ImageSet:
        """A folder of `goca.generate`, any folder with images, or `scenes:N` (N scenes that no prompt was taken from).

        Raises:
            DataError: no such folder, or no image in it.
        """
        if source.startswith("scenes:") and source[7:].isdigit():
            first = len(TEST_SEEDS) // 2  # prompts count test seeds from the front
            return cls(source, tuple(TEST_SEEDS[first : first + int(source[7:])]))
        folder = Path(source)
        listed = sorted(read_manifest(folder), key=lambda record: record["image_id"])  # shards write in no fixed order
        records = [record for record in listed if (folder / record["file"]).is_file()]
        if records:
            files = tuple(folder / record["file"] for record in records)
            return cls(folder.name, files, tuple(record["prompt"] for record in records), tuple(map(origin, records)))
        files = tuple(sorted(path for path in folder.glob("*") if path.suffix.lower() in ENDINGS))
        if not files:
            raise DataError(f"{source}: {'no image in this folder' if folder.is_dir() else 'there is no such folder'}")
        return cls(folder.name, files, ids=tuple(path.stem for path in files))

    def key(self, position: int) -> str:
        """What the picture's result depends on: its file, as it is now."""
        file = self.files[position]
        if isinstance(file, int):
            return f"scene {file}"
        status = file.stat()
        return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"

    def read(self, position: int, size: tuple[int, int], resize: Resize) -> Tensor:
        """One picture as (3, *size) uint8.

        Raises:
            DataError: the file is not a readable image.
        """
        file = self.files[position]
        image = Image.fromarray(scene(file, min(size)).image if isinstance(file, int) else read_file(file))
        width, height = size[1], size[0]
        if image.size != (width, height):
            fit = ImageOps.fit if resize == "crop" else Image.Image.resize
            image = fit(image, (width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_file(file: Path) -> np.ndarray:
    """(H, W, 3) uint8, by the rules of all pictures; DataError where it cannot be read."""
    try:
        return read_rgb(file)
    except DataError as error:
        raise DataError(f"{file} is not a readable image ({error}); remove it or make it again") from error


def measured(
    images: ImageSet,
    measure: Callable[[Tensor, list[str]], Mapping[str, Tensor]],
    what: str,
    size: tuple[int, int],
    resize: Resize,
    cache: Path,
    chunk: int = 256,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """Whatever `measure` gives for every picture, chunk by chunk; chunks that are in the cache are read from it.

    Args:
        images: what to measure.
        measure: (B, 3, h, w) uint8 and the prompts (empty texts where unknown) -> named tensors with B rows.
        what: names the measure, its weights and its options: part of the cache's key.
        size, resize: what pictures are brought to.
        cache: folder.
        chunk: pictures per file of the cache.
    """
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(images.files), chunk):
        positions = range(first, min(first + chunk, len(images.files)))
        texts = [images.prompts[i] if images.prompts else "" for i in positions]
        keys = "\n".join([what, str(size), resize, *(images.key(i) for i in positions), *texts])
        file = cache / f"{hashlib.sha256(keys.encode()).hexdigest()[:24]}.safetensors"
        part = _cached(file)
        if part is None:
            found = [measure(*batch) for batch in _batches(images, positions, texts, size, resize, batch_size)]
            part = {name: torch.cat([one[name].float().cpu() for one in found]) for name in found[0]}
            with replacing(file) as unfinished:
                save_file(part, unfinished)
        parts.append(part)
        progress(len(positions))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _cached(file: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def _batches(
    images: ImageSet, positions: range, texts: list[str], size: tuple[int, int], resize: Resize, batch_size: int
) -> Iterator[tuple[Tensor, list[str]]]:
    for first in range(0, len(positions), batch_size):
        some = positions[first : first + batch_size]
        yield torch.stack([images.read(i, size, resize) for i in some]), texts[first : first + batch_size]
