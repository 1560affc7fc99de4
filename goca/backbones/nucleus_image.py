"""NucleusMoE-Image: the image alone asks, image and text answer; Qwen3-VL's chat, its padding masked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.flux import pack
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.qwen_image import QwenImageBackbone
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class NucleusImageBackbone(QwenImageBackbone):
    """The whole chat lies on the text axis. The autoencoder is Qwen-Image's."""

    pipelines: ClassVar[tuple[str, ...]] = ("NucleusMoEImagePipeline",)
    text_first: ClassVar[bool] = False

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.pipeline.processor, "tokenizer", self.pipeline.processor)

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TemplateSegment(self._tokenizer, self.text_length, render=self.pipeline._format_prompt),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        options = {"padding": "max_length", "truncation": True, "max_length": self.text_length, "return_tensors": "pt"}
        tokens = self._tokenizer([self.pipeline._format_prompt(text) for text in texts], **options).to(self.torch_device)
        output = self.pipeline.text_encoder(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], use_cache=False, output_hidden_states=True
        )
        states = output.hidden_states[self.pipeline.default_return_index]
        return {
            "encoder_hidden_states": states.to(self.torch_dtype),
            "encoder_hidden_states_mask": tokens["attention_mask"].bool(),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser: Any = self.denoiser
        if noisy.device.type == "meta":  # how many tokens each expert has is a number that the model asks for
            for block in denoiser.transformer_blocks:
                if block.moe_enabled:
                    block.img_mlp.forward = _as_it_is
        height, width = self.token_grid((noisy.shape[-2], noisy.shape[-1]))
        shapes = [(1, height, width)] * len(noisy)
        output: Tensor = denoiser(pack(noisy), timestep=self.times(noisy), img_shapes=shapes, **conditioning).sample
        return output


def _as_it_is(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """What the experts give, in shape alone."""
    return hidden_states
