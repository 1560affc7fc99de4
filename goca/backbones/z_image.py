"""Z-Image (and Turbo): one stream of image, then text; the text is a chat of which real tokens alone are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.backbones.text import chat_segment, user_message
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class ZImageBackbone(FlowMatching, JointAttention):
    """Image and text are each filled up to a multiple of 32 by a learned token, which takes part in attention.

    Args beyond `Backbone`'s:
        text_length: tokens per prompt at most, template included; the sequence holds those that a prompt has.
    """

    text_length: PositiveInt = 512

    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    unobserved: ClassVar[tuple[str, ...]] = ("noise_refiner.*", "context_refiner.*")
    negative_first: ClassVar[bool] = False

    @property
    def patch(self) -> int:
        return 2

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        options = {"add_generation_prompt": True, "enable_thinking": True}
        return (replace(chat_segment(self.pipeline.tokenizer, self.text_length, user_message, **options), compact=True),)

    @property
    def longest_side(self) -> int:
        """Rows and columns are looked up in tables."""
        side: int = min(self.pipeline.transformer.config.axes_lens[1:])
        return side * self.size_multiple

    @property
    def text_axis(self) -> int:
        return self.text_length

    def spans(self, pixels: int, total: int) -> tuple[slice, slice]:
        return slice(-(-pixels // SEQ_MULTI_OF) * SEQ_MULTI_OF, total), slice(0, pixels)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        embeddings, _ = self.pipeline.encode_prompt(
            list(texts), self.torch_device, do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        full = torch.stack([pad(rows, (0, 0, 0, self.text_length - len(rows))) for rows in embeddings])
        counts = torch.tensor([len(rows) for rows in embeddings], device=full.device)
        return {"encoder_hidden_states": full, "tokens": counts}

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.cap_feat_dim
        return {"encoder_hidden_states": self.blank(1, self.text_length, width), "tokens": torch.tensor([self.text_length])}

    def latent_grid(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        first: Tensor = arguments["x"][0]  # (C, 1, h, w) of every picture
        return first.shape[-2], first.shape[-1]

    def drawn_text(self, text: str, call: Mapping[str, Any]) -> str:
        """The pipeline puts its template around the prompts in the very list that it is given."""
        (segment,) = self.text_segments
        assert isinstance(segment, TemplateSegment)
        before, _, after = segment.render("\ue000").partition("\ue000")
        return text[len(before) : len(text) - len(after)] if text.startswith(before) and text.endswith(after) else text

    def picture_starts(self, arguments: Mapping[str, Any]) -> Tensor:
        """After the text and what fills it up."""
        counts = torch.tensor([len(text) for text in arguments["cap_feats"]], device=arguments["cap_feats"][0].device)
        return -(-counts // SEQ_MULTI_OF) * SEQ_MULTI_OF

    @property
    def rotary_axis(self) -> tuple[int, float]:
        config = self.pipeline.transformer.config
        return config.axes_dims[0], config.rope_theta

    def drawn_rows(self, arguments: Mapping[str, Any]) -> int:
        return len(arguments["x"])

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        counts = conditioning["tokens"].tolist()
        texts = [rows[:count] for rows, count in zip(conditioning["encoder_hidden_states"], counts, strict=True)]
        images = list(noisy.unsqueeze(2).unbind(0))  # a frame each
        velocities = self.denoiser(images, 1 - self.times(noisy), texts, return_dict=False)[0]
        return -torch.stack(velocities)[:, :, 0]  # the model's time and velocity run from noise to image
