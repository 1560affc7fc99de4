"""HunyuanImage 2.1: joint attention in double- and single-stream blocks; the image comes before the text, padding is masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention, TemplatePrefix
from goca.backbones.registry import backbone

_SKIPPED = 2  # last layers of the text encoder that the pipeline leaves out


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class HunyuanImageBackbone(TemplatePrefix, FlowMatching, JointAttention):
    """Qwen2.5-VL reads a chat, whose start is dropped; blocks of its own mix the text.

    The letters of quoted text, which the pipeline gives to a second encoder, are left out: without quotes nothing sees them.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt; the model takes 1000, and unused ones cost time.
        guidance: strength that the guidance-distilled model is told; the other ignores it.
    """

    text_length: PositiveInt = 256
    guidance: float = 3.25

    pipelines: ClassVar[tuple[str, ...]] = ("HunyuanImagePipeline",)
    unused: ClassVar[tuple[str, ...]] = ("text_encoder_2", "tokenizer_2", "guider", "ocr_guider")
    unobserved: ClassVar[tuple[str, ...]] = ("context_embedder.*",)
    text_first: ClassVar[bool] = False

    @property
    def patch(self) -> int:
        side: int = self.pipeline.transformer.config.patch_size[0]
        return side

    @property
    def compression(self) -> int:
        factor: int = self.pipeline.vae.config.spatial_compression_ratio
        return factor

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        states, mask = self.pipeline._get_qwen_prompt_embeds(
            self.pipeline.tokenizer,
            self.pipeline.text_encoder,
            list(texts),
            self.torch_device,
            tokenizer_max_length=self.text_length,
            template=self.pipeline.prompt_template_encode,
            drop_idx=self._dropped,
            hidden_state_skip_layer=_SKIPPED,
        )
        return {"encoder_hidden_states": states.to(self.torch_dtype), "encoder_attention_mask": mask.bool()}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.text_embed_dim
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "encoder_attention_mask": self.blank(1, self.text_length, value=1).bool(),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        config = self.pipeline.transformer.config
        times = self.times(noisy, scale=1000).to(noisy)
        options: dict[str, Any] = {}
        if config.guidance_embeds:
            options["guidance"] = torch.full_like(times, 1000 * self.guidance)
        if config.use_meanflow:  # the velocity at this time, not its mean over a step
            options["timestep_r"] = times
        return self.denoiser(noisy, timestep=times, **options, **conditioning).sample
