"""Chroma: FLUX.1-schnell's blocks without CLIP, with the padding of T5's text masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.flux import FluxBackbone
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class ChromaBackbone(FluxBackbone):
    """Attention is masked as diffusers' pipeline does it: with numbers that are added to the logits."""

    pipelines: ClassVar[tuple[str, ...]] = ("ChromaPipeline",)
    large_encoder: ClassVar[str | None] = "text_encoder"
    takes_concepts: ClassVar[bool] = False  # its modulation is made otherwise

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TextSegment(self.pipeline.tokenizer, self.text_length),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, _, mask, *_ = self.pipeline.encode_prompt(
            list(texts), device=self.torch_device, do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": embeddings, "attention_mask": mask}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.joint_attention_dim
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "attention_mask": self.blank(1, self.text_length, value=1),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        tokens = self._tokens(noisy, conditioning)
        mask = conditioning["attention_mask"]
        image = mask.new_ones(len(noisy), tokens["hidden_states"].shape[1])
        return self.denoiser(
            **tokens,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            attention_mask=torch.cat([mask, image], dim=1),
        ).sample
