"""Attention while a pipeline draws: `goca.watch(pipe)`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from goca import config
from goca.errors import ConfigError
from goca.segmentor import Segmentor
from goca.watching.seen import Seen, SeenPicture
from goca.watching.session import Options, Scale, Watch, refuse_compiled, refuse_decided, while_drawing
from goca.watching.word_maps import WordMap, Words

__all__ = ["Seen", "SeenPicture", "WordMap", "Words", "watch"]

_known: WeakKeyDictionary[nn.Module, dict[Any, Segmentor]] = WeakKeyDictionary()  # these segmentors hold no pipeline
_DEFAULTS = ("aggregation=vanilla", "refinement=none")


def watch(
    pipeline: Any,
    *overrides: str,
    reads: str | Sequence[str] = (),
    negative: bool = False,
    steps: int | None = None,
    layers: int | None = None,
    scale: Scale | None = None,
    prompt: str | Sequence[str] | None = None,
) -> Watch:
    """Watch a diffusers pipeline draw: where every word's attention is, added up over steps, layers and heads.

        with goca.watch(pipe) as seen:
            image = pipe("a cat on grass", num_inference_steps=20).images[0]
        seen.words["cat"].overlay(image)

    The pipeline is not changed, and draws the same picture to the last bit. Memory does not grow with the number of steps.

    Args:
        pipeline: a pipeline of a supported family, or its image-to-image or inpainting variant; one call of it is watched.
        overrides: the method, as on the command line, such as "preset=goca". By default heads and layers count alike, words
            are made comparable as GoCA does, and nothing is refined.
        reads: other texts, whose words take no part in the drawing and are read by their own keys.
        negative: watch the negative prompt too.
        steps: keep the maps of every single step; the shorter side of them in pixels.
        layers: keep the mean map of every layer; the shorter side of them in pixels.
        scale: layers (globs) and factors on their attention output, one factor or one for each head. The picture then changes.
        prompt: what the pipeline draws, where it is given embeddings alone.

    Returns:
        A context manager whose target is `Seen`.

    Raises:
        ConfigError, ModelError: with what to change. Inside the context too, from the call of the pipeline.
    """
    for name, side in (("steps", steps), ("layers", layers)):
        if side is not None and (not isinstance(side, int) or isinstance(side, bool) or side < 1):
            raise ConfigError(f"{name}: give the shorter side of the maps in pixels, such as 32; got {side!r}")
    if scale is not None and not isinstance(scale, Mapping):
        raise ConfigError(f"scale: give globs of layers and factors, such as {{'up_blocks.*': 0.5}}; got {scale!r}")
    if wrong := [override for override in overrides if not isinstance(override, str)]:
        raise ConfigError(f'give settings as on the command line, such as goca.watch(pipe, "preset=goca"); got {wrong[0]!r}')
    if not hasattr(pipeline, "components"):
        raise ConfigError(f"goca.watch takes a diffusers pipeline; got {type(pipeline).__name__}")
    refuse_decided(overrides, ("views", "passes"))
    chosen = [default for default in _DEFAULTS if not any(_decides(override, default) for override in overrides)]
    segmentor = _proposed(pipeline, (*chosen, *overrides))
    segmentor.method = while_drawing(segmentor.method)
    segmentor.backbone.borrow(pipeline)
    options = Options(
        _texts("reads", reads), negative, steps, layers, scale, None if prompt is None else _texts("prompt", prompt)
    )
    return Watch(pipeline, segmentor, options)


def _proposed(pipeline: Any, overrides: tuple[str, ...]) -> Segmentor:
    """`Segmentor.proposed`, found once for a pipeline and its settings: looking for the layers takes a second."""
    networks = [getattr(pipeline, name, None) for name in ("unet", "transformer")]
    denoiser = next((network for network in networks if isinstance(network, nn.Module)), None)
    if denoiser is None:
        return Segmentor.proposed(pipeline, *overrides)
    refuse_compiled(denoiser)
    known = _known.setdefault(denoiser, {})
    key = (type(pipeline), str(pipeline.dtype), str(pipeline.device), config.folders(), overrides)
    if key not in known:
        known[key] = Segmentor.proposed(pipeline, *overrides)
    found = known[key]
    return Segmentor(copy.copy(found.backbone), found.method, found.seed, found.max_bytes, found.precision)


def _decides(override: str, default: str) -> bool:
    """Whether an override speaks about what a default is for."""
    key = override.partition("=")[0].lstrip("+")
    return key in ("preset", default.partition("=")[0])


def _texts(name: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    found = (texts,) if isinstance(texts, str) else texts
    if not isinstance(found, Sequence) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{name}: give a text or a list of texts; got {texts!r}")
    return tuple(found)
