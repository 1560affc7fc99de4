"""HiDream-I1: joint attention; the text is T5's, the last layer of Llama, and the layer of Llama that belongs to the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.mixins import FlowMatching, JointAttention
from goca.backbones.registry import backbone
from goca.errors import ModelError
from goca.prompts.prompt import TextSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class HiDreamBackbone(FlowMatching, JointAttention):
    """A word has tokens in three stretches after the image: T5's, Llama's, and Llama's of the layer that belongs to the block.

    Padding is masked nowhere. Args beyond `Backbone`'s:
        text_length: tokens per prompt and stretch.
    """

    text_length: PositiveInt = 128

    pipelines: ClassVar[tuple[str, ...]] = ("HiDreamImagePipeline",)
    gives_levels: ClassVar[bool] = False
    large_encoder: ClassVar[str | None] = "text_encoder_4"
    text_first: ClassVar[bool] = False

    def inspect(self) -> HiDreamBackbone:
        """As every backbone's; the repository as published lacks Llama.

        Raises:
            ModelError: it is that one.
        """
        if "text_encoder_4" in self.opened.absent:
            raise ModelError(
                f"model.checkpoint: {self.checkpoint} lacks text_encoder_4, Llama 3.1 8B, whose licence has to be accepted; "
                "load it, save the whole pipeline once with save_pretrained(FOLDER), and set model.checkpoint=FOLDER"
            )
        super().inspect()
        return self

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        length = self.text_length
        llama = [TextSegment(self.pipeline.tokenizer_4, length, start) for start in (length, 2 * length)]
        return (TextSegment(self.pipeline.tokenizer_3, length), *llama)

    def spans(self, pixels: int, total: int) -> tuple[slice, slice]:
        """A picture that is not square is filled up with keys of zeros to the longest sequence."""
        return slice(total - 3 * self.text_length, total), slice(0, pixels)

    def text_keys(self, arguments: Mapping[str, Any]) -> int:
        return 3 * int(arguments["encoder_hidden_states_t5"].shape[1])

    def fit_call(self, call: Mapping[str, Any]) -> None:
        self._fit(call["prompt_embeds_t5"].shape[1])

    def shift(self, tokens: int) -> float:
        return super().shift(self.pipeline.transformer.max_seq)  # whatever the image's size

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        t5, _, llama, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts), device=self.torch_device, do_classifier_free_guidance=False, max_sequence_length=self.text_length
        )
        states = {"encoder_hidden_states": t5, "llama": llama.transpose(0, 1), "pooled_embeds": pooled}
        return {name: tensor.to(self.torch_dtype) for name, tensor in states.items()}

    def blank_conditioning(self) -> Conditioning:
        config = self.pipeline.transformer.config
        t5, llama = config.caption_channels
        return {
            "encoder_hidden_states": self.blank(1, self.text_length, t5),
            "llama": self.blank(1, max(config.llama_layers) + 1, self.text_length, llama),
            "pooled_embeds": self.blank(1, config.text_emb_dim),
        }

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        denoiser: Any = self.denoiser
        if noisy.device.type == "meta":  # how many tokens an expert has, and the grid, are numbers that the model asks for
            for block in (*denoiser.double_stream_blocks, *denoiser.single_stream_blocks):
                block.block.ff_i.forward = _as_it_is
            denoiser.unpatchify = _as_it_is
        velocity = denoiser(
            noisy,
            timesteps=self.times(noisy, scale=1000),
            encoder_hidden_states_t5=conditioning["encoder_hidden_states"],
            encoder_hidden_states_llama3=conditioning["llama"].transpose(0, 1),
            pooled_embeds=conditioning["pooled_embeds"],
        ).sample
        return -velocity  # the model's runs from noise to image


def _as_it_is(states: Tensor, *_: Any) -> Tensor:
    """What the experts give, in shape alone."""
    return states
