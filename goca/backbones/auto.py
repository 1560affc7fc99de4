"""Any pipeline of a supported family: inspect a checkpoint, pick its adapter, and propose the settings of a model config."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from goca import config
from goca.backbones.base import Backbone
from goca.backbones.loading import architectures
from goca.backbones.loading.checkpoints import Source, check_source
from goca.backbones.observable import Layer, observable_layers
from goca.backbones.registry import find_adapter
from goca.errors import ConfigError, ModelError
from goca.layer_names import LayerNames
from goca.paths import CONF
from goca.registry import dotted_path, load

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # components that no adapter reads
_ANY = LayerNames(cross=("*",), manual=("*",), reference="*", affinity=("*",))


def auto_backbone(checkpoint: str, revision: str | None = None, **settings: Any) -> Backbone:
    """The adapter of a checkpoint, with the given settings; those its family has beyond `Backbone`'s come from the proposal."""
    proposal = dict(propose(checkpoint, revision))
    adapter = load(proposal.pop("_target_"))
    layers = LayerNames(**settings.pop("layers"))
    return adapter(**{**proposal, **settings, "checkpoint": checkpoint, "revision": revision, "layers": layers})


def propose(checkpoint: str | None, revision: str | None = None) -> Mapping[str, Any]:
    """The model config that suits a checkpoint: that of a known model with the same layers, else all layers and a middle one.

    Raises:
        ConfigError: no checkpoint is given.
        ModelError: it cannot be read, or no adapter knows its pipeline.
    """
    return _propose(checkpoint, revision, config.folders())


@cache
def _propose(checkpoint: str | None, revision: str | None, folders: tuple[Path, ...]) -> Mapping[str, Any]:
    if not checkpoint:
        raise ConfigError("model=auto needs model.checkpoint=<hub id or folder>")
    # Configurations alone are read here, so pickled weights may lie beside them; `load` decides about those.
    pipeline = check_source(Source(checkpoint, unused=UNUSED, revision=revision, allow_pickle=True))["_class_name"]
    target = _target(pipeline, f"model.checkpoint: {checkpoint} is")
    return _proposal(pipeline, target, sketch(target, checkpoint, revision), checkpoint)


def propose_for(pipeline: Any) -> dict[str, Any]:
    """As `propose`, for a pipeline in memory; its weights are neither read nor moved.

    Raises:
        ModelError: no adapter knows its class.
    """
    kind, target = _nearest(type(pipeline))
    origin = str(pipeline.config.get("_name_or_path") or kind)  # a Path where it was loaded from one
    backbone = _unset(target, origin)
    backbone.torch_device, backbone.torch_dtype = torch.device("meta"), torch.float32
    backbone.adopt(_without_weights(pipeline, backbone.denoiser_name), encoders_left_out=True)
    return dict(_proposal(kind, target, backbone, origin))


def _nearest(kind: type) -> tuple[str, str]:
    """Name and adapter of a pipeline's class; a class of somebody's own stands for the one of diffusers that it extends.

    Raises:
        ModelError: no adapter takes either.
    """
    refusal: ModelError | None = None
    for base in kind.__mro__:
        name = text_to_image_name(base)
        try:
            return name, _target(name, "the pipeline is")
        except ModelError as error:
            refusal = refusal or error
        if base.__module__.partition(".")[0] == "diffusers":
            break
    assert refusal is not None
    raise refusal


def text_to_image_name(kind: type) -> str:
    """The class name of the text-to-image pipeline that has the parts of an image-to-image or inpainting one; else its own."""
    from diffusers.pipelines import auto_pipeline as auto  # imports every pipeline there is, which takes a second

    for variants in (auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, auto.AUTO_INPAINT_PIPELINES_MAPPING):
        for family, variant in variants.items():
            if variant is kind and family in auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING:
                name: str = auto.AUTO_TEXT2IMAGE_PIPELINES_MAPPING[family].__name__
                return name
    return kind.__name__


def _target(pipeline: str, what: str) -> str:
    """The adapter of a pipeline class."""
    try:
        return dotted_path(find_adapter(pipeline, tuple(model["_target_"] for model in _users_models())))
    except ModelError as error:
        raise ModelError(f"{what} a {error}") from error


def _proposal(pipeline: str, target: str, backbone: Backbone, checkpoint: str) -> Mapping[str, Any]:
    own = {"name": Path(checkpoint).name, "checkpoint": checkpoint}
    same_layers = [
        model
        for model in _same_pipeline(pipeline)
        if model["_target_"] == target and _layer_names(model["checkpoint"], target) == list(backbone.attention_modules)
    ]
    if same_layers:
        nearest = max(same_layers, key=lambda model: _agreement(model["checkpoint"], backbone))
        return {**{key: value for key, value in nearest.items() if key not in loading_keys()}, **own}
    return {"_target_": target, **own, **_generic(backbone)}


