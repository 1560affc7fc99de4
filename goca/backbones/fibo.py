"""Bria FIBO: FLUX.1's blocks on unpacked latents; every block is given another layer of the text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from goca.backbones.flux import image_positions
from goca.backbones.flux_like import FluxLikeBackbone
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.qwen_image import one_frame_latents
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class FiboBackbone(FluxLikeBackbone):
    """SmolLM3's text, its padding masked. The model was trained on captions in JSON; a prompt enters as it is written."""

    pipelines: ClassVar[tuple[str, ...]] = ("BriaFiboPipeline",)

    @property
    def patch(self) -> int:
        return 1

    @property
    def compression(self) -> int:
        factor: int = self.pipeline.vae.spatial_compression_ratio
        return factor

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TemplateSegment(self.pipeline.tokenizer, self.text_length, compact=True),)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return one_frame_latents(self.pipeline.vae, pixels).to(self.torch_dtype)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        rows = [self._encode(text) for text in texts]
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    def _encode(self, text: str) -> dict[str, Tensor]:
        """One text, which has no padding then, filled up to full length."""
        states, layers, mask = self.pipeline.get_prompt_embeds(
            [text], max_sequence_length=self.text_length, device=self.torch_device
        )
        missing = self.text_length - states.shape[1]
        return {
            "encoder_hidden_states": pad(states, (0, 0, 0, missing)).to(self.torch_dtype),
            "text_encoder_layers": pad(torch.stack(layers, 1), (0, 0, 0, missing)).to(self.torch_dtype),
            "attention_mask": pad(mask.bool(), (0, missing)),
        }

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, config.joint_attention_dim),
            "text_encoder_layers": self.blank(1, self._blocks, self.text_length, config.text_encoder_dim),
            "attention_mask": self.blank(1, self.text_length, value=1).bool(),
        }

    @property
    def _blocks(self) -> int:
        config = self.pipeline.transformer.config
        count: int = config.num_layers + config.num_single_layers
        return count

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        layers: Any = conditioning["text_encoder_layers"].unbind(1)
        layers = [*layers, *[layers[-1]] * (self._blocks - len(layers))][-self._blocks :]  # the last ones; the last again
        image = noisy.flatten(2).transpose(1, 2)
        mask = pad(conditioning["attention_mask"], (0, image.shape[1]), value=True)
        return self.denoiser(
            hidden_states=image,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            text_encoder_layers=layers,
            timestep=self.times(noisy, scale=1000),
            img_ids=image_positions(self.token_grid((noisy.shape[-2], noisy.shape[-1])), noisy),
            txt_ids=torch.zeros(self.text_length, 3, device=noisy.device),
            joint_attention_kwargs={"attention_mask": mask[:, None, None]},
        ).sample
