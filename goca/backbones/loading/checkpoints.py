"""What a checkpoint is and which of its files are read: told from its index and its file names, before any weight is."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError, safe_open

from goca.backbones.loading import weight_files
from goca.backbones.loading.single_file import SingleFile, open_single_file, refuse_single_file
from goca.backbones.loading.weight_files import ALLOW, PICKLES, Weights, is_network, is_text, is_text_encoder, names_component
from goca.errors import ModelError
from goca.hub import repositories
from goca.hub.digests import file_digest
from goca.hub.network_errors import first_line

__all__ = [
    "ALLOW",
    "PICKLES",
    "Checkpoint",
    "Part",
    "Source",
    "check_source",
    "explained",
    "is_text_encoder",
    "open_checkpoint",
]

log = logging.getLogger(__name__)
INDEX = "model_index.json"


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from and what is wanted of it.

    Args:
        checkpoint: `owner/name` on the hub, or a folder that holds `model_index.json`.
        families: pipeline classes the caller understands; checked before any weight is read.
        unused: optional components to leave out.
        quantized: components that quantisation is for.
        revision, variant: as in `DiffusionPipeline.from_pretrained`.
        lora: LoRA weights to fuse into the denoiser and the text encoder.
        file: weights in one file, in place of those of the components that it holds.
        denoiser: the component whose weights such a file holds at least.
        allow_pickle: take pickled weights where there are no safetensors.
    """

    checkpoint: str
    families: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    quantized: tuple[str, ...] = ()
    revision: str | None = None
    variant: str | None = None
    lora: str | None = None
    allow_pickle: bool = False
    file: str | None = None
    denoiser: str = ""


@dataclass(frozen=True)
class Part:
    """One component and the files it is read from.

    Args:
        name, library, kind: as in the pipeline's index.
        files: paths inside the repository.
        weights: of a network; None for other components.
        size: bytes of the weights.
    """

    name: str
    library: str
    kind: str
    files: tuple[str, ...]
    weights: Weights | None
    size: int


