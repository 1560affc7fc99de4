"""AuraFlow: joint attention in double- and single-stream blocks; learned registers come before the text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isqrt
from typing import ClassVar

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class AuraFlowBackbone(FlowMatching, JointAttention):
    """Padding is not masked in attention: the model sees zeros there.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("AuraFlowPipeline",)
    gives_levels: ClassVar[bool] = False

    @property
    def extra_tokens(self) -> int:
        return self.pipeline.transformer.register_tokens.shape[1]

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TextSegment(self.pipeline.tokenizer, self.text_length),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, *_ = self.pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=self.torch_device, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": embeddings}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.joint_attention_dim
        return {"encoder_hidden_states": self.blank(1, self.text_length, width)}

    @property
    def longest_side(self) -> int:
        """The learned table of positions is a square, cropped around its middle."""
        return isqrt(self.pipeline.transformer.config.pos_embed_max_size) * self.size_multiple

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(noisy, timestep=self.times(noisy), **conditioning).sample
