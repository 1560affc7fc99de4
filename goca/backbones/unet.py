"""UNets with cross-attention: Stable Diffusion 1.x and 2.x, SDXL, Playground v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from goca.attention.call import AttentionCall
from goca.attention.tap import RawCall
from goca.backbones.base import Backbone, Conditioning
from goca.errors import ModelError
from goca.prompts.prompt import TextSegment


@dataclass(config=ConfigDict(extra="forbid"))
class UNetBackbone(Backbone):
    """Every transformer block holds `attn1` (image to image) and `attn2` (image to text); text is CLIP's."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    unused: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")

    def load(self, pipeline: Any = None) -> UNetBackbone:
        """See `Backbone.load`. SDXL's autoencoder overflows in float16, so there it stays in float32."""
        super().load(pipeline)
        vae = self.pipeline.vae
        if self.torch_dtype == torch.float16 and vae.config.get("force_upcast", False):
            vae.to(torch.float32)
        return self

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.unet

    @property
    def size_multiple(self) -> int:
        halvings = len(self.pipeline.unet.config.block_out_channels) - 1
        return self.pipeline.vae_scale_factor * 2**halvings

    @property
    def text_segments(self) -> tuple[TextSegment, ...]:
        """One axis of CLIP tokens; SDXL's two encoders share it, as their token ids are the same."""
        tokenizer = self.pipeline.tokenizer or self.pipeline.tokenizer_2
        return (TextSegment(tokenizer, tokenizer.model_max_length),)

    def encode_image(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        return (latents * vae.config.scaling_factor).to(self.torch_dtype)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        options = {"device": self.torch_device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        if not self._is_xl:
            return {"encoder_hidden_states": self.pipeline.encode_prompt(list(texts), **options)[0]}
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(list(texts), **options)
        # SDXL is also told the original size, the crop and the target size; a full square is what it was trained to draw best.
        sizes = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]]).to(embeddings)
        return {"encoder_hidden_states": embeddings, "text_embeds": pooled, "time_ids": sizes.expand(len(texts), -1)}

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        timesteps = torch.full((len(latents),), self.timestep, device=latents.device)
        return self.pipeline.scheduler.add_noise(latents, noise, timesteps)

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        added = {key: value for key, value in conditioning.items() if key != "encoder_hidden_states"}
        return self.denoiser(
            noisy,
            self.timestep,
            encoder_hidden_states=conditioning["encoder_hidden_states"],
            added_cond_kwargs=added or None,
        ).sample

    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall:
        module: Any = self.attention_modules[raw.layer]
        is_text = self.is_text_layer(raw.layer)
        return AttentionCall(
            layer=raw.layer,
            grid=_level_grid(raw, latent_grid),
            query=raw.query,
            key=raw.key,
            value=raw.value,
            output=raw.output,
            scale=raw.scale,
            mask=raw.mask,
            text=slice(None) if is_text else None,
            image=None if is_text else slice(None),
            projection=module.to_out[0].weight,
        )

    def is_text_layer(self, layer: str) -> bool:
        return layer.endswith("attn2")

    def paired_self_attention(self, layer: str) -> str:
        return layer.removesuffix("attn2") + "attn1"

    @property
    def _is_xl(self) -> bool:
        return hasattr(self.pipeline, "text_encoder_2")


def _level_grid(raw: RawCall, latent_grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of a UNet level, found from its number of pixels: each level halves both sides."""
    height, width = latent_grid
    pixels = raw.query.shape[2]
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != pixels:
        raise ModelError(f"{raw.layer}: {pixels} pixels are no level of a {latent_grid[0]} x {latent_grid[1]} latent")
    return height, width