class Checkpoint:
    """A pipeline's repository at one commit, or its folder; `open_checkpoint` makes one. No pickle is opened here."""

    def __init__(self, source: Source, listing: repositories.Listing | None) -> None:
        self.source, self._listing = source, listing
        self._folder = Path(source.checkpoint)
        self._told: set[str] = set()

    @property
    def commit(self) -> str | None:
        """The commit on the hub; None for a folder."""
        return self._listing.commit if self._listing else None

    @cached_property
    def index(self) -> dict[str, Any]:
        """The pipeline's index.

        Raises:
            ModelError: it is not a pipeline of diffusers, or its index is damaged.
        """
        path = self.fetch([INDEX]) / INDEX
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"model.checkpoint: {path} cannot be read ({first_line(error)}); {self._mend(path)}") from error
        if not isinstance(content, dict):
            raise ModelError(f"model.checkpoint: {path} is damaged; {self._mend(path)}")
        return content

    @property
    def components(self) -> list[str]:
        """Those that are wanted and that the pipeline has."""
        entries = {name: entry for name, entry in self.index.items() if names_component(entry)}
        return [name for name, entry in entries.items() if entry[0] and name not in self.source.unused]

    @cached_property
    def file(self) -> SingleFile | None:
        """Weights in one file, where some are given."""
        return open_single_file(self.source.file) if self.source.file else None

    def from_file(self, name: str) -> bool:
        """Whether a component's weights are those of the single file."""
        return self.file is not None and self.file.holds(name, self.index[name][1], self.source.denoiser)

    @property
    def absent(self) -> list[str]:
        """Components that the pipeline was saved without, such as SD3 without T5, or that are not wanted."""
        entries = {name: entry for name, entry in self.index.items() if names_component(entry)}
        return [name for name, entry in entries.items() if not entry[0] or name in self.source.unused]

    def parts(self, names: Iterable[str], weights: bool = True, shards: bool = True) -> dict[str, Part]:
        """The files that components are read from.

        Args:
            names: components.
            weights: count the weights of networks in.
            shards: name the shards of weights too, for which their index is fetched.

        Raises:
            ModelError: a component is missing, or has no weights that may be read.
        """
        try:
            return {name: self._part(name, weights, shards) for name in names}
        except ModelError as error:
            if self._listing is None or self._listing.complete:
                raise
            try:  # only what the cache holds was known
                self._listing = repositories.listing(self.source.checkpoint, self._listing.commit, complete=True)
            except ModelError as unreachable:
                reason = str(error).partition(": ")[2]
                raise ModelError(f"{unreachable}; the cache holds a part of it only ({reason})"[:399]) from error
        return {name: self._part(name, weights, shards) for name in names}

    def check(self) -> None:
        """Every wanted component is there, and every network has weights that may be read; raises ModelError."""
        source, parts = self.source, self.parts(self.components, shards=False)
        stored = [part.weights for part in parts.values() if part.weights]
        if source.variant and stored and not any(weights.variant for weights in stored):
            others = sorted(weight_files.variants(self._files))
            offered = f"it has {', '.join(others)}" if others else "it has no variants: leave model.variant out"
            raise ModelError(f"model.variant: {source.checkpoint} has no files of variant {source.variant}; {offered}")

    def fetch(self, files: Iterable[str]) -> Path:
        """Have these files on this machine; returns the folder that their paths are relative to."""
        if self._listing is None:
            return self._folder
        source = self.source
        return repositories.fetch(source.checkpoint, self._listing, list(dict.fromkeys(files)), revision=source.revision)

    def sizes(self, files: Iterable[str]) -> dict[str, int]:
        """Bytes of files, by path; 0 where the list of the commit does not say."""
        return {file: self._files.get(file, 0) for file in files}

    @contextmanager
    def view(self, parts: Iterable[Part]) -> Iterator[Path]:
        """A folder with the files of these components and no others, so that nothing else can be read by accident."""
        files = [file for part in parts for file in part.files]
        root = self.fetch(files)
        with TemporaryDirectory(prefix="goca_checkpoint_") as folder:
            for file in files:
                link = Path(folder, file)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((root / file).resolve())
            yield Path(folder)

    def digests(self, names: Iterable[str]) -> dict[str, str] | None:
        """SHA-256 of every file that components are read from, by path; None where one is not on this machine."""
        found: dict[str, str] = {}
        root = self._root
        for name in names:
            if self._listing is not None and not self._index_is_here(name):
                return None
            for file in self._part(name, weights=True, shards=True).files:
                if not (root / file).is_file():
                    return None
                found[file] = file_digest(root / file)
        return found

    def broken(self, part: Part) -> str | None:
        """The file of a component that cannot be opened, and how to fix it; None where all can be."""
        for file in part.files:
            path = self._root / file
            if file.endswith(".safetensors"):
                try:
                    with safe_open(path, framework="pt"):
                        pass
                except (SafetensorError, OSError) as error:
                    return self._damaged(file, error)
            if file.endswith(".json"):
                try:
                    json.loads(path.read_text(encoding="utf-8"))
                except (ValueError, OSError) as error:
                    return self._damaged(file, error)
        return None

    def _damaged(self, file: str, error: Exception) -> str:
        path = self._root / file
        return f"{file if self._listing else path} is damaged ({first_line(error)[:90]}); {self._mend(path)}"

    # ----------------------------------------------------------------------------------------------------------------
    @property
    def _root(self) -> Path:
        return repositories.folder_of(self.source.checkpoint, self._listing.commit) if self._listing else self._folder

    @property
    def _files(self) -> Mapping[str, int]:
        if self._listing is not None:
            return self._listing.files
        wanted = [self._folder / INDEX, *(file for name in self._names_in_folder for file in (self._folder / name).iterdir())]
        return {file.relative_to(self._folder).as_posix(): file.stat().st_size for file in wanted if file.is_file()}

    @property
    def _names_in_folder(self) -> list[str]:
        return [name for name in self.index if not name.startswith("_") and (self._folder / name).is_dir()]

    def _part(self, name: str, weights: bool, shards: bool) -> Part:
        library, kind = self.index[name]
        source, prefix = self.source, f"{name}/"
        sizes = {file.removeprefix(prefix): count for file, count in self._files.items() if file.startswith(prefix)}
        files = weight_files.settings_files(name, kind, sizes, source.checkpoint)
        stored = None
        if weights and is_network(name) and not self.from_file(name):
            stored = weight_files.weights(name, sizes, source.variant, source.allow_pickle, source.checkpoint)
            if source.variant and not stored.variant and name not in self._told:
                self._told.add(name)
                log.info("%s of %s has no files of variant %s: its plain ones", name, source.checkpoint, source.variant)
            if stored.sharded and (shards or (self._root / prefix / stored.files[0]).is_file()):
                stored = replace(stored, files=(*stored.files, *self._shards(name, stored.files[0], sizes)))
            files += stored.files
        size = sum(sizes.get(file, 0) for file in stored.files) if stored else 0
        return Part(name, library, kind, tuple(prefix + file for file in files), stored, size)

    def _shards(self, name: str, index: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
        path = self.fetch([f"{name}/{index}"]) / name / index
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"model.checkpoint: {self._damaged(f'{name}/{index}', error)}") from error
        found = weight_files.shards(content, str(path))
        missing = [shard for shard in found if shard not in sizes]
        if missing:
            raise ModelError(f"model.checkpoint: {name} of {self.source.checkpoint} lacks {missing[0]}, which {index} names")
        return found

    def _index_is_here(self, name: str) -> bool:
        """Whether the component's files can be told without fetching anything."""
        prefix = f"{name}/"
        indices = [file for file in self._files if file.startswith(prefix) and ".index." in file]
        return not indices or any((self._root / file).is_file() for file in indices)

    def _mend(self, path: Path) -> str:
        if self._listing is None:
            return "restore it"
        return f"delete {path.resolve()} and repeat the command"


