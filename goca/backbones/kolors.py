"""Kolors: SDXL's UNet with ChatGLM as its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.registry import backbone
from goca.backbones.unet import UNetBackbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import DecodedSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class KolorsBackbone(UNetBackbone):
    """Its tokenizer knows no character offsets: its pieces are looked up in the prompt. Padding is on the left and not masked.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("KolorsPipeline",)
    unused: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")
    large_encoder: ClassVar[str | None] = "text_encoder"

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (DecodedSegment(self.pipeline.tokenizer, self.text_length),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts),
            device=self.torch_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return {"encoder_hidden_states": embeddings, "text_embeds": pooled}

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, config.encoder_hid_dim),
            "text_embeds": self.blank(1, pooled),
        }
