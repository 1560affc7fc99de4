"""Which layers of a denoiser can be observed, found by a forward on the meta device under the tap: shapes only, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.base import Backbone


@dataclass(frozen=True)
class Layer:
    """An attention layer as it runs at the backbone's image size.

    Args:
        kind: `cross` (image to text), `self` (image to image), `joint` (both at once), or `text` (no image queries).
        width: H * d.
        grid: (h, w) of the image queries.
    """

    name: str
    kind: Literal["cross", "self", "joint", "text"]
    heads: int
    width: int
    grid: tuple[int, int] | None
    tokens: int  # keys that are text


def observable_layers(backbone: Backbone) -> list[Layer]:
    """Every layer that computes softmax attention, in the order in which they run, after `inspect` or `sketch`."""
    layers: dict[str, Layer] = {}
    meta = torch.device("meta")
    device, dtype, backbone.torch_device, backbone.torch_dtype = (
        backbone.torch_device,
        backbone.torch_dtype,
        meta,
        torch.float32,
    )
    shape = backbone.latent_shape

    def observe(raw: RawCall) -> None:
        call = backbone.canonical(raw, (shape[1], shape[2]))
        heads, width = raw.query.shape[1], raw.query.shape[1] * raw.query.shape[3]
        if call is None:
            layers.setdefault(raw.layer, Layer(raw.layer, "text", heads, width, None, raw.key.shape[2]))
            return
        kind: Any = "joint" if call.text and call.image else "cross" if call.text else "self"
        tokens = len(range(*call.text.indices(raw.key.shape[2]))) if call.text else 0
        layers[raw.layer] = Layer(raw.layer, kind, heads, width, call.grid, tokens)  # also after a call for the text alone

    try:
        with torch.no_grad(), AttentionTap(backbone.attention_modules, observe):
            backbone.denoise(torch.zeros(1, *shape, device=meta), backbone.blank_conditioning())
    finally:
        backbone.torch_device, backbone.torch_dtype = device, dtype
    return list(layers.values())
