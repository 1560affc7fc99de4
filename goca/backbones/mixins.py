"""What several families share: how attention lies in the layers, and how noise is added."""

from __future__ import annotations

import copy
import inspect
import math
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from goca.attention.call import AttentionCall
from goca.attention.tap import RawCall
from goca.backbones.base import Backbone
from goca.backbones.loading.quantization import dense_weight
from goca.backbones.text import after_prefix
from goca.errors import ModelError
from goca.method.losses import Predicts
from goca.prompts.prompt import TextSegment


class CrossAttention(Backbone):
    """Blocks with `attn1` (image to image) and `attn2` (image to text)."""

    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall:
        is_text = self.is_text_layer(raw.layer)
        return AttentionCall(
            layer=raw.layer,
            grid=self.query_grid(raw, latent_grid),
            query=raw.query,
            key=raw.key,
            value=raw.value,
            output=raw.output,
            scale=raw.scale,
            mask=raw.mask,
            text=slice(None) if is_text else None,
            image=None if is_text else slice(None),
            projection=self.projection(raw.layer, raw.output),
            bias=self.projection_bias(raw.layer, raw.output),
            lse=raw.lse,
            linear=raw.linear,
        )

    def query_grid(self, raw: RawCall, latent_grid: tuple[int, int]) -> tuple[int, int]:
        """The grid that the layer's image queries come from."""
        return self.token_grid(latent_grid)

    def is_text_layer(self, layer: str) -> bool:
        return layer.endswith("attn2")

    def paired_self_attention(self, layer: str) -> str:
        return layer.removesuffix("attn2") + "attn1"


class JointAttention(Backbone):
    """Image and text tokens attend to one another in one sequence: a layer is its own paired self-attention.

    The sequence is [extra, text, image], or [image, text] where `text_first` is False.
    """

    text_first: ClassVar[bool] = True

    @property
    def extra_tokens(self) -> int:
        """Tokens before the text that no prompt fills, such as registers."""
        return 0

    @property
    def text_axis(self) -> int | None:
        """Length of the text axis where the model is given fewer tokens than that; None where it is given them all."""
        return None

    def spans(self, pixels: int, total: int) -> tuple[slice, slice]:
        """Where text and image lie among `total` keys."""
        if self.text_first:
            return slice(self.extra_tokens, total - pixels), slice(total - pixels, total)
        return slice(pixels, total), slice(0, pixels)

    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall | None:
        grid = self.token_grid(latent_grid)
        pixels, queries, total = grid[0] * grid[1], raw.query.shape[2], raw.key.shape[2]
        if queries < pixels:
            return None  # text among itself
        text, image = self.spans(pixels, total)
        rows = image if queries == total else slice(0, pixels)  # some models let the image alone ask
        mask = raw.mask
        if mask is not None and mask.ndim > 1 and mask.shape[-2] > 1:
            mask = mask[..., rows, :]
        return AttentionCall(
            layer=raw.layer,
            grid=grid,
            query=raw.query[:, :, rows],
            key=raw.key,
            value=raw.value,
            output=raw.output[:, :, rows],
            scale=raw.scale,
            mask=mask,
            text=text if total > pixels else None,
            image=image,
            text_axis=self.text_axis,
            projection=self.projection(raw.layer, raw.output),
            bias=self.projection_bias(raw.layer, raw.output),
            lse=None if raw.lse is None else raw.lse[:, :, rows],
        )

    def projection(self, layer: str, like: Tensor) -> Tensor | None:
        """Single-stream blocks may project attention and MLP together: W^O is the part that attention's columns meet."""
        if getattr(self.attention_modules[layer], "to_out", None) is not None:
            return super().projection(layer, like)
        block: Any = self.denoiser.get_submodule(layer.rpartition(".")[0])
        return dense_weight(block.proj_out)[:, : like.shape[1] * like.shape[3]].to(like)

    def image_keys(self, raw: RawCall, latent_grid: tuple[int, int]) -> slice:
        grid = self.token_grid(latent_grid)
        pixels, total = grid[0] * grid[1], raw.key.shape[2]
        return slice(total - pixels, total) if self.text_first else slice(0, pixels)

    def paired_self_attention(self, layer: str) -> str:
        return layer


