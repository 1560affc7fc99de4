"""FLUX.1 (dev, schnell): joint attention in double- and single-stream blocks, packed latents, T5 text before the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.attention.concepts import FluxBranch, TextBranch
from goca.backbones.drawing import packed_grid
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment


def pack(latents: Tensor) -> Tensor:
    """2 x 2 latent pixels become one token: (B, C, h, w) -> (B, h / 2 * w / 2, 4 C)."""
    return torch.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def image_positions(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(0, row, column) of every image token: (h * w, 3) float32 on the device of `like`; bfloat16 counts to 256 only."""
    zero, rows, columns = (torch.arange(count, device=like.device, dtype=torch.float32) for count in (1, *grid))
    return torch.cartesian_prod(zero, rows, columns)


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class FluxBackbone(FlowMatching, JointAttention):
    """Args beyond `Backbone`'s:

    text_length: T5 tokens per prompt, 512 for dev and 256 for schnell.
    guidance: strength that guidance-distilled models (dev) are told; others ignore it.
    """

    text_length: PositiveInt = 512
    guidance: float = 3.5

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    unused: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")
    large_encoder: ClassVar[str | None] = "text_encoder_2"
    takes_concepts: ClassVar[bool] = True
    prompt_names: ClassVar[tuple[str, ...]] = ("prompt_2", "prompt")  # T5's text where it differs from CLIP's

    @property
    def patch(self) -> int:
        return 2  # by packing; the transformer's own patches are single tokens

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        """Attention sees T5's tokens only; CLIP's pooled embedding enters through the modulation."""
        return (TextSegment(self.pipeline.tokenizer_2, self.text_length),)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            list(texts), None, device=self.torch_device, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, config.joint_attention_dim),
            "pooled_projections": self.blank(1, config.pooled_projection_dim),
        }

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        ids = arguments["img_ids"].reshape(-1, arguments["img_ids"].shape[-1])[: arguments["hidden_states"].shape[1]]
        return packed_grid(ids[:, 1], ids[:, 2], arguments["hidden_states"].shape[1], self.patch)

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full((len(noisy),), self.guidance, device=noisy.device)
        return self.denoiser(**self._tokens(noisy, conditioning), guidance=guidance, **conditioning).sample

    def text_branch(self, words: Sequence[str], conditioning: Conditioning, noisy: Tensor) -> TextBranch:
        """A concept is T5's vector at the first token of the word encoded alone; its pooled vector is zero."""
        net: Any = self.denoiser
        embeddings = torch.cat([self.conditioning([word])["encoder_hidden_states"][:, :1] for word in words], dim=1)
        time = self.times(noisy[:1], scale=1000).to(noisy)
        pooled = torch.zeros_like(conditioning["pooled_projections"][:1])
        guidance = [torch.full_like(time, 1000 * self.guidance)] if net.config.guidance_embeds else []
        return FluxBranch(net, embeddings, net.time_text_embed(time, *guidance, pooled))

    def _tokens(self, noisy: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """The packed image, its time, and the positions of image and text tokens."""
        return {
            "hidden_states": pack(noisy),
            "timestep": self.times(noisy),
            "img_ids": image_positions(self.token_grid((noisy.shape[-2], noisy.shape[-1])), noisy),
            "txt_ids": torch.zeros(conditioning["encoder_hidden_states"].shape[1], 3, device=noisy.device),
        }
