"""Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020, section 3.3)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.ops import blocks


@dataclass(frozen=True, config=CONFIG)
class PAMR:
    """Scores flow between neighbouring pixels of similar colour, then a 3x3 median filter removes specks.

    One channel per class and one for the background (the released wrapper joins them along the width, docs/parity.md, P8).

    Args:
        iterations: how often each pixel takes the mean of its neighbours, weighted by colour.
        dilations: distances of the eight neighbours, in pixels of the image.
    """

    iterations: NonNegativeInt = 10
    dilations: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4, 8)

    scale: ClassVar[str] = "kept"

    @property
    def needs(self) -> Needs:
        return Needs(image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps at the size of the context's image."""
        if context.image is None:
            raise ModelError("refinement=pamr needs the image, and the context holds none")
        masks = maps.stack()
        refined = pamr(context.image, masks, self.iterations, self.dilations, context.max_bytes)
        return maps.with_stack(median_filter(refined, context.max_bytes))


def pamr(image: Tensor, masks: Tensor, iterations: int, dilations: tuple[int, ...], max_bytes: int = 2**28) -> Tensor:
    """Masks (C, h, w) at the image's size (C, H, W), refined along its colours (3, H, W), whose scale does not matter.

    Masks are resized bilinearly with aligned corners. Weights are a softmax over neighbours j of
    -mean over colours of |x_i - x_j| / (0.1 std_i), std_i the unbiased deviation in the neighbourhood of i.
    """
    weights = colour_weights(image.to(masks.device).float(), dilations)  # (8 * dilations, H, W)
    resized = F.interpolate(masks.float()[None], size=image.shape[-2:], mode="bilinear", align_corners=True)[0]
    refined = torch.empty_like(resized)
    for channels in blocks(len(resized), 4 * resized[0].nbytes, max_bytes):
        part = resized[channels]
        for _ in range(iterations):
            around = neighbours(part, dilations)
            part = sum((weight * shifted for weight, shifted in zip(weights, around, strict=True)), torch.zeros_like(part))
        refined[channels] = part
    return refined


def colour_weights(image: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """How much a pixel takes from each of its neighbours, by likeness of colour: (8 * dilations, H, W), adding up to 1."""
    # The neighbourhood holds the pixel itself once per dilation.
    count = 9 * len(dilations)
    mean = sum(neighbours(image, dilations), len(dilations) * image) / count
    squares = sum(((shifted - mean) ** 2 for shifted in neighbours(image, dilations)), len(dilations) * (image - mean) ** 2)
    scale = 0.1 * (squares / (count - 1)).sqrt() + 1e-8
    return torch.stack([-((image - shifted).abs() / scale).mean(0) for shifted in neighbours(image, dilations)]).softmax(0)


def neighbours(maps: Tensor, dilations: tuple[int, ...]) -> Iterator[Tensor]:
    """Maps (C, H, W) shifted to each of the eight neighbours at each distance; borders are repeated."""
    height, width = maps.shape[-2:]
    for d in dilations:
        padded = F.pad(maps, (d, d, d, d), mode="replicate")
        for dy in (0, d, 2 * d):
            for dx in (0, d, 2 * d):
                if (dy, dx) != (d, d):
                    yield padded[:, dy : dy + height, dx : dx + width]


def median_filter(maps: Tensor, max_bytes: int = 2**28) -> Tensor:
    """3x3 median of each map (C, H, W), borders repeated."""
    filtered = torch.empty_like(maps)
    for channels in blocks(len(maps), 20 * maps[0].nbytes, max_bytes):
        part = maps[channels]
        filtered[channels] = torch.stack([*neighbours(part, (1,)), part]).median(0).values
    return filtered
