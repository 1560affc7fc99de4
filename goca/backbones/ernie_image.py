"""ERNIE-Image: one stream of image, then text, padding masked; the bare prompt, without the pipeline's optional rewriting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from goca.backbones.flux2 import packed_latents
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment

_EPS = 1e-5  # with which the pipeline undoes the normalisation of latents


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class ErnieImageBackbone(FlowMatching, JointAttention):
    """Args beyond `Backbone`'s:

    text_length: tokens per prompt; the model takes more, and unused ones cost time.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("ErnieImagePipeline",)
    unused: ClassVar[tuple[str, ...]] = ("pe", "pe_tokenizer")
    text_first: ClassVar[bool] = False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.size // self.compression
        return self.pipeline.transformer.config.in_channels, side, side

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        return (TemplateSegment(self.pipeline.tokenizer, self.text_length, side="right"),)  # zeros fill the rest

    def encode_image(self, pixels: Tensor) -> Tensor:
        return packed_latents(self.pipeline.vae, pixels, _EPS).to(self.torch_dtype)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        options = {"truncation": True, "max_length": self.text_length, "return_tensors": "pt"}
        rows = []
        for text in texts:
            ids = self.pipeline.tokenizer(text, **options)["input_ids"].to(self.torch_device)
            rows.append(self.pipeline.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2][0])
        full = torch.stack([pad(row, (0, 0, 0, self.text_length - len(row))) for row in rows])
        counts = torch.tensor([len(row) for row in rows], device=full.device)
        return {"encoder_hidden_states": full.to(self.torch_dtype), "tokens": counts}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.text_in_dim
        tokens = torch.full((1,), self.text_length, device=self.torch_device)
        return {"encoder_hidden_states": self.blank(1, self.text_length, width), "tokens": tokens}

    def text_keys(self, arguments: Mapping[str, Any]) -> int:
        return int(arguments["text_bth"].shape[1])

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        if noisy.device.type == "meta":  # torch has no autocast for it, which this model turns off around its positions
            denoiser: Any = self.denoiser
            denoiser.pos_embed.forward = self._blank_positions
        return self.denoiser(
            noisy,
            timestep=self.times(noisy, scale=1000),
            text_bth=conditioning["encoder_hidden_states"],
            text_lens=conditioning["tokens"],
        ).sample

    def _blank_positions(self, ids: Tensor) -> Tensor:
        """What the model's rotary embedding gives for positions (B, S, 3), in shape alone: (B, S, 1, head width)."""
        denoiser: Any = self.denoiser
        return torch.empty(*ids.shape[:2], 1, denoiser.head_dim, device=ids.device)
