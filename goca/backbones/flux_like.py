"""Models in FLUX.1's blocks with a text encoder of their own and no pooled text: Ovis-Image, LongCat-Image, Bria 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.flux import FluxBackbone
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import PiecesSegment, TemplateSegment


def _diagonal(first: int, length: int, like: Tensor) -> Tensor:
    """(first, i, i) of every text token i: (length, 3) float32 on the device of `like`."""
    places = torch.arange(length, device=like.device, dtype=torch.float32)
    return torch.stack([torch.full_like(places, first), places, places], dim=1)


@dataclass(config=ConfigDict(extra="forbid"))
class FluxLikeBackbone(FluxBackbone):
    """What the models of this module share."""

    pipelines: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()
    large_encoder: ClassVar[str | None] = "text_encoder"
    takes_concepts: ClassVar[bool] = False  # their modulation has no pooled text that could be left out

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.joint_attention_dim
        return {"encoder_hidden_states": self.blank(1, self.text_length, width)}

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(**self._tokens(noisy, conditioning), **conditioning).sample


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class OvisImageBackbone(FluxLikeBackbone):
    """Qwen3 reads a chat; what comes before the prompt is dropped, and padding is zeros that no mask hides."""

    pipelines: ClassVar[tuple[str, ...]] = ("OvisImagePipeline",)

    @property
    def _dropped(self) -> int:
        """Tokens before the prompt. The pipeline has a number; counted here, it is right for any tokenizer."""
        chat, _, _ = self._render("\ue000").partition("\ue000")
        return len(self.pipeline.tokenizer(chat, add_special_tokens=False)["input_ids"])

    def _render(self, text: str) -> str:
        rendered: str = self.pipeline._get_messages(text)[0]
        return rendered

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        dropped = self._dropped
        kept = range(dropped, dropped + self.text_length)
        return (TemplateSegment(self.pipeline.tokenizer, self.text_length, render=self._render, kept=kept, bare=True),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        self.pipeline.user_prompt_begin_id = self._dropped
        embeddings, *_ = self.pipeline.encode_prompt(
            list(texts),
            do_classifier_free_guidance=False,
            device=self.torch_device,
            max_sequence_length=self.text_length,
        )
        return {"encoder_hidden_states": embeddings}

    def _tokens(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        tokens = super()._tokens(noisy, conditioning)
        return {**tokens, "txt_ids": _diagonal(0, len(tokens["txt_ids"]), noisy)}


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class LongCatImageBackbone(FluxLikeBackbone):
    """Qwen2.5-VL reads a chat of which the prompt alone is kept; quoted words are read letter by letter."""

    pipelines: ClassVar[tuple[str, ...]] = ("LongCatImagePipeline",)
    unused: ClassVar[tuple[str, ...]] = ("text_processor",)

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        def split(text: str) -> list[str]:
            return [piece for part, quoted in split_quotation(text) for piece in (part if quoted else [part])]

        return (PiecesSegment(self.pipeline.tokenizer, self.text_length, split=split),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        self.pipeline.tokenizer_max_length = self.text_length
        embeddings, _ = self.pipeline.encode_prompt(list(texts))
        return {"encoder_hidden_states": embeddings}

    def _tokens(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """The image's places begin after the text's."""
        tokens = super()._tokens(noisy, conditioning)
        start = torch.tensor([1, self.text_length, self.text_length], device=noisy.device)
        return {**tokens, "txt_ids": _diagonal(0, self.text_length, noisy), "img_ids": tokens["img_ids"] + start}


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class BriaBackbone(FluxLikeBackbone):
    """T5's text, filled up with zeros that no mask hides."""

    pipelines: ClassVar[tuple[str, ...]] = ("BriaPipeline",)
    unused: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")

    @property
    def compression(self) -> int:
        factor: int = self.pipeline.vae_scale_factor // 2  # the pipeline counts the packing in
        return factor

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TextSegment(self.pipeline.tokenizer, self.text_length),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, *_ = self.pipeline.encode_prompt(
            list(texts), self.torch_device, do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": embeddings.to(self.torch_dtype)}

    def _tokens(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        return {**super()._tokens(noisy, conditioning), "timestep": self.times(noisy, scale=1000)}
