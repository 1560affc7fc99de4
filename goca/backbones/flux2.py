"""FLUX.2 (dev, klein): joint attention in double- and parallel single-stream blocks; a whole chat comes before the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu, format_input
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from goca.attention.concepts import Flux2Branch, TextBranch
from goca.backbones.drawing import packed_grid
from goca.backbones.flux import image_positions, pack
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.backbones.text import chat_segment, user_message
from goca.prompts.prompt import TextSegment

_STEPS = 50  # the pipelines' default: their noise schedule depends on the number of steps


def packed_latents(vae: Any, pixels: Tensor, eps: float) -> Tensor:
    """Normalised latents with four latent pixels in each: (B, 3, H, W) -> (B, 4 C, H / 16, W / 16)."""
    latents = pixel_unshuffle(vae.encode(pixels.to(vae.dtype)).latent_dist.mode(), 2)
    mean, variance = (values.view(1, -1, 1, 1).to(latents) for values in (vae.bn.running_mean, vae.bn.running_var))
    return (latents - mean) / torch.sqrt(variance + eps)


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class Flux2Backbone(FlowMatching, JointAttention):
    """Template and padding lie on the text axis, and no mask reaches the transformer.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt, template included.
        guidance: strength that the guidance-distilled dev is told; klein ignores it.
    """

    text_length: PositiveInt = 512
    guidance: float = 4.0

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline", "Flux2KleinPipeline")
    takes_concepts: ClassVar[bool] = True

    @property
    def patch(self) -> int:
        return 2  # by packing

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        tokenizer = self.pipeline.tokenizer
        if hasattr(self.pipeline, "system_message"):  # dev

            def messages(text: str) -> list[dict]:
                return format_input([text], self.pipeline.system_message)[0]

            return (chat_segment(tokenizer, self.text_length, messages, bare=True, add_generation_prompt=False),)
        options = {"add_generation_prompt": True, "enable_thinking": False}
        return (chat_segment(tokenizer, self.text_length, user_message, **options),)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Four latent pixels are normalised together, each of their channels by the autoencoder's running statistics."""
        vae = self.pipeline.vae
        return pixel_shuffle(packed_latents(vae, pixels, vae.config.batch_norm_eps), 2).to(self.torch_dtype)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, _ = self.pipeline.encode_prompt(list(texts), device=self.torch_device, max_sequence_length=self.text_length)
        return {"encoder_hidden_states": embeddings}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.joint_attention_dim
        return {"encoder_hidden_states": self.blank(1, self.text_length, width)}

    def shift(self, tokens: int) -> float:
        return compute_empirical_mu(tokens, _STEPS)

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        ids = arguments["img_ids"].reshape(-1, arguments["img_ids"].shape[-1])[: arguments["hidden_states"].shape[1]]
        return packed_grid(ids[:, 1], ids[:, 2], arguments["hidden_states"].shape[1], self.patch)

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full((len(noisy),), self.guidance, device=noisy.device)
        positions = image_positions(self.token_grid((noisy.shape[-2], noisy.shape[-1])), noisy)
        length = conditioning["encoder_hidden_states"].shape[1]
        return self.denoiser(
            hidden_states=pack(noisy),
            timestep=self.times(noisy),
            guidance=guidance,
            img_ids=pad(positions, (0, 1)),  # time, row, column, and place in the text
            txt_ids=pad(torch.arange(length, device=noisy.device, dtype=torch.float32)[:, None], (3, 0)),
            **conditioning,
        ).sample

    def text_branch(self, words: Sequence[str], conditioning: Conditioning, noisy: Tensor) -> TextBranch:
        """A concept is the vector at the last token of the word encoded alone: the 511th of 512, where padding is on the left.

        Every concept stands at that position.
        """
        net: Any = self.denoiser
        rows = [self.conditioning([word])["encoder_hidden_states"][:, [self._last_token(word)]] for word in words]
        embeddings = torch.cat(rows, dim=1)
        time = self.times(noisy[:1], scale=1000).to(noisy)
        guidance = torch.full_like(time, 1000 * self.guidance) if net.config.guidance_embeds else None
        modulation = net.double_stream_modulation_txt(net.time_guidance_embed(time, guidance))
        return Flux2Branch(net, embeddings, modulation, self.text_length - 2)

    def _last_token(self, word: str) -> int:
        (segment,) = self.text_segments
        return max(place for place, token in enumerate(segment.tokens(word)) if token.kind is None)
