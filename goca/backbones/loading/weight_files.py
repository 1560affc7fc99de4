"""Which files of a repository a component is read from, told from their names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from goca.errors import ModelError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
ALLOW = "if you trust where it comes from, set model.allow_pickle=true"
_WEIGHTS = (".safetensors", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf", ".pb", *PICKLES)
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers; transformers' safetensors; its pickles
_TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_OTHER = ("tokenizer", "scheduler", "feature_extractor", "image_processor", "processor")


@dataclass(frozen=True)
class Weights:
    """The files that hold a network's weights.

    Args:
        files: of the component's folder; where `sharded`, the index alone, which names the rest.
        variant: as its names say.
        pickled, sharded: how they are stored.
    """

    files: tuple[str, ...]
    variant: str | None = None
    pickled: bool = False
    sharded: bool = False


def names_component(entry: Any) -> bool:
    """Whether an entry of a pipeline's index is library and class of a component; other lists are settings.

    >>> names_component(["transformers", "T5EncoderModel"]), names_component([None, None]), names_component([2, 5])
    (True, True, False)
    """
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and all(part is None or isinstance(part, str) for part in entry)


def is_network(component: str) -> bool:
    """Whether a component of that name holds weights."""
    return not component.startswith(_OTHER)


def is_text_encoder(component: str) -> bool:
    return component.startswith("text_encoder")


def is_text(component: str) -> bool:
    """Whether a component has to do with text alone."""
    return component.startswith(("text_encoder", "tokenizer"))


def settings_files(component: str, kind: str, names: Iterable[str], whose: str) -> list[str]:
    """The files of a component that hold no weights and are read with it.

    Args:
        component, kind: its name in the pipeline's index and its class.
        names: the files in its folder.
        whose: the checkpoint, for messages.

    Raises:
        ModelError: the one it cannot do without is missing.
    """
    plain = sorted(name for name in names if "/" not in name and not name.endswith(_WEIGHTS))
    if not plain and not any("/" not in name for name in names):
        raise ModelError(f"model.checkpoint: {whose} lacks its component '{component}' ({kind})")
    needed: tuple[str, ...]
    if is_network(component):
        wanted, needed = ["config.json", "generation_config.json"], ("config.json",)
    elif component.startswith("scheduler"):
        wanted, needed = ["scheduler_config.json"], ("scheduler_config.json",)
    elif component.startswith("tokenizer"):
        wanted, needed = [name for name in plain if name.endswith((".json", ".txt", ".model", ".jinja"))], _TOKENIZERS
    else:
        wanted, needed = [name for name in plain if name.endswith((".json", ".txt", ".model", ".jinja"))], tuple(plain)
    if not set(needed) & set(plain):
        raise ModelError(f"model.checkpoint: {component} of {whose} lacks {' or '.join(needed[:3])}")
    return [name for name in wanted if name in plain]


def weights(component: str, names: Iterable[str], variant: str | None, allow_pickle: bool, whose: str) -> Weights:
    """The weights of one network, of the wanted variant where the component has it, else the plain ones.

    Raises:
        ModelError: there are none, none that may be read, or none but those of a variant that was not asked for.
    """
    present = {name for name in names if "/" not in name}
    for wanted in (variant, None) if variant else (None,):
        for pickled in (False, True) if allow_pickle else (False,):
            found = _stored(present, wanted, pickled)
            if found is not None:
                return found
    others = variants(present)
    pickles = sorted(name for name in present if name.endswith(PICKLES))
    if others - {variant}:
        offered = " or ".join(f"model.variant={name}" for name in sorted(others - {variant}))
        raise ModelError(f"model.checkpoint: {component} of {whose} has weights of a variant only; set {offered}")
    if pickles:
        raise ModelError(
            f"model.checkpoint: {component} of {whose} has {pickles[0]} but no *.safetensors; only safetensors are read. "
            f"Save the pipeline again with save_pretrained(..., safe_serialization=True), or, {ALLOW}"
        )
    raise ModelError(f"model.checkpoint: {component} of {whose} has no weights: no *.safetensors lies in its folder")


def variants(names: Iterable[str]) -> set[str]:
    """Variants that safetensors of a component's folder, or of a whole pipeline, are of.

    >>> sorted(variants(["model.fp16.safetensors", "model.safetensors", "model.safetensors.index.bf16.json"]))
    ['bf16', 'fp16']
    """
    stems = "|".join(_STEMS)
    patterns = (rf"(?:{stems})\.(\w+)\.safetensors", rf"(?:{stems})\.safetensors\.index\.(\w+)\.json")
    matches = (re.fullmatch(pattern, name.rpartition("/")[2]) for name in names for pattern in patterns)
    return {match[1] for match in matches if match}


def shards(index: Mapping[str, object], whose: str) -> tuple[str, ...]:
    """The files that an index of shards names.

    Raises:
        ModelError: it is no such index.
    """
    parts = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(parts, Mapping) or not parts or not all(isinstance(part, str) for part in parts.values()):
        raise ModelError(f"model.checkpoint: the index of {whose} names no weights; restore it")
    return tuple(sorted(set(parts.values())))


def _stored(present: set[str], variant: str | None, pickled: bool) -> Weights | None:
    ending = "bin" if pickled else "safetensors"
    infix = f".{variant}" if variant else ""
    for stem in _STEMS:
        single = f"{stem}{infix}.{ending}"
        if single in present:
            return Weights((single,), variant, pickled)
    for stem in _STEMS:
        for index in (f"{stem}.{ending}.index{infix}.json", f"{stem}{infix}.{ending}.index.json"):
            if index in present:
                return Weights((index,), variant, pickled, sharded=True)
    return None
