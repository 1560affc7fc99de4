"""What each family of pipelines is trained to predict, one class per family; its noise and its text are the pipeline's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F


class Objective(ABC):
    """Denoising loss of one family; gradients reach the denoiser and the text encoders.

    Args:
        high_noise: exponent below 1 that draws more noise levels near 1, where words matter.
    """

    predicts: ClassVar[str]  # what the loss is of; losses of different targets have nothing in common

    def __init__(self, high_noise: float = 1.0) -> None:
        self.high_noise = high_noise

    def __call__(self, pipeline: Any, latents: Tensor, texts: Sequence[str], uniform: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the prediction.

        Args:
            latents, noise: (B, C, h, w), unit variance.
            texts: B prompts.
            uniform: (B,) in [0, 1), from which noise levels are made.
        """
        noisy, level, target = self.corrupt(pipeline, latents, noise, uniform**self.high_noise)
        return F.mse_loss(self.predict(pipeline, noisy, level, texts).float(), target)

    @abstractmethod
    def corrupt(self, pipeline: Any, latents: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the time the denoiser is told, and what it should predict, for noise levels in [0, 1)."""

    @abstractmethod
    def predict(self, pipeline: Any, noisy: Tensor, times: Tensor, texts: Sequence[str]) -> Tensor:
        """One forward of the text encoders and the denoiser."""


class NoisePrediction(Objective):
    """The noise of a DDPM schedule."""

    predicts = "noise"

    def corrupt(self, pipeline: Any, latents: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = pipeline.scheduler.config.num_train_timesteps
        times = (last * level).long().clamp(max=last - 1)
        return pipeline.scheduler.add_noise(latents, noise, times), times, noise


class StableDiffusionObjective(NoisePrediction):
    def predict(self, pipeline: Any, noisy: Tensor, times: Tensor, texts: Sequence[str]) -> Tensor:
        text, _ = pipeline.encode_prompt(list(texts), noisy.device, 1, do_classifier_free_guidance=False)
        return pipeline.unet(noisy, times, encoder_hidden_states=text).sample


class PixArtObjective(NoisePrediction):
    def predict(self, pipeline: Any, noisy: Tensor, times: Tensor, texts: Sequence[str]) -> Tensor:
        length = pipeline.tokenizer.model_max_length
        text, mask, _, _ = pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=noisy.device, max_sequence_length=length
        )
        return pipeline.transformer(
            noisy,
            timestep=times,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample


class StableDiffusion3Objective(Objective):
    """The velocity of a rectified flow, from data to noise."""

    predicts = "velocity"

    def corrupt(self, pipeline: Any, latents: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = level.view(-1, 1, 1, 1)
        times = level * pipeline.scheduler.config.num_train_timesteps
        return torch.lerp(latents, noise, sigma), times, noise - latents

    def predict(self, pipeline: Any, noisy: Tensor, times: Tensor, texts: Sequence[str]) -> Tensor:
        text, _, pooled, _ = pipeline.encode_prompt(
            list(texts),
            None,
            None,
            device=noisy.device,
            do_classifier_free_guidance=False,
            max_sequence_length=pipeline.tokenizer_max_length,
        )
        return pipeline.transformer(noisy, timestep=times, encoder_hidden_states=text, pooled_projections=pooled).sample
