"""How well a model predicts an image given one word, and the exponents that follow (ELBO-T2IAlign, Zhou et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

Predicts = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LossExponents:
    """Class maps are raised to strength ^ e, e the place of the class's loss between the lowest and the highest of the image.

    Args:
        strength: the largest exponent; 1 changes nothing.
        timesteps: noise levels, 0 ... 999, at which the loss is measured: a forward for each, for every class.
        text: prompt of one class.
        fixed: `strength` for every class, without any forward.
    """

    strength: PositiveFloat = 3.0
    timesteps: Annotated[tuple[Annotated[int, Field(ge=0, le=999)], ...], Field(min_length=1)] = tuple(range(1, 1000, 50))
    text: str = "a photo of {name}"
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.text.count("{name}") != 1:
            raise ValueError(f"text has {{name}} once, where the class stands; got {self.text!r}")

    def __call__(self, losses: Mapping[int, float]) -> dict[int, float]:
        """Exponent of each class from its loss, summed over time steps."""
        if self.fixed:
            return dict.fromkeys(losses, self.strength)
        values = exponents(torch.tensor(list(losses.values())), self.strength).tolist() if losses else []
        return dict(zip(losses, values, strict=True))


def exponents(losses: Tensor, strength: float) -> Tensor:
    """strength ^ ((L - min L) / (max L - min L + 1e-10)) of losses (C,); one class alone has 1."""
    return strength ** relative(losses)


def relative(losses: Tensor) -> Tensor:
    """Losses (C,) between 0 and 1."""
    return (losses - losses.min()) / (losses.max() - losses.min() + 1e-10)


def noise_error(prediction: Tensor, noise: Tensor, latents: Tensor, kept: Tensor | float, predicts: Predicts) -> Tensor:
    """Mean square of the noise's error, over all but the leading axes of (..., C, h, w).

    Args:
        prediction: what the model gave for sqrt(kept) latents + sqrt(1 - kept) noise, or for the flow's mixture.
        kept: part of the data's variance that is left; not used for `flow`, where the model predicts noise - latents.
    """
    if predicts == "flow":
        return ((noise - latents - prediction) ** 2).mean((-3, -2, -1))
    kept = torch.as_tensor(kept, dtype=prediction.dtype, device=prediction.device)
    noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
    guess = prediction
    if predicts == "v_prediction":
        guess = kept.sqrt() * prediction + (1 - kept).sqrt() * noisy
    elif predicts == "sample":
        guess = (noisy - kept.sqrt() * prediction) / (1 - kept).sqrt()
    return ((noise - guess) ** 2).mean((-3, -2, -1))


def class_losses(errors: Sequence[Tensor]) -> Tensor:
    """Sum over time steps of the errors (C,) of each."""
    return torch.stack(list(errors)).sum(0)
