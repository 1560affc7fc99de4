"""Words that take no part in a drawing, read by their own keys on the queries of the prompt's forward (OVAM).

Where their keys come from depends on the family. A UNet's layers key the text as the encoder gives it. Other layers of
cross-attention key what the denoiser has made of the text alone: one forward with the words in place of the prompt shows it
once and for all. In joint attention text changes with the picture from block to block: there the words get a forward of their
own beside every evaluation of the prompt.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from goca.attention.call import AttentionCall
from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.base import Backbone
from goca.backbones.drawing import rotated
from goca.backbones.mixins import CrossAttention
from goca.backbones.unet import UNetBackbone
from goca.errors import ConfigError, ModelError
from goca.prompts import TextSegment

# What a denoiser is told beside the text, by the names of all families.
_BESIDE_TEXT = ("hidden_states", "x", "sample", "t", "timestep", "timesteps", "timestep_r", "guidance")


@dataclass
class OtherWords:
    """Reads a text in place of the prompt: called with each observed call, returns it with the keys of this text.

    Args:
        backbone: that borrows the pipeline.
        text: the words.
        kind: where keys come from, see above.
        scales: factors on the attention of layers, as the drawing has them.
    """

    backbone: Backbone
    text: str
    kind: Literal["direct", "fixed", "beside"]
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    _words: Mapping[str, Tensor] | None = None  # encoded
    _real: Tensor | None = None  # (1, 1, 1, n) bool: which positions are words
    _fitted: Backbone | None = None
    _calls: dict[str, AttentionCall] = field(default_factory=dict)

    @classmethod
    def of(cls, backbone: Backbone, text: str, scales: Mapping[str, Tensor]) -> OtherWords:
        """Encode a text.

        Raises:
            ConfigError: there are no words in it. ModelError: the pipeline has no text encoder.
        """
        if not any(map(str.isalnum, text)):
            raise ConfigError(f"reads: {text!r} has no words")
        encoders = [part for name, part in backbone.pipeline.components.items() if name.startswith("text_encoder")]
        if not any(encoder is not None for encoder in encoders):
            raise ModelError("reads: other words have to be encoded, and the pipeline has no text encoder")
        if isinstance(backbone, UNetBackbone):
            words = cls(backbone, text, "direct", scales, _fitted=copy.copy(backbone))
            words._words = words._encoded(backbone)
            kinds = [token.kind for segment in backbone.text_segments for token in segment.tokens(text)]
            words._real = torch.tensor([kind != "padding" for kind in kinds])[None, None, None]
            return words
        fixed = isinstance(backbone, CrossAttention) and not backbone.text_changes
        return cls(copy.copy(backbone), text, "fixed" if fixed else "beside", scales)

    def segments(self, keys: int) -> tuple[TextSegment, ...]:
        """How the words lie on their text axis."""
        assert self._fitted is not None
        return self._fitted.text_segments

    def prepare(self, arguments: Mapping[str, Any], part: slice, rows: int, grid: tuple[int, int]) -> None:
        """Before an evaluation: find the keys, unless they are known.

        Args:
            arguments: of the denoiser's call.
            part: the rows of the batch that hold the prompt, of so many `rows`.
            grid: of the latents.
        """
        if self.kind == "direct" or (self.kind == "fixed" and self._calls):
            return
        if self._fitted is None or self._words is None:
            self._fitted = self._fit(arguments)
            self._words = self._encoded(self._fitted)
        backbone, words = self._fitted, self._words
        channels, *square = backbone.latent_shape
        height, width = square if self.kind == "fixed" else grid
        count = 1 if self.kind == "fixed" else len(range(*part.indices(rows)))
        modules = {name: module for name, module in backbone.attention_modules.items() if backbone.is_text_layer(name)}
        modules |= {name: backbone.attention_modules[name] for name in self.scales}
        found: dict[str, AttentionCall] = {}

        def observe(raw: RawCall) -> None:
            call = backbone.canonical(raw, (height, width)) if backbone.is_text_layer(raw.layer) else None
            if call is not None and call.text is not None:
                found[raw.layer] = replace(call.without_values(), value=call.value, query=call.query[..., :1, :])

        beside = self._picture(arguments, part, rows)
        with torch.no_grad(), AttentionTap(modules, observe, self.scales), beside as moved:
            expanded = {name: _expanded(value, count) for name, value in words.items()}
            backbone.denoise(backbone.blank(count, channels, height, width), expanded)
        for layer, call in found.items():
            self._calls[layer] = call if moved[0] is None else _moved(call, moved[0], backbone.rotary_axis)

    def __call__(self, call: AttentionCall) -> AttentionCall:
        if call.text is None:
            return call
        if self.kind == "direct":
            assert self._words is not None and self._real is not None
            other = self.backbone.read(call, self._words["encoder_hidden_states"])
            return replace(other, mask=self._real.to(call.query.device))
        found = self._calls[call.layer]
        images = len(call.query)
        assert found.value is not None and call.value is not None
        key, value = _expanded(found.key, images), _expanded(found.value, images)
        if call.image is not None and found.image is not None:  # the picture's keys are those of the drawing
            key, value = key.clone(), value.clone()
            key[:, :, found.image], value[:, :, found.image] = call.key[:, :, call.image], call.value[:, :, call.image]
        return replace(
            call,
            key=key,
            value=value,
            mask=found.mask,
            text=found.text,
            image=found.image,
            text_axis=found.text_axis,
            lse=None,
            scratch={},
        )

    def _fit(self, arguments: Mapping[str, Any]) -> Backbone:
        """The adapter with a text axis as long as the prompt's, since padding draws attention in some families; longer words
        get the length that they would have when an image is observed."""
        usual, keys = self.backbone, self.backbone.text_keys(arguments)
        if keys is None:
            return usual
        fitted = copy.copy(usual)
        fitted.fit_text(keys)
        return fitted if _real_tokens(fitted, self.text) >= _real_tokens(usual, self.text) else usual

    def _encoded(self, backbone: Backbone) -> Mapping[str, Tensor]:
        with torch.no_grad(), _as_it_was(backbone.pipeline):
            return backbone.encode_text([self.text])

    @contextmanager
    def _picture(self, arguments: Mapping[str, Any], part: slice, rows: int) -> Iterator[list[Tensor | None]]:
        """Within, the adapter's call of the denoiser gets the picture and the noise level of the drawing's call, `beside`.

        Gives a list of one: how many places further the picture stands in the drawing, if that depends on the text, (B,).
        """
        moved: list[Tensor | None] = [None]
        if self.kind == "fixed":
            yield moved
            return
        denoiser = self.backbone.denoiser
        signature = inspect.signature(denoiser.forward)
        own = {name: _rows(value, part, rows) for name, value in arguments.items() if name in _BESIDE_TEXT}

        def swap(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            bound = signature.bind(*args, **kwargs)
            prompt, words = self.backbone.picture_starts(arguments), self.backbone.picture_starts(bound.arguments)
            if prompt is not None and words is not None:
                moved[0] = prompt[part] - words
            bound.arguments.update(own)
            return bound.args, bound.kwargs

        handle = denoiser.register_forward_pre_hook(swap, with_kwargs=True)
        try:
            yield moved
        finally:
            handle.remove()


def _real_tokens(backbone: Backbone, text: str) -> int:
    """How many tokens of a text find room."""
    return sum(token.kind != "padding" for segment in backbone.text_segments for token in segment.tokens(text))


def _moved(call: AttentionCall, steps: Tensor, axis: tuple[int, float]) -> AttentionCall:
    """The call with its text as far before the picture as it was, where the picture stands so many places further."""
    assert call.text is not None
    key = call.key.clone()
    key[:, :, call.text] = rotated(key[:, :, call.text], steps, *axis)
    return replace(call, key=key)


def _rows(value: Any, part: slice, rows: int) -> Any:
    """The rows of a tensor or list that has one entry for each."""
    each = ((isinstance(value, Tensor) and value.ndim > 0) or isinstance(value, list)) and len(value) == rows
    return value[part] if each else value


def _expanded(tensor: Tensor, count: int) -> Tensor:
    return tensor.expand(count, *tensor.shape[1:]) if len(tensor) == 1 else tensor


@contextmanager
def _as_it_was(pipeline: Any) -> Iterator[None]:
    """Undo what encoding may set on a pipeline, such as how many tokens of a template are left out."""
    before = dict(vars(pipeline))
    try:
        yield
    finally:
        for name, value in vars(pipeline).items():
            if name not in before or value is not before[name]:
                pipeline.__dict__[name] = before.get(name)
