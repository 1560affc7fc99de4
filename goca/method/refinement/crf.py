"""Refinement by a dense conditional random field (Kraehenbuehl and Koltun, NIPS 2011; with FTTM's constants)."""

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ConfigError, ModelError, missing
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.ops import minmax, resize

_LEAST = 1e-5  # probability that stands for 0


@dataclass(frozen=True, config=CONFIG)
class CRF:
    """Label probabilities that agree with colour edges, at the size of the image; the background is one of the labels.

    Takes RGB (upstream BGR minus mean, with wrap-around). Needs the extra `crf`.

    Raises:
        ConfigError: the package pydensecrf2 is not installed; a method is not run under its name without its last step.

    Args:
        iterations: of mean-field inference.
        position_std, position_weight: the Gaussian term; pixels.
        bilateral_std, colour_std, bilateral_weight: the bilateral term; pixels and grey levels.
    """

    iterations: PositiveInt = 10
    position_std: PositiveFloat = 1.0
    position_weight: NonNegativeFloat = 3.0
    bilateral_std: PositiveFloat = 67.0
    colour_std: PositiveFloat = 3.0
    bilateral_weight: NonNegativeFloat = 4.0

    def __post_init__(self) -> None:
        if not available():
            how = missing("pydensecrf2", "crf", "the dense CRF of refinement=crf and preset=fttm")
            raise ConfigError(f"{how} (built from source: a C++ compiler is needed); or leave it out by refinement=affinity")

    @property
    def needs(self) -> Needs:
        return Needs(image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps at the size of the context's image that add up to 1 over classes and background."""
        if context.image is None:
            raise ModelError("refinement=crf needs the image, and the context holds none")
        height, width = context.image.shape[-2:]
        scores = minmax(resize(maps.stack(), (height, width), "bicubic").clamp(min=0))
        image = ((context.image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
        return maps.with_stack(self.infer(image, scores))

    def infer(self, image: Tensor, scores: Tensor) -> Tensor:
        """Label probabilities (C, H, W) from an image (H, W, 3) uint8 and scores (C, H, W), clipped to 1e-5 ... 1."""
        from pydensecrf.densecrf import DenseCRF2D

        height, width = image.shape[:2]
        field = DenseCRF2D(width, height, len(scores))
        energy = -scores.clamp(_LEAST, 1.0).log().flatten(1)
        field.setUnaryEnergy(np.ascontiguousarray(energy.cpu().numpy(), dtype=np.float32))
        field.addPairwiseGaussian(sxy=self.position_std, compat=self.position_weight)
        pixels = np.ascontiguousarray(image.cpu().numpy())
        field.addPairwiseBilateral(sxy=self.bilateral_std, srgb=self.colour_std, rgbim=pixels, compat=self.bilateral_weight)
        inferred = np.asarray(field.inference(self.iterations), dtype=np.float32)
        return torch.from_numpy(inferred).view(scores.shape).to(scores.device)


def available() -> bool:
    """Whether the optional package is installed."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return False
    return True
