"""Stable Diffusion 3 and 3.5: joint attention with the image first; text is CLIP's 77 tokens, then T5's 256."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.attention.concepts import SD3Branch, TextBranch
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.errors import ModelError
from goca.prompts.align import align
from goca.prompts.prompt import Entity, TextSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class SD3Backbone(FlowMatching, JointAttention):
    """`attn` of a block is joint; 3.5 medium's first blocks also hold `attn2`, among the image's tokens alone.

    Args beyond `Backbone`'s:
        text_length: T5 tokens per prompt.
    """

    text_length: PositiveInt = 256

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    gives_levels: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ("image_encoder", "feature_extractor")
    large_encoder: ClassVar[str | None] = "text_encoder_3"
    takes_concepts: ClassVar[bool] = True
    text_first: ClassVar[bool] = False

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        """CLIP's two encoders share positions; T5's follow, and are zeros in a pipeline without T5."""
        clip = TextSegment(self.pipeline.tokenizer, self.pipeline.tokenizer_max_length)
        if self.pipeline.tokenizer_3 is None:
            return (clip,)
        return clip, TextSegment(self.pipeline.tokenizer_3, self.text_length, start=clip.length)

    def fit_text(self, keys: int) -> None:
        self._fit(keys - self.pipeline.tokenizer_max_length)  # without T5 there are zeros in its place

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts),
            None,
            None,
            device=self.torch_device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        return {
            "encoder_hidden_states": self.blank(1, 77 + self.text_length, config.joint_attention_dim),
            "pooled_projections": self.blank(1, config.pooled_projection_dim),
        }

    @property
    def longest_side(self) -> int:
        """The table of positions is cropped around its middle."""
        side: int = self.pipeline.transformer.config.pos_embed_max_size
        return side * self.size_multiple

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        return self.denoiser(noisy, timestep=self.times(noisy, scale=1000), **conditioning).sample

    def text_branch(self, words: Sequence[str], conditioning: Conditioning, noisy: Tensor) -> TextBranch:
        """Concepts are encoded side by side by CLIP; the start token and the first token of each word are taken along."""
        net: Any = self.denoiser
        text, entities = " ".join(words), []
        for number, word in enumerate(words):
            entities.append(Entity(word, number, len(" ".join((*words[:number], "")))))
        aligned = align(entities, self.text_segments[:1], text)
        if aligned.lost_classes:
            raise ModelError(f"{self.name}: {len(words)} concepts are more than fit into one prompt; take fewer")
        positions = [0, *(aligned.class_tokens[number][0] for number in range(len(words)))]
        embeddings = self.conditioning([text])["encoder_hidden_states"][:, positions]
        modulation = net.time_text_embed(self.times(noisy[:1], scale=1000).to(noisy), conditioning["pooled_projections"])
        return SD3Branch(net, embeddings, modulation)

    def is_text_layer(self, layer: str) -> bool:
        return not layer.endswith("attn2")
