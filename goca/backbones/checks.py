"""Does a model do here what the method takes for granted? One observed forward, compared with plain ones and with formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from goca.attention.call import AttentionCall, probabilities
from goca.attention.statistics import AttentionStatistics
from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.base import Backbone, image_noise
from goca.prompts import from_names

_ROWS = 64  # query rows of a layer that are compared with the formula
# Largest difference from the explicit formula, relative to the largest value: float32, and half types.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


class Check(NamedTuple):
    """One thing that holds or does not: `value` is what was measured, `limit` what it may be at most."""

    passed: bool
    value: float
    limit: float


def check_forward(backbone: Backbone, pixels: Tensor, text: str, statistics: AttentionStatistics) -> dict[str, Check]:
    """Observe one image and prompt, and check what came out.

    Args:
        backbone: loaded.
        pixels: (1, 3, size, size) in [-1, 1].
        statistics: a fresh one, whose plan names the layers.

    Returns:
        By name: `finite`, the output has no NaN; `bits`, observing changes none of it; `oracle`, attention recomputed for three
        layers agrees with an explicit formula over the whole sequence, and its product with the values with the layer's output;
        `shares`, token maps add up to 1.
    """
    with torch.inference_mode():
        latents = backbone.encode_image(pixels.to(backbone.torch_device, backbone.torch_dtype))
        noisy = backbone.add_noise(latents, image_noise(latents.shape[1:], ["verify"], 0).to(latents))
        conditioning = backbone.conditioning([text])
        names = list(statistics.plan.cross)
        chosen = {
            name: backbone.attention_modules[name] for name in dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
        }
        worst: list[float] = []

        def observe(raw: RawCall) -> None:
            call = backbone.canonical(raw, (latents.shape[-2], latents.shape[-1]))
            if call is not None:
                worst.append(_difference(call))

        plain = backbone.denoise(noisy, conditioning)
        finite = Check(bool(plain.isfinite().all()), float((~plain.isfinite()).sum()), 0)
        if not finite.passed:
            return {"finite": finite}
        with AttentionTap(chosen, observe):
            observed = backbone.denoise(noisy, conditioning)
        maps = backbone.observe(pixels, [text], ["verify"], 0, statistics).token_maps
    bits = float((plain != observed).sum())
    shares = float((maps.sum(1) - 1).abs().max())
    limit = _TOLERANCE[backbone.torch_dtype]
    return {
        "finite": finite,
        "bits": Check(bits == 0, bits, 0),
        "oracle": Check(len(worst) == len(chosen) and max(worst) <= limit, max(worst, default=float("inf")), limit),
        "shares": Check(shares <= 1e-4, shares, 1e-4),
    }


def check_prompt(backbone: Backbone, words: Sequence[str]) -> dict[str, Check]:
    """`alignment`: every word has a token, and the ids of the aligned text are those that enter a text encoder."""
    _, prompts = from_names(words, backbone.text_segments)
    lost = sum(len(prompt.lost_classes) for prompt in prompts)
    entered: list[list[int]] = []
    handles = [
        encoder.register_forward_pre_hook(lambda _, args, options: _note(entered, args, options), with_kwargs=True)
        for name, encoder in backbone.pipeline.components.items()
        if name.startswith("text_encoder") and isinstance(encoder, torch.nn.Module)
    ]
    try:
        with torch.inference_mode():
            backbone.encode_text([prompts[0].text])
    finally:
        for handle in handles:
            handle.remove()
    for segment in backbone.text_segments:
        padding = segment.tokenizer.pad_token_id
        wanted = [i for i in segment.ids(prompts[0].text) if i != padding]
        rows = [[i for i in row if i != padding] for row in entered]
        lost += not any(wanted == row[first : first + len(wanted)] for row in rows for first in range(len(row)))
    return {"alignment": Check(lost == 0, lost, 0)}


def random_conditioning(backbone: Backbone, text: str) -> None:
    """Let a prompt stand for random embeddings of its shape, where no text encoder is available."""
    generator = torch.Generator().manual_seed(0)
    blank = backbone.blank_conditioning()
    backbone.embeddings[text] = {
        name: torch.randn(value.shape, generator=generator).to(value)
        if value.is_floating_point() and value.abs().sum() == 0
        else value
        for name, value in blank.items()
    }


def _note(entered: list[list[int]], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    ids = options.get("input_ids", args[0] if args else None)
    if ids is not None:
        entered.append(ids[0].tolist())


def _difference(call: AttentionCall) -> float:
    """How far recomputed probabilities and the layer's output are from the explicit formula, relative to its largest value."""
    assert call.output is not None and call.value is not None
    rows = torch.linspace(0, call.query.shape[2] - 1, min(_ROWS, call.query.shape[2])).long().to(call.query.device)
    products = torch.einsum("bhsd,bhnd->bhsn", call.query[:, :, rows].double(), call.key.double()) * call.scale
    if call.linear:
        explicit = products / (products.sum(-1, keepdim=True) + 1e-15)
    else:
        if call.mask is not None:
            mask = call.mask[..., rows, :] if call.mask.shape[-2] > 1 else call.mask
            products = products.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else products + mask
        explicit = products.softmax(-1)
    output = torch.einsum("bhsn,bhnd->bhsd", explicit, call.value.double())
    if call.gate is not None:
        output = output * call.gate[:, :, rows]
    found = [(output, call.output[:, :, rows])]
    found += [
        (explicit[..., part], probabilities(call, part, rows=rows)) for part in (call.text, call.image) if part is not None
    ]
    return max(float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1e-12)) for wanted, got in found)
