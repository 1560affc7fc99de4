"""Krea 2: one stream of text, then image; several layers of the text encoder are fused, and attention's output is gated."""

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
from goca.backbones.drawing import packed_grid
from goca.backbones.flux import image_positions, pack
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.qwen_image import one_frame_latents
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import SuffixSegment

_DISTILLED_SHIFT = 1.15  # of the pipeline, whatever the image's size


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class Krea2Backbone(FlowMatching, JointAttention):
    """Padding lies between the prompt and the end of the chat, and is masked; text has no positions.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt, the chat's end included; the pipeline takes 512, and unused ones cost time.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("Krea2Pipeline",)
    unobserved: ClassVar[tuple[str, ...]] = ("text_fusion.*",)

    @property
    def patch(self) -> int:
        side: int = self.pipeline.config.patch_size  # by packing
        return side

    def shift(self, tokens: int) -> float:
        return _DISTILLED_SHIFT if self.pipeline.config.is_distilled else super().shift(tokens)

    def _count(self, text: str) -> int:
        """Tokens of a part of the template. The pipeline has numbers; counted here, they are right for any tokenizer."""
        return len(self.pipeline.tokenizer(text)["input_ids"])

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        pipeline = self.pipeline
        prefix, suffix = pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_suffix
        dropped, after = self._count(prefix), self._count(suffix)
        return (
            SuffixSegment(
                pipeline.tokenizer,
                self.text_length,
                render=lambda text: prefix + text,
                encoded=self.text_length + dropped - after,
                kept=range(dropped, dropped + self.text_length),
                suffix=suffix,
            ),
        )

    def encode_image(self, pixels: Tensor) -> Tensor:
        return one_frame_latents(self.pipeline.vae, pixels).to(self.torch_dtype)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        pipeline = self.pipeline
        pipeline.prompt_template_encode_start_idx = self._count(pipeline.prompt_template_encode_prefix)
        pipeline.prompt_template_encode_num_suffix_tokens = self._count(pipeline.prompt_template_encode_suffix)
        states, mask = pipeline.get_text_hidden_states(list(texts), self.text_length, self.torch_device)
        return {"encoder_hidden_states": states.to(self.torch_dtype), "encoder_attention_mask": mask}

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, config.num_text_layers, config.text_hidden_dim),
            "encoder_attention_mask": self.blank(1, self.text_length, value=1).bool(),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        places = image_positions(self.token_grid((noisy.shape[-2], noisy.shape[-1])), noisy)
        positions = torch.cat([places.new_zeros(self.text_length, 3), places])
        with self.beside_the_tap():
            return self.denoiser(pack(noisy), timestep=self.times(noisy), position_ids=positions, **conditioning).sample

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        tokens = arguments["hidden_states"].shape[1]
        places = arguments["position_ids"][-tokens:]
        return packed_grid(places[:, 1], places[:, 2], tokens, self.patch)

    @contextmanager
    def beside_the_tap(self) -> Iterator[None]:
        """Within, gates are kept for `canonical`."""
        handles = [
            module.to_gate.register_forward_hook(self._gate_of(name))  # type: ignore[union-attr]
            for name, module in self.attention_modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._gates.clear()

    @cached_property
    def _gates(self) -> dict[str, Tensor]:
        """The gate (B, S, H * d) of the layer that runs, before its sigmoid."""
        return {}

    def _gate_of(self, name: str) -> Any:
        def keep(_module: Any, _inputs: Any, gate: Tensor) -> None:
            self._gates.clear()
            self._gates[name] = gate

        return keep

    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall | None:
        """A head contributes what the gate lets through."""
        call = super().canonical(raw, latent_grid)
        if call is None or call.output is None:
            return call
        heads, pixels = raw.query.shape[1], call.query.shape[2]
        gate = self._gates[raw.layer][:, -pixels:].unflatten(-1, (heads, -1)).transpose(1, 2).sigmoid()
        return replace(call, output=call.output * gate, gate=gate)
