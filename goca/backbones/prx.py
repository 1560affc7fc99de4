"""PRX: the image alone asks, text and image answer; the text is never updated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class PRXBackbone(FlowMatching, JointAttention):
    """T5Gemma's text, lower-cased; the rest of the pipeline's cleaning, which moves and drops letters, is left out.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("PRXPipeline",)
    gives_levels: ClassVar[bool] = False

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TemplateSegment(self.pipeline.tokenizer, self.text_length, lower=True),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        options = {"padding": "max_length", "truncation": True, "max_length": self.text_length, "return_tensors": "pt"}
        tokens = self.pipeline.tokenizer([text.lower() for text in texts], **options).to(self.torch_device)
        mask = tokens["attention_mask"].bool()
        states = self.pipeline.text_encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return {"encoder_hidden_states": states, "attention_mask": mask}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.context_in_dim
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "attention_mask": self.blank(1, self.text_length, value=1).bool(),
        }

    def drawn_text(self, text: str, call: Mapping[str, Any]) -> str:
        return str(self.pipeline.text_preprocessor.clean_text(text))

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(noisy, timestep=self.times(noisy), **conditioning).sample