class TemplatePrefix(Backbone):
    """The prompt stands in `pipeline.prompt_template_encode`, and what comes before it there is dropped."""

    text_length: int

    @property
    def _dropped(self) -> int:
        """Tokens before the prompt. The pipeline has a number; counted here, it is right for any tokenizer."""
        return len(self.pipeline.tokenizer(self.pipeline.prompt_template_encode.partition("{}")[0])["input_ids"])

    @cached_property
    def text_segments(self) -> tuple[TextSegment, ...]:
        template = self.pipeline.prompt_template_encode
        return (after_prefix(self.pipeline.tokenizer, template, self.text_length, self._dropped),)


class FlowMatching(Backbone):
    """Noise of rectified flows, (1 - sigma) x + sigma n, at the sigma where an image-to-image run of strength t/1000 begins."""

    # Whether the pipeline hands its scheduler the levels 1 ... 1/N to be shifted. A scheduler that is left to itself takes some
    # down to a level that it has shifted already, so that a fixed shift acts twice there.
    gives_levels: ClassVar[bool] = True

    @property
    def sigma(self) -> float:
        """The noise level for images of the model's square."""
        side = self.size // self.compression
        return self.sigma_of(math.prod(self.token_grid((side, side))))

    def sigma_of(self, tokens: int) -> float:
        """The noise level for so many image tokens, shifted for the image's size as the model's own schedule does."""
        if (self.timestep, tokens) not in self._sigmas:
            scheduler: Any = copy.copy(self.pipeline.scheduler)  # the pipeline may be drawing by its own steps
            steps = scheduler.config.num_train_timesteps
            options: dict[str, Any] = {}
            if scheduler.config.get("use_dynamic_shifting", False):  # whose levels begin unshifted either way
                options["mu"] = self.shift(tokens)
            elif self.gives_levels and not scheduler.config.get("use_flow_sigmas", False) and takes_levels(scheduler):
                options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
            scheduler.set_timesteps(steps, **options)
            self._sigmas[self.timestep, tokens] = float(scheduler.sigmas[steps - self.timestep])
        return self._sigmas[self.timestep, tokens]

    @cached_property
    def _sigmas(self) -> dict[tuple[int, int], float]:
        """Time step and number of image tokens -> noise level."""
        return {}

    def _sigma(self, latents: Tensor) -> float:
        rows, columns = self.token_grid((latents.shape[-2], latents.shape[-1]))
        return self.sigma_of(rows * columns)

    def shift(self, tokens: int) -> float:
        """mu of a schedule that is shifted by the number of image tokens, as the pipeline computes it."""
        config = self.pipeline.scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return float(calculate_shift(tokens, *(config[name] for name in names)))

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        sigma = self._sigma(latents)
        return (1 - sigma) * latents + sigma * noise

    def prediction_kind(self) -> tuple[float, Predicts]:
        return 0.0, "flow"

    def times(self, noisy: Tensor, scale: float = 1.0) -> Tensor:
        """sigma for every image of a batch of latents (B, C, h, w), times `scale`: (B,) float32, whatever the latents are."""
        return torch.full((len(noisy),), self._sigma(noisy) * scale, device=noisy.device)


def takes_levels(scheduler: Any) -> bool:
    """Whether a scheduler can be given its noise levels; Heun's of diffusers makes them itself."""
    return "sigmas" in inspect.signature(scheduler.set_timesteps).parameters


def level_grid(pixels: int, latent_grid: tuple[int, int], layer: str) -> tuple[int, int]:
    """The grid of a UNet level, found from its number of pixels: each level halves both sides.

    >>> level_grid(64, (32, 32), "attn1")
    (8, 8)
    """
    height, width = latent_grid
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != pixels:
        raise ModelError(f"{layer}: {pixels} pixels are no level of a {latent_grid[0]} x {latent_grid[1]} latent")
    return height, width
