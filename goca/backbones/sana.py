"""Sana 1.0 and 1.5: linear self-attention, softmax cross-attention; Gemma reads an instruction before the prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import CrossAttention, FlowMatching
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class SanaBackbone(FlowMatching, CrossAttention):
    """Rows of the linear self-attention are non-negative and add up to 1, so that they serve as a softmax's do.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt.
    """

    text_length: PositiveInt = 300

    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    gives_levels: ClassVar[bool] = False

    @cached_property
    def _instruction(self) -> list[str]:
        """What the pipeline writes before a prompt where it is not told otherwise."""
        return list(inspect.signature(self.pipeline.__call__).parameters["complex_human_instruction"].default)

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        """The first token and the last ones: the pipeline takes those of the instruction in between away."""
        tokenizer, instruction = self.pipeline.tokenizer, "\n".join(self._instruction)
        encoded = len(tokenizer.encode(instruction)) + self.text_length - 2
        kept = (0, *range(encoded - self.text_length + 1, encoded))
        return (
            TemplateSegment(
                tokenizer,
                self.text_length,
                render=lambda text: instruction + text.strip(),
                encoded=encoded,
                kept=kept,
                lower=True,
                side="right",  # the pipeline sets the tokenizer to it when it first encodes a prompt
            ),
        )

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, mask, _, _ = self.pipeline.encode_prompt(
            list(texts),
            do_classifier_free_guidance=False,
            device=self.torch_device,
            max_sequence_length=self.text_length,
            complex_human_instruction=self._instruction,
        )
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.caption_channels
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "encoder_attention_mask": self.blank(1, self.text_length, value=1),
        }

    def fit_call(self, call: Mapping[str, Any]) -> None:
        super().fit_call(call)
        if "complex_human_instruction" in call:
            self.__dict__["_instruction"] = list(call["complex_human_instruction"] or ())

    def drawn_segments(self, negative: bool) -> tuple[TextSegment, ...]:
        """The pipeline writes no instruction before a negative prompt, or where it is told to leave it out."""
        if negative or not self._instruction:
            return (TemplateSegment(self.pipeline.tokenizer, self.text_length, render=str.strip, lower=True, side="right"),)
        return self.text_segments

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        times = self.times(noisy, scale=1000 * self.pipeline.transformer.config.timestep_scale)
        return self.denoiser(noisy, timestep=times, **conditioning).sample
