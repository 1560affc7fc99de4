"""CogView4: joint attention in blocks that text and image share; GLM's text before the image, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class CogView4Backbone(FlowMatching, JointAttention):
    """Padding is masked nowhere. The pipeline pads to the longest prompt of a batch; here every prompt has the same length.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt, a multiple of 16; the model takes up to 1024, and unused ones draw attention.
    """

    text_length: Annotated[int, Field(gt=0, multiple_of=16)] = 128

    pipelines: ClassVar[tuple[str, ...]] = ("CogView4Pipeline",)

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TemplateSegment(self.pipeline.tokenizer, self.text_length, side="left"),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        options = {"padding": "max_length", "padding_side": "left", "truncation": True, "max_length": self.text_length}
        ids = self.pipeline.tokenizer(list(texts), return_tensors="pt", **options)["input_ids"].to(self.torch_device)
        states = self.pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        return {"encoder_hidden_states": states.to(self.torch_dtype)}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.text_embed_dim
        return {"encoder_hidden_states": self.blank(1, self.text_length, width)}

    def shift(self, tokens: int) -> float:
        config = self.pipeline.scheduler.config
        length = config.get("base_image_seq_len", 256)
        return float(calculate_shift(tokens, length, config.get("base_shift", 0.25), config.get("max_shift", 0.75)))

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        size = torch.tensor([self.pixel_size(noisy)]).expand(len(noisy), -1).to(noisy)
        return self.denoiser(
            noisy,
            timestep=torch.full((len(noisy),), float(self.timestep), device=noisy.device),  # the shift is of the noise alone
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            **conditioning,
        ).sample
