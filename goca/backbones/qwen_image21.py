"""Qwen-Image-2.1: one stream of text, then image; the text is causal and never sees the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import pad

from goca.attention.call import AttentionCall
from goca.attention.tap import RawCall
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.qwen_image import QwenImageBackbone
from goca.backbones.registry import backbone
from goca.prompts.prompt import TextSegment
from goca.prompts.segments import TemplateSegment


@backbone
@dataclass(config=ConfigDict(extra="forbid"))
class QwenImage21Backbone(QwenImageBackbone):
    """The user's turn and what follows lie on the text axis; its real tokens alone enter the sequence.

    diffusers computes a layer in two calls: the text's, and then the image's with the keys of both.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImage21Pipeline",)

    @property
    def compression(self) -> int:
        factor: int = self.pipeline.vae.spatial_compression_ratio
        return factor

    @property
    def size_multiple(self) -> int:
        return 2 * self.compression  # the transformer counts image tokens in squares of four

    @property
    def _dropped(self) -> int:
        """Tokens of the system's turn. The pipeline asks its processor's template; counted here, it is what is encoded."""
        system = self.pipeline.prompt_template_t2i.partition("<|im_start|>user")[0]
        return len(self.pipeline.processor.tokenizer(system)["input_ids"])

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        template, dropped = self.pipeline.prompt_template_t2i, self._dropped
        kept = range(dropped, dropped + self.text_length)
        tokenizer = self.pipeline.processor.tokenizer
        return (TemplateSegment(tokenizer, self.text_length, render=template.format, kept=kept, compact=True),)

    @property
    def text_axis(self) -> int:
        return self.text_length

    def encode_image(self, pixels: Tensor) -> Tensor:
        """The autoencoder takes opacity as a fourth channel: a picture is opaque."""
        if self.pipeline.vae.config.in_channels == 4:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        return super().encode_image(pixels)

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        self.pipeline._drop_idx = self._dropped
        embeddings, mask, _ = self.pipeline.encode_prompt(list(texts), device=self.torch_device)
        counts = mask.sum(1) if mask is not None else torch.full((len(texts),), embeddings.shape[1], device=embeddings.device)
        embeddings = embeddings[:, : self.text_length]
        return {
            "encoder_hidden_states": pad(embeddings, (0, 0, 0, self.text_length - embeddings.shape[1])),
            "tokens": counts.clamp(max=self.text_length),
        }

    def blank_conditioning(self) -> Conditioning:
        width = self.pipeline.transformer.config.context_in_dim
        return {"encoder_hidden_states": self.blank(1, self.text_length, width), "tokens": torch.tensor([self.text_length])}

    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        counts = conditioning["tokens"].tolist()
        longest = max(counts)
        grid = self.token_grid((noisy.shape[-2], noisy.shape[-1]))
        image = noisy.flatten(2).transpose(1, 2)
        if noisy.device.type == "meta":
            return self._blank_blocks(longest + image.shape[1])
        text = conditioning["encoder_hidden_states"][:, :longest]
        slots = torch.zeros(len(noisy), longest + image.shape[1] // 4, dtype=torch.bool, device=noisy.device)
        slots[:, longest:] = True  # each stands for four image tokens
        shapes = [[(1, *grid)]] * len(noisy)
        mask = None
        if min(counts) < longest:
            mask = torch.arange(longest, device=noisy.device) < torch.tensor(counts, device=noisy.device)[:, None]
        with self._own_positions(counts):
            velocity = self.denoiser(
                hidden_states=image,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                timestep=self.times(noisy),
                img_shapes=shapes,
                img_mask=slots,
            ).sample
        return velocity[:, longest:]

    @contextmanager
    def _own_positions(self, counts: Sequence[int]) -> Iterator[None]:
        """Within, the image of a prompt that is shorter than others of the batch stands right after its own text.

        The model has one row of positions for a batch, in which padding counts; then a result would depend on the batch.
        """
        longest = max(counts)
        embedding: Any = self.denoiser.pos_embed
        if min(counts) == longest:
            yield
            return
        embed: Callable[..., Tensor] = embedding.forward

        def moved(shapes: Any, is_image: Tensor, device: torch.device) -> _PositionsByPrompt:
            rows = []
            for count in counts:
                own = embed(shapes, is_image[longest - count :], device)
                rows.append(torch.cat([own[:count], own[:1].expand(longest - count, -1), own[count:]]))
            return _PositionsByPrompt(torch.stack(rows))

        embedding.forward = moved
        try:
            yield
        finally:
            del embedding.forward

    def _blank_blocks(self, length: int) -> Tensor:
        """The blocks alone, in shape: around them the model asks for numbers that a tensor without memory lacks."""
        net: Any = self.denoiser
        states, modulation = self.blank(1, length, net.inner_dim), self.blank(1, 4 * net.inner_dim)
        for block in net.transformer_blocks:
            states = block(states, modulation, segments=[(0, self.text_length, True)])
        return states

    def fit_call(self, call: Mapping[str, Any]) -> None:
        """The pipeline leaves out no token of a prompt."""
        encoded = (call.get(name) for name in ("prompt_embeds", "negative_prompt_embeds"))
        self._fit(max(states.shape[1] for states in encoded if states is not None))

    def picture_starts(self, arguments: Mapping[str, Any]) -> Tensor:
        states: Tensor = arguments["encoder_hidden_states"]
        return torch.full((len(states),), states.shape[1], device=states.device)

    @property
    def rotary_axis(self) -> tuple[int, float]:
        embedder: Any = self.pipeline.transformer.pos_embed
        return embedder.axes_dim[0], embedder.theta

    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall | None:
        """The image's call alone: it has the text's keys too, which later steps of a drawing take from the first one."""
        return None if raw.key.shape[2] == raw.query.shape[2] else super().canonical(raw, latent_grid)


class _PositionsByPrompt:
    """Rotary factors (B, S, d / 2), which differ between prompts, where the model expects (S, d / 2)."""

    def __init__(self, factors: Tensor) -> None:
        self._factors = factors

    def unsqueeze(self, _axis: int) -> Tensor:
        """As the model asks for an axis for heads: (B, S, 1, d / 2)."""
        return self._factors.unsqueeze(2)