def open_checkpoint(source: Source) -> Checkpoint:
    """Find a checkpoint and check that it is of a known family and complete.

    Raises:
        ModelError: with what to change.
    """
    refuse_single_file(source.checkpoint, source.families)
    folder = Path(source.checkpoint)
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise ModelError(f"model.checkpoint: {folder} holds no {INDEX}, so it is not a diffusers pipeline folder")
        checkpoint = Checkpoint(source, None)
    else:
        _refuse_missing_folder(source.checkpoint)
        listing = repositories.listing(source.checkpoint, source.revision)
        if INDEX not in listing.files and not listing.complete:
            listing = repositories.listing(source.checkpoint, listing.commit, complete=True)
        if INDEX not in listing.files:
            single = [file for file in listing.files if "/" not in file and file.endswith((".safetensors", ".ckpt"))]
            hint = f"; it offers single files such as {single[0]}, for which there is model.file" if single else ""
            raise ModelError(f"model.checkpoint: {source.checkpoint} is not a diffusers pipeline: it has no {INDEX}{hint}")
        checkpoint = Checkpoint(source, listing)
    kind = checkpoint.index.get("_class_name", "?")
    if source.families and kind not in source.families:
        raise ModelError(
            f"model.checkpoint: {source.checkpoint} is a {kind}; this model config takes {' or '.join(source.families)}. "
            "Choose the model=... config of its family, or model=auto"
        )
    if source.lora and not hasattr(getattr(diffusers, kind, None), "load_lora_weights"):
        raise ModelError(f"model.lora: diffusers' {kind} takes no LoRA weights; leave model.lora out")
    checkpoint.check()
    return checkpoint


def check_source(source: Source) -> dict[str, Any]:
    """The pipeline's index, after the checks of `open_checkpoint`."""
    return open_checkpoint(source).index


def text_components(checkpoint: Checkpoint) -> list[str]:
    return [name for name in checkpoint.components if is_text(name)]


@contextmanager
def explained(what: str, key: str = "model.checkpoint") -> Iterator[None]:
    """What reading weights raises, as one message that names the key and the checkpoint."""
    try:
        yield
    except (
        *(OSError, ValueError, AttributeError, TypeError, LookupError, RuntimeError, OverflowError, EOFError),
        *(hub_errors.HfHubHTTPError, SafetensorError, UnpicklingError),
    ) as error:
        raise ModelError(f"{key}: {what} could not be loaded: {first_line(error)}"[:399]) from error


def _refuse_missing_folder(name: str) -> None:
    path = Path(name)
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise ModelError(f"model.checkpoint: there is no folder {name}; give a pipeline folder or a hub id (owner/name)")
