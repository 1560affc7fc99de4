"""LoRA weights: found in a folder or on the hub as one file, checked to fit the model as a whole, and fused."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from goca.backbones.loading.checkpoints import explained
from goca.backbones.loading.weight_files import ALLOW, PICKLES, is_text_encoder
from goca.errors import ModelError
from goca.hub import repositories
from goca.hub.digests import file_digest
from goca.hub.network_errors import first_line

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")
_HOW = "give owner/name, owner/name/file.safetensors, owner/name@revision, a folder or a file"


@dataclass(frozen=True)
class Lora:
    """One file of LoRA weights.

    Args:
        root, file: the folder it lies in and its path there.
        repository, commit, revision: where it comes from on the hub, and what was asked for; None for a local one.
    """

    root: Path
    file: str
    repository: str | None = None
    commit: str | None = None
    revision: str | None = None

    @cached_property
    def digest(self) -> str:
        return file_digest(self.root / self.file)

    @property
    def facts(self) -> dict[str, Any]:
        """What tells it from others, for results."""
        facts = {"file": self.file, "sha256": self.digest}
        return (
            facts | {"repository": self.repository, "revision": self.commit, "asked_for": self.revision}
            if self.repository
            else facts
        )


def find_lora(text: str, allow_pickle: bool) -> Lora:
    """The file that `model.lora` names, fetched if it is on the hub.

    Args:
        text: a file, a folder that holds one, or `owner/name` on the hub, with `@revision` and `/file` where they are needed.

    Raises:
        ModelError: there is none, or several to choose from.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return Lora(path.parent, _choose([path.name], path.name, text, allow_pickle))
    if path.is_dir():
        return Lora(path, _choose([file.name for file in path.iterdir() if file.is_file()], None, text, allow_pickle))
    match = _HUB_NAME.fullmatch(text)
    is_path = path.is_absolute() or text.startswith((".", "~")) or (path.parent.is_dir() and path.parent != Path())
    if match is None or is_path or (not match["file"] and match["name"].endswith((".safetensors", *PICKLES))):
        raise ModelError(f"model.lora: there is no {text}; {_HOW}")
    name, revision = match["name"], match["revision"]
    listing = repositories.listing(name, revision, key="model.lora")
    try:
        file = _choose(
            [path for path in listing.files if "/" not in path or path == match["file"]], match["file"], text, allow_pickle
        )
    except ModelError:
        if listing.complete:
            raise
        listing = repositories.listing(name, listing.commit, key="model.lora", complete=True)
        file = _choose(
            [path for path in listing.files if "/" not in path or path == match["file"]], match["file"], text, allow_pickle
        )
    return Lora(
        repositories.fetch(name, listing, [file], key="model.lora", revision=revision), file, name, listing.commit, revision
    )


def fuse_lora(pipeline: Any, lora: Lora, text: str, allow_pickle: bool, without_encoders: bool) -> None:
    """Add the weights to the pipeline's own, all of them or none.

    Raises:
        ModelError: some belong to no layer of this model, have another size or are not finite.
    """
    folder, _, name = lora.file.rpartition("/")
    options: dict[str, Any] = {"weight_name": name, "use_safetensors": None if allow_pickle else True, "local_files_only": True}
    with explained(text, "model.lora"), TemporaryDirectory(prefix="goca_lora_") as view:
        (Path(view) / name).symlink_to((lora.root / folder / name).resolve())
        _check_readable(lora.root / lora.file)
        unet = {"unet_config": pipeline.unet.config} if "unet" in pipeline.components else {}
        state = pipeline.lora_state_dict(view, **options, **unet)
        weights: dict[str, Tensor] = state[0] if isinstance(state, tuple) else state
        if without_encoders and any(is_text_encoder(key) for key in weights):
            raise ValueError("it changes the text encoder too, which needs model.text_encoders=resident")
        unfinite = [key for key, tensor in weights.items() if isinstance(tensor, Tensor) and not tensor.isfinite().all()]
        if unfinite:
            raise ValueError(f"it holds NaN or infinity in {unfinite[0]}")
        try:
            pipeline.load_lora_weights(view, **options)
        except (LookupError, RuntimeError) as error:  # layer names or shapes that do not match this model
            raise ValueError(f"its weights do not fit this model ({' '.join(str(error).split())[:200]})") from error
        changed = [part for part, network in pipeline.components.items() if getattr(network, "peft_config", None)]
        if not changed:
            raise ValueError("none of its weights belong to a layer of this model")
        _check_fit(weights, [pipeline.components[part] for part in changed])
        pipeline.fuse_lora(changed)  # named, as FLUX's pipeline would leave its text encoder out
        pipeline.unload_lora_weights()


def _choose(files: list[str], wanted: str | None, text: str, allow_pickle: bool) -> str:
    safe = [file for file in files if file.endswith(".safetensors")]
    pickles = [file for file in files if file.endswith(PICKLES)]
    offered = safe or (pickles if allow_pickle else [])
    if wanted is not None:
        offered = [file for file in (*safe, *pickles) if file == wanted and (allow_pickle or file in safe)]
    if len(offered) == 1:
        return offered[0]
    if len(offered) > 1:
        choices = ", ".join(sorted(offered)[:6])
        raise ModelError(
            f"model.lora: {text} holds {len(offered)} files, {choices}; name one: model.lora={text}/{sorted(offered)[0]}"
        )
    if pickles and wanted in (None, *pickles):
        raise ModelError(f"model.lora: {text} could not be loaded: it has {pickles[0]} but no safetensors; {ALLOW}")
    held = f"; it holds {', '.join(sorted(safe)[:6])}" if safe else ""
    raise ModelError(f"model.lora: {text} could not be loaded: there is no {wanted or '*.safetensors'} in it{held}; {_HOW}")


def _check_readable(file: Path) -> None:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged ({first_line(error)}); restore it or, from the hub, delete {file.resolve()}"
            ) from error


def _check_fit(weights: dict[str, Tensor], networks: list[Any]) -> None:
    """Every tensor of the file is now the weight of some adapter; told by content, for names change on the way."""
    loaded = [weight for network in networks for name, weight in network.named_parameters() if "lora" in name]
    present = {_content(weight, weight.dtype) for weight in loaded}
    dtypes = {weight.dtype for weight in loaded}
    layers = {key: key.partition(".lora")[0].partition("_lora.")[0] for key in weights if "lora" in key}
    unfit = {layer for key, layer in layers.items() if not any(_content(weights[key], dtype) in present for dtype in dtypes)}
    if unfit:
        count = len(set(layers.values()))
        raise ValueError(
            f"{len(unfit)} of its {count} layers do not fit this model, such as {sorted(unfit)[0]}; it is another model's"
        )


def _content(tensor: Tensor, dtype: torch.dtype) -> str:
    plain = tensor.detach().to("cpu", dtype).to(torch.float32).contiguous()
    return hashlib.sha256(str(tuple(plain.shape)).encode() + plain.numpy().tobytes()).hexdigest()