def _without_weights(pipeline: Any, denoiser: str) -> Any:
    """A copy of a pipeline whose networks hold shapes alone, without text encoders."""
    parts = dict(pipeline.components)
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            kept = name in (denoiser, "vae")
            settings: Any = part.config
            parts[name] = architectures.build(type(part), settings) if kept else None
    if "requires_safety_checker" in pipeline.config:
        parts["requires_safety_checker"] = False  # else the pipeline warns that it has none
    return type(pipeline)(**parts)


def sketch(target: str, checkpoint: str, revision: str | None = None) -> Backbone:
    """The backbone without weights, at its default size and without settings that matter for running it."""
    return _unset(target, checkpoint, revision).sketch()


def _unset(target: str, checkpoint: str, revision: str | None = None) -> Backbone:
    settings: dict[str, Any] = {"name": "auto", "size": 1024, "timestep": 100, "layers": _ANY, "allow_pickle": True}
    backbone: Backbone = load(target)(checkpoint=checkpoint, revision=revision, **settings)
    return backbone


@cache
def loading_keys() -> frozenset[str]:
    """Keys that every model config takes from `conf/model/base/loading.yaml`: where weights come from and where they go."""
    return frozenset(map(str, _settings("base/loading")))


def _generic(backbone: Backbone) -> dict[str, Any]:
    """All layers, a middle one as reference, those around it for affinity: nothing tells better before somebody measures."""
    denoiser: Any = backbone.denoiser
    sample = denoiser.config.get("sample_size")
    backbone.size = sample * backbone.compression if sample else backbone.size
    layers = observable_layers(backbone)
    text = [layer for layer in layers if layer.tokens and layer.grid]
    finest = max(layer.grid for layer in text if layer.grid)
    candidates = [layer.name for layer in text if layer.grid == finest]
    middle = len(candidates) // 2
    near = candidates[max(0, middle - 4) : middle + 4]
    return {
        "size": backbone.size,
        "timestep": 100,
        "feature_size": min(64, finest[0]),
        "heads": "dot_product",
        "affinity_order": 2,
        "layers": {
            "cross": _globs(text),
            "manual": near,
            "reference": candidates[middle],
            "affinity": list(dict.fromkeys(backbone.paired_self_attention(name) for name in near)),
            "feature": "query",
        },
    }


def _globs(layers: list[Layer]) -> list[str]:
    """The layers' names with every number replaced by a star, each pattern once."""
    return list(dict.fromkeys(re.sub(r"\d+(?=\.)", "*", layer.name) for layer in layers))


def _same_pipeline(pipeline: str) -> list[dict[str, Any]]:
    """Model configs, a user's own first, whose checkpoint is known to be a pipeline of that class."""
    known = [_settings(name) for name in config.options("model") if name != "auto"]
    return [model for model in [*_users_models(), *known] if _pipeline_of(model.get("checkpoint")) == pipeline]


def _users_models() -> list[dict[str, Any]]:
    """Model configs from folders that the user has added."""
    files = [file for folder in config.folders() if folder != CONF for file in sorted((folder / "model").glob("*.yaml"))]
    return [model for file in files if "_target_" in (model := _settings(file.stem))]


def _pipeline_of(checkpoint: Any) -> str | None:
    """The pipeline class of a published checkpoint, or of one in a local folder; None where that is not known."""
    published = architectures.published().get(checkpoint)
    if published:
        return published["pipeline"]
    index = Path(str(checkpoint), "model_index.json")
    try:
        return json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _settings(model: str) -> dict[str, Any]:
    """A config of the group `model` with those it inherits from; by hand, as Hydra composes nothing while it is composing."""
    own: Any = OmegaConf.load(
        next(file for folder in config.folders() if (file := folder / "model" / f"{model}.yaml").is_file())
    )
    parents = [
        OmegaConf.create(_settings(entry.partition("@")[0])) for entry in own.pop("defaults", []) if isinstance(entry, str)
    ]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*parents, own))
    return merged


def _agreement(checkpoint: str, backbone: Backbone) -> int:
    """In how many values a known denoiser is configured as this one."""
    denoiser: Any = backbone.denoiser
    if checkpoint in architectures.published():
        known = architectures.published()[checkpoint]["components"][backbone.denoiser_name]["config"]
    else:
        own: Any = sketch(dotted_path(type(backbone)), checkpoint).denoiser
        known = own.config
    return sum(denoiser.config.get(key) == value for key, value in known.items())


@cache
def _layer_names(checkpoint: str, target: str) -> list[str]:
    return list(sketch(target, checkpoint).attention_modules)


def setting(key: str, checkpoint: str | None, revision: str | None = None) -> Any:
    """One setting of the proposal: what `${auto_model:key,checkpoint,revision}` stands for in `conf/model/auto.yaml`."""
    section, _, name = key.rpartition(".")
    proposal = propose(checkpoint, revision)
    return proposal[section][name] if section else proposal[name]


def without_references(section: dict[Any, Any]) -> dict[Any, Any]:
    """Settings of `conf/model/auto.yaml` that have a value of their own."""
    kept = {}
    for key, value in section.items():
        if isinstance(value, dict):
            kept[key] = without_references(value)
        elif not (isinstance(value, str) and value.startswith("${auto_model:")):
            kept[key] = value
    return kept
