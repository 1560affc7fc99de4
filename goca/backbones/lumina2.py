"""Lumina-Image 2.0: one stream of text, then image; text without padding, so that the image begins where each prompt ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.attention.call import AttentionCall
from goca.attention.tap import RawCall
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class Lumina2Backbone(FlowMatching, JointAttention):
    """Args beyond `Backbone`'s:

    text_length: tokens per prompt at most, system prompt included; the sequence holds those that a prompt has.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("Lumina2Pipeline",)
    unobserved: ClassVar[tuple[str, ...]] = ("noise_refiner.*", "context_refiner.*")

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        before = f"{self.pipeline.system_prompt} <Prompt Start> "
        return (TemplateSegment(self.pipeline.tokenizer, self.text_length, render=lambda text: before + text, compact=True),)

    @property
    def longest_side(self) -> int:
        """Rows and columns are looked up in tables."""
        side: int = min(self.pipeline.transformer.rope_embedder.axes_lens[1:])
        return side * self.size_multiple

    @property
    def text_axis(self) -> int:
        return self.text_length

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, mask, _, _ = self.pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=self.torch_device, max_sequence_length=self.text_length
        )
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask.bool()}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.cap_feat_dim
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, width),
            "encoder_attention_mask": torch.ones(1, self.text_length, dtype=torch.bool),  # its sum is asked for as a number
        }

    def note_call(self, arguments: Mapping[str, Any]) -> None:
        self._lengths = arguments["encoder_attention_mask"].sum(1).tolist()

    def picture_starts(self, arguments: Mapping[str, Any]) -> Tensor:
        ends: Tensor = arguments["encoder_attention_mask"].sum(1)
        return ends

    @property
    def rotary_axis(self) -> tuple[int, float]:
        embedder = self.pipeline.transformer.rope_embedder
        return embedder.axes_dim[0], embedder.theta

    def drawn_segments(self, negative: bool) -> tuple[TextSegment, ...]:
        """The pipeline writes no system prompt before a negative one."""
        (segment,) = self.text_segments
        assert isinstance(segment, TemplateSegment)
        return (replace(segment, render=str),) if negative else (segment,)

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        self._lengths = conditioning["encoder_attention_mask"].sum(1).tolist()
        with self._meta_safe(noisy):
            # The model's time runs from noise to image, and so does its velocity.
            return -self.denoiser(noisy, timestep=1 - self.times(noisy), **conditioning).sample

    @contextmanager
    def _meta_safe(self, noisy: Tensor) -> Iterator[None]:
        """Lengths are numbers, so that the mask is never on the meta device; the refiners of the text are left out there."""
        refiners = self.denoiser.context_refiner
        if noisy.device.type == "meta":
            self.denoiser.context_refiner = torch.nn.ModuleList()
        try:
            yield
        finally:
            self.denoiser.context_refiner = refiners

    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall | None:
        if len(set(self._lengths)) == 1:
            return super().canonical(raw, latent_grid)
        return super().canonical(self._aligned(raw, latent_grid), latent_grid)

    def _aligned(self, raw: RawCall, latent_grid: tuple[int, int]) -> RawCall:
        """The call with every image at the same keys: texts are filled up to the longest, and what fills them is masked."""
        height, width = self.token_grid(latent_grid)
        longest, device = max(self._lengths), raw.key.device
        lengths = torch.tensor(self._lengths, device=device)[:, None]
        text = torch.arange(longest, device=device).expand(len(lengths), -1)
        image = lengths + torch.arange(height * width, device=device)
        places = torch.cat([text.minimum((lengths - 1).clamp(min=0)), image], dim=1)  # (B, longest + h * w)
        real = torch.cat([text < lengths, torch.ones_like(image, dtype=torch.bool)], dim=1)

        def moved(tensor: Tensor) -> Tensor:
            index = places[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            return tensor.gather(2, index)

        query, key, value, output = map(moved, (raw.query, raw.key, raw.value, raw.output))
        return replace(raw, query=query, key=key, value=value, output=output, mask=real[:, None, None, :], lse=None)
