"""UNets with cross-attention: Stable Diffusion 1.x and 2.x, SDXL, Playground v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.attention.call import AttentionCall
from goca.attention.readout import with_text
from goca.attention.tap import RawCall
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import CrossAttention, level_grid
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class UNetBackbone(CrossAttention):
    """Every transformer block holds `attn1` (image to image) and `attn2` (image to text); text is CLIP's."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
    unused: ClassVar[tuple[str, ...]] = ("safety_checker", "feature_extractor", "image_encoder")
    denoiser_name: ClassVar[str] = "unet"
    large_encoder: ClassVar[str | None] = None

    def load(self, pipeline: Any = None) -> UNetBackbone:
        """See `Backbone.load`. SDXL's autoencoder overflows in float16, so there it stays in float32."""
        super().load(pipeline)
        vae = self.pipeline.vae
        if self.torch_dtype == torch.float16 and vae.config.get("force_upcast", False):
            vae.to(torch.float32)
        return self

    @property
    def patch(self) -> int:
        """Each level halves the grid; the coarsest one decides which sizes fit."""
        return 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        """One axis of CLIP tokens; SDXL's two encoders share it, as their token ids are the same."""
        tokenizer = self.pipeline.tokenizer or self.pipeline.tokenizer_2
        return (TextSegment(tokenizer, tokenizer.model_max_length),)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """With the channels that the UNet takes: one for inpainting is given mask and picture too."""
        _, height, width = super().latent_shape
        return self.pipeline.unet.config.in_channels, height, width

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        options = {"device": self.torch_device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        if not self._is_xl:
            return {"encoder_hidden_states": self.pipeline.encode_prompt(list(texts), **options)[0]}
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(list(texts), **options)
        return {"encoder_hidden_states": embeddings, "text_embeds": pooled}

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.unet.config
        blank = {"encoder_hidden_states": self.blank(1, 77, config.cross_attention_dim)}
        if self._is_xl:
            sizes = 6 * config.addition_time_embed_dim
            blank["text_embeds"] = self.blank(1, config.projection_class_embeddings_input_dim - sizes)
        return blank

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        added = None
        if self._is_xl:
            # SDXL is also told original size, crop and target size; a whole picture is what it was trained to draw best.
            size = self.pixel_size(noisy)
            sizes = torch.tensor([[*size, 0, 0, *size]], device=noisy.device, dtype=noisy.dtype)
            added = {"text_embeds": conditioning["text_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
        return self.denoiser(
            noisy, self.timestep, encoder_hidden_states=conditioning["encoder_hidden_states"], added_cond_kwargs=added
        ).sample

    def read(self, call: AttentionCall, text: Tensor) -> AttentionCall:
        if call.text is None:
            return call
        module: Any = self.attention_modules[call.layer]
        projection = self.pipeline.unet.encoder_hid_proj  # of another encoder's width, in Kolors
        text = text if projection is None else projection(text)
        return with_text(call, module.to_k, text)

    def query_grid(self, raw: RawCall, latent_grid: tuple[int, int]) -> tuple[int, int]:
        return level_grid(raw.query.shape[2], latent_grid, raw.layer)

    @property
    def _is_xl(self) -> bool:
        return self.pipeline.unet.config.addition_embed_type == "text_time"
