"""Words that take no part in a drawing, read by their own keys on the queries of the prompt's forward (OVAM).

Where their keys come from depends on the family. A UNet's layers key the text as the encoder gives it. Other layers of
cross-attention key what the denoiser has made of the text alone: one forward with the words in place of the prompt shows it
once and for all. In joint attention text changes with the picture from block to block: there the words get a forward of their
own beside every evaluation of the prompt.
"""

from __future__ import annotations

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
from goca.backbones.mixins import CrossAttention
from goca.backbones.unet import UNetBackbone
from goca.errors import ConfigError, ModelError
from goca.prompts import TextSegment

_WHOLE = ("img_ids", "txt_ids", "image_rotary_emb")  # arguments without a batch axis


@dataclass
class OtherWords:
    """Reads a text in place of the prompt: called with each observed call, returns it with the keys of this text.

    Args:
        backbone: that borrows the pipeline.
        text: the words.
        kind: where keys come from, see above.
    """

    backbone: Backbone
    text: str
    kind: Literal["direct", "fixed", "beside"]
    _embeddings: Tensor | None = None
    _real: Tensor | None = None  # (1, 1, 1, n) bool: which positions are words
    _embeddings_beside: Mapping[str, Tensor] | None = None
    _segments: tuple[TextSegment, ...] = ()
    _calls: dict[str, AttentionCall] = field(default_factory=dict)

    @classmethod
    def of(cls, backbone: Backbone, text: str) -> OtherWords:
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
            words = cls(backbone, text, "direct")
            words._embeddings = words._encoded()["encoder_hidden_states"]
            words._segments = backbone.text_segments
            kinds = [token.kind for segment in backbone.text_segments for token in segment.tokens(text)]
            words._real = torch.tensor([kind != "padding" for kind in kinds])[None, None, None]
            return words
        return cls(backbone, text, "fixed" if isinstance(backbone, CrossAttention) else "beside")

    def segments(self, keys: int) -> tuple[TextSegment, ...]:
        """How the words lie on their text axis."""
        return self._segments

    def prepare(self, arguments: Mapping[str, Any], part: slice, rows: int, grid: tuple[int, int]) -> None:
        """Before an evaluation: find the keys, unless they are known.

        Args:
            arguments: of the denoiser's call.
            part: the rows of the batch that hold the prompt, of so many `rows`.
            grid: of the latents.
        """
        if self.kind == "direct" or (self.kind == "fixed" and self._calls):
            return
        backbone = self.backbone
        if not self._segments:
            if self.kind == "beside":
                text = arguments.get("encoder_hidden_states")
                if text is None:
                    raise ModelError(f"reads: the denoiser of {backbone.name} takes no other words beside its prompt")
                backbone.fit_text(len(text[0]))
            self._segments = backbone.text_segments
        modules = {name: module for name, module in backbone.attention_modules.items() if backbone.is_text_layer(name)}

        shape = backbone.latent_shape[1:] if self.kind == "fixed" else grid

        def observe(raw: RawCall) -> None:
            call = backbone.canonical(raw, shape)
            if call is not None and call.text is not None:
                self._calls[raw.layer] = replace(call.without_values(), value=call.value, query=call.query[..., :1, :])

        with torch.no_grad(), AttentionTap(modules, observe):
            if self.kind == "fixed":
                backbone.denoise(backbone.blank(1, *backbone.latent_shape), self._encoded())
            else:
                backbone.denoiser(**self._beside(arguments, part, rows))

    def __call__(self, call: AttentionCall) -> AttentionCall:
        if call.text is None:
            return call
        if self.kind == "direct":
            assert self._embeddings is not None and self._real is not None
            other = self.backbone.read(call, self._embeddings)
            return replace(other, mask=self._real.to(call.query.device))
        found = self._calls[call.layer]
        images = len(call.query)
        assert found.value is not None
        key, value = _expanded(found.key, images), _expanded(found.value, images)
        mask = found.mask
        if call.image is not None:
            assert call.value is not None
            key, value = _with_image(call, call.key, key), _with_image(call, call.value, value)
        return replace(call, key=key, value=value, mask=mask, lse=None, scratch={})

    def _encoded(self) -> Mapping[str, Tensor]:
        with torch.no_grad(), _as_it_was(self.backbone.pipeline):
            return self.backbone.encode_text([self.text])

    def _beside(self, arguments: Mapping[str, Any], part: slice, rows: int) -> dict[str, Any]:
        """The prompt's rows of a call, with the words in place of the prompt."""
        if self._embeddings_beside is None:
            self._embeddings_beside = self._encoded()
        words = self._embeddings_beside
        count = len(range(*part.indices(rows)))
        known = inspect.signature(self.backbone.denoiser.forward).parameters
        given = {name: arguments.get(name) for name in words}
        unfit = [
            name
            for name, value in given.items()
            if name not in known or (value is not None and value.shape[1:] != words[name].shape[1:])
        ]
        if unfit:
            raise ModelError(f"reads: the denoiser of {self.backbone.name} takes no other words beside its prompt ({unfit[0]})")
        own = {name: _rows(value, part, rows) for name, value in arguments.items() if name not in _WHOLE}
        whole = {name: value for name, value in arguments.items() if name in _WHOLE}
        return {**own, **whole, **{name: _expanded(value, count) for name, value in words.items()}}


def _rows(value: Any, part: slice, rows: int) -> Any:
    """The rows of a tensor or list that has one entry for each."""
    each = ((isinstance(value, Tensor) and value.ndim > 0) or isinstance(value, list)) and len(value) == rows
    return value[part] if each else value


def _expanded(tensor: Tensor, count: int) -> Tensor:
    return tensor.expand(count, *tensor.shape[1:]) if len(tensor) == 1 else tensor


def _with_image(call: AttentionCall, own: Tensor, other: Tensor) -> Tensor:
    """Keys or values of a joint call with those of the other text in place of its own."""
    joined = own.clone()
    joined[:, :, call.text] = other[:, :, call.text]
    return joined


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
