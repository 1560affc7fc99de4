"""PixArt-alpha and PixArt-Sigma: transformer blocks with self- and cross-attention, T5 text with its padding masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import CrossAttention
from goca.backbones.registry import backbone
from goca.backbones.text import lower_cased
from goca.prompts.prompt import TextSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class PixArtBackbone(CrossAttention):
    """Args beyond `Backbone`'s:

    text_length: T5 tokens per prompt, 120 for alpha and 300 for Sigma.
    """

    text_length: PositiveInt = 120

    pipelines: ClassVar[tuple[str, ...]] = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        """T5's tokens of the lower-cased prompt."""
        return (TextSegment(lower_cased(self.pipeline.tokenizer), self.text_length),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, mask, _, _ = self.pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=self.torch_device, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.caption_channels
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "encoder_attention_mask": self.blank(1, self.text_length, value=1),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.denoiser.use_additional_conditions:  # alpha at 1024 px is told the size of the image
            height, width = self.pixel_size(noisy)
            added["resolution"] = torch.tensor([[height, width]]).expand(len(noisy), -1).to(noisy)
            added["aspect_ratio"] = torch.full((len(noisy), 1), height / width).to(noisy)
        times = torch.full((len(noisy),), self.timestep, device=noisy.device)
        return self.denoiser(noisy, timestep=times, added_cond_kwargs=added, **conditioning).sample
