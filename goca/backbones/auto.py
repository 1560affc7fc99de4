"""Any pipeline of a supported family: inspect a checkpoint, pick its adapter, and propose the settings of a model config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from goca.backbones.base import Backbone
from goca.backbones.loading import architectures
from goca.backbones.loading.checkpoints import Source, check_source
from goca.backbones.observable import Layer, observable_layers
from goca.errors import ConfigError, ModelError
from goca.layer_names import LayerNames
from goca.paths import CONF

ADAPTERS = {
    "goca.backbones.unet.UNetBackbone": ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "goca.backbones.pixart.PixArtBackbone": ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    "goca.backbones.hunyuan.HunyuanBackbone": ("HunyuanDiTPipeline",),
    "goca.backbones.flux.FluxBackbone": ("FluxPipeline",),
    "goca.backbones.sd3.SD3Backbone": ("StableDiffusion3Pipeline",),
    "goca.backbones.chroma.ChromaBackbone": ("ChromaPipeline",),
    "goca.backbones.aura_flow.AuraFlowBackbone": ("AuraFlowPipeline",),
    "goca.backbones.qwen_image.QwenImageBackbone": ("QwenImagePipeline",),
}
_ANY = LayerNames(cross=("*",), manual=("*",), reference="*", affinity=("*",))


def auto_backbone(checkpoint: str, revision: str | None = None, **settings: Any) -> Backbone:
    """The adapter of a checkpoint, with the given settings; those its family has beyond `Backbone`'s come from the proposal."""
    proposal = dict(propose(checkpoint, revision))
    adapter = _adapter(proposal.pop("_target_"))
    layers = LayerNames(**settings.pop("layers"))
    return adapter(**{**proposal, **settings, "checkpoint": checkpoint, "revision": revision, "layers": layers})


@cache
def propose(checkpoint: str | None, revision: str | None = None) -> Mapping[str, Any]:
    """The model config that suits a checkpoint: that of a known model with the same layers, else all layers and a middle one.

    Raises:
        ConfigError: no checkpoint is given.
        ModelError: it cannot be read, or no adapter knows its pipeline.
    """
    if not checkpoint:
        raise ConfigError("model=auto needs model.checkpoint=<hub id or folder>")
    # Configurations alone are read here, so pickled weights may lie beside them; `load` decides about those.
    pipeline = check_source(Source(checkpoint, revision=revision, allow_pickle=True))["_class_name"]
    target = next((target for target, pipelines in ADAPTERS.items() if pipeline in pipelines), None)
    if target is None:
        known = ", ".join(name for pipelines in ADAPTERS.values() for name in pipelines)
        raise ModelError(
            f"model.checkpoint: {checkpoint} is a {pipeline}, which no adapter takes; those there are take {known}"
        )
    backbone = sketch(target, checkpoint, revision)
    own = {"name": Path(checkpoint).name, "checkpoint": checkpoint}
    same_layers = [
        model
        for model in _same_pipeline(pipeline)
        if _layer_names(model["checkpoint"], target) == list(backbone.attention_modules)
    ]
    if same_layers:
        nearest = max(same_layers, key=lambda model: _agreement(model["checkpoint"], backbone))
        return {**{key: value for key, value in nearest.items() if key not in loading_keys()}, **own}
    return {"_target_": target, **own, **_generic(backbone)}


def sketch(target: str, checkpoint: str, revision: str | None = None) -> Backbone:
    """The backbone without weights, at its default size and without settings that matter for running it."""
    settings: dict[str, Any] = {"name": "auto", "size": 1024, "timestep": 100, "layers": _ANY, "allow_pickle": True}
    return _adapter(target)(checkpoint=checkpoint, revision=revision, **settings).sketch()


@cache
def loading_keys() -> frozenset[str]:
    """Keys that every model config takes from `conf/model/base/loading.yaml`: where weights come from and where they go."""
    return frozenset(map(str, _settings("base/loading")))


def _adapter(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def _generic(backbone: Backbone) -> dict[str, Any]:
    """All layers, a middle one as reference, those around it for affinity: nothing tells better before somebody measures."""
    denoiser: Any = backbone.denoiser
    sample = denoiser.config.get("sample_size")
    backbone.size = sample * backbone.pipeline.vae_scale_factor if sample else backbone.size
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
    """Configs in `conf/model` whose checkpoint is known to be a pipeline of that class."""
    found = []
    for file in sorted((CONF / "model").glob("*.yaml")):
        settings = _settings(file.stem)
        if architectures.published().get(settings["checkpoint"], {}).get("pipeline") == pipeline:
            found.append(settings)
    return found


def _settings(model: str) -> dict[str, Any]:
    """A config of `conf/model` with those it inherits from; by hand, as Hydra composes nothing while it is composing."""
    own: Any = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    parents = [OmegaConf.create(_settings(entry.partition("@")[0])) for entry in own.pop("defaults", [])]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*parents, own))
    return merged


def _agreement(checkpoint: str, backbone: Backbone) -> int:
    """In how many values a published denoiser is configured as this one."""
    denoiser: Any = backbone.denoiser
    known = architectures.published()[checkpoint]["components"][backbone.denoiser_name]["config"]
    return sum(denoiser.config.get(key) == value for key, value in known.items())


@cache
def _layer_names(checkpoint: str, target: str) -> list[str]:
    return list(sketch(target, checkpoint).attention_modules)


def setting(key: str, checkpoint: str | None, revision: str | None = None) -> Any:
    """One setting of the proposal: what `${auto_model:key,checkpoint,revision}` stands for in `conf/model/auto.yaml`."""
    section, _, name = key.rpartition(".")
    proposal = propose(checkpoint, revision)
    return proposal[section][name] if section else proposal[name]
