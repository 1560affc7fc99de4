"""HunyuanDiT 1.1 and 1.2: self- and cross-attention with rotary embeddings; text is a BERT-like CLIP's, then T5's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import CrossAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment

BERT_LENGTH, T5_LENGTH = 77, 256


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class HunyuanBackbone(CrossAttention):
    """The text axis is 77 BERT tokens, then 256 T5 tokens. Padding is not masked: the model puts a learned token there."""

    pipelines: ClassVar[tuple[str, ...]] = ("HunyuanDiTPipeline",)
    unused: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor")
    large_encoder: ClassVar[str | None] = "text_encoder_2"

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (
            TextSegment(self.pipeline.tokenizer, BERT_LENGTH),
            TextSegment(self.pipeline.tokenizer_2, T5_LENGTH, start=BERT_LENGTH),
        )

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        conditioning = {}
        for encoder, suffix in enumerate(("", "_t5")):
            embeddings, _, mask, _ = self.pipeline.encode_prompt(
                list(texts),
                device=self.torch_device,
                dtype=self.torch_dtype,
                do_classifier_free_guidance=False,
                text_encoder_index=encoder,
            )
            conditioning[f"encoder_hidden_states{suffix}"] = embeddings
            conditioning[f"text_embedding_mask{suffix}"] = mask
        return conditioning

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        return {
            "encoder_hidden_states": self.blank(1, BERT_LENGTH, config.cross_attention_dim),
            "text_embedding_mask": self.blank(1, BERT_LENGTH, value=1),
            "encoder_hidden_states_t5": self.blank(1, T5_LENGTH, config.cross_attention_dim_t5),
            "text_embedding_mask_t5": self.blank(1, T5_LENGTH, value=1),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        images = len(noisy)
        # The model is told original size, target size, crop and style; 1024 px and no crop are what its pipeline says.
        sizes = torch.tensor([[1024, 1024, *self.pixel_size(noisy), 0, 0]], device=noisy.device, dtype=noisy.dtype)
        return self.denoiser(
            noisy,
            torch.full((images,), self.timestep, device=noisy.device, dtype=noisy.dtype),
            image_meta_size=sizes.repeat(images, 1),
            style=torch.zeros(images, dtype=torch.long, device=noisy.device),
            image_rotary_emb=self._rotary_embedding(self.token_grid((noisy.shape[-2], noisy.shape[-1])), noisy.device),
            **conditioning,
        ).sample

    def _rotary_embedding(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        config = self.pipeline.transformer.config
        trained = 512 // 8 // self.patch  # positions are scaled to the grid of 512 px
        region = get_resize_crop_region_for_grid(grid, trained)
        return get_2d_rotary_pos_embed(config.attention_head_dim, region, grid, device=device, output_type="pt")
