"""Qwen-Image: joint attention in double-stream blocks; text is a chat template's user turn, its padding masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from goca.backbones.drawing import shaped_grid
from goca.backbones.flux import pack
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention, TemplatePrefix
from goca.backbones.registry import backbone


def one_frame_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of an autoencoder for videos, of which an image is one frame; channels have their own mean and scale."""
    latents = vae.encode(pixels.to(vae.dtype).unsqueeze(2)).latent_dist.mode()[:, :, 0]
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) / std


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class QwenImageBackbone(TemplatePrefix, FlowMatching, JointAttention):
    """The text axis is the prompt and the end of the template; what comes before the prompt is dropped, as in the pipeline.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt; the model takes up to 1024, and unused ones cost time.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return one_frame_latents(self.pipeline.vae, pixels).to(self.torch_dtype)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        self.pipeline.prompt_template_encode_start_idx = self._dropped
        embeddings, mask = self.pipeline.encode_prompt(
            list(texts), device=self.torch_device, max_sequence_length=self.text_length
        )
        if mask is None:  # no padding within this batch
            mask = embeddings.new_ones(embeddings.shape[:2])
        missing = self.text_length - embeddings.shape[1]
        return {
            "encoder_hidden_states": pad(embeddings, (0, 0, 0, missing)),
            "encoder_hidden_states_mask": pad(mask.bool(), (0, missing)),
        }

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.joint_attention_dim
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "encoder_hidden_states_mask": self.blank(1, self.text_length, value=1).bool(),
        }

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        return shaped_grid(arguments["img_shapes"], arguments["hidden_states"].shape[1], self.patch)

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = self.token_grid((noisy.shape[-2], noisy.shape[-1]))
        shapes = [[(1, height, width)]] * len(noisy)
        return self.denoiser(pack(noisy), timestep=self.times(noisy), img_shapes=shapes, **conditioning).sample
