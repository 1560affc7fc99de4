"""Refinement by class prototypes in feature space."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.ops import blocks, resize, resize_matrix


@dataclass(frozen=True, config=CONFIG)
class Prototype:
    """Each pixel goes to the class whose prototype its feature is most like; maps become 0 or 1 at the size of the image.

    An all-zero map has no prototype and stays zero. As maps are 0 or 1, thresholds of the decision hardly matter afterwards
    (docs/parity.md, P5).

    Args:
        layer: layer whose dense feature is used, a name or a glob that matches one layer.
    """

    layer: str

    @property
    def needs(self) -> Needs:
        return Needs(features=(self.layer,), image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps of 0 and 1 at the size of the context's image."""
        names = resolve((self.layer,), context.features, "refinement: feature layer of the prototypes")
        if len(names) > 1:
            raise ModelError(f"refinement: prototypes use one feature layer, and '{self.layer}' matches {', '.join(names)}")
        if context.image is None:
            raise ModelError("refinement=prototype gives maps the size of the image, and the context holds none")
        height, width = context.image.shape[-2:]
        return maps.with_stack(assign_to_prototypes(maps.stack(), context.features[names[0]], (height, width)))


def assign_to_prototypes(maps: Tensor, feature: Tensor, size: tuple[int, int]) -> Tensor:
    """One-hot maps (C, *size): for each pixel the class with the highest cosine to the feature (D, h, w).

    A prototype is the mean feature weighted by the class map, which is resized to the feature's grid by the nearest rule. The
    feature's own norm is the same for all classes and bicubic resizing is linear, so the products are resized, not the feature.
    """
    height, width = feature.shape[-2:]
    weights = resize(maps, (height, width), "nearest")
    prototypes = F.normalize(torch.einsum("chw,dhw->cd", weights, feature.float()), dim=1)
    likeness = resize(torch.einsum("cd,dhw->chw", prototypes, feature.float()), size, "bicubic")
    likeness[weights.flatten(1).sum(1) == 0] = -torch.inf
    assigned = F.one_hot(likeness.argmax(0), len(maps)).permute(2, 0, 1).to(maps.dtype)
    return assigned * likeness.isfinite()  # no map with a prototype at all: zeros


@dataclass(frozen=True, config=CONFIG)
class FeaturePrototypes:
    """Class scores are products of each pixel's feature, of length 1, with the class's mean feature (MaskDiffusion).

    Maps and features are both brought to the size of the image, and each map is divided by its maximum. Means are as long as
    they come out: a class whose pixels disagree has a shorter one and loses, which favours coherent regions.

    Args:
        layers: layers whose dense features are used side by side, names or globs.
        size: (height, width) at which features are compared; null is the image's.
    """

    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    size: tuple[PositiveInt, PositiveInt] | None = None

    scale: ClassVar[str] = "other"

    @property
    def needs(self) -> Needs:
        return Needs(features=self.layers, image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Scores at the size of the context's image; a supporting map that is all zero stays so."""
        names = resolve(self.layers, context.features, "refinement: feature layers of the prototypes")
        if context.image is None and self.size is None:
            raise ModelError("refinement: prototypes are compared at the size of the image, and the context holds none")
        size = self.size or (context.image.shape[-2], context.image.shape[-1])  # type: ignore[union-attr]
        stack = maps.stack(with_supporting=bool(maps.supporting.any()))
        scores = prototype_scores(stack, [context.features[name] for name in names], size, context.max_bytes)
        return maps.with_stack(scores)


def prototype_scores(maps: Tensor, features: Sequence[Tensor], size: tuple[int, int], max_bytes: int = 2**28) -> Tensor:
    """<p_c, f_i> at every pixel, p_c the mean of unit features weighted by map c: (C, *size).

    Features (D, h, w) are resized bilinearly and joined before they get length 1; a band of rows is at hand at a time.
    """
    weights = peaked(maps, size)
    depth = sum(feature.shape[0] for feature in features)
    sums = weights.new_zeros(len(maps), depth)
    bands = list(blocks(size[0], 3 * 4 * depth * size[1], max_bytes))
    for rows in bands:
        unit = _unit_rows(features, size, rows)
        sums += torch.einsum("chw,dhw->cd", weights[:, rows], unit)
    prototypes = sums / weights.sum((-2, -1)).clamp(min=torch.finfo(weights.dtype).tiny)[:, None]
    return torch.cat([torch.einsum("cd,dhw->chw", prototypes, _unit_rows(features, size, rows)) for rows in bands], 1)


def peaked(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (C, h, w) at a size, each divided by its largest value; a map of zeros stays zeros."""
    large = resize(maps, size)
    peak = large.amax((-2, -1), keepdim=True)
    return torch.where(peak > 0, large / peak, torch.zeros_like(large))


def _unit_rows(features: Sequence[Tensor], size: tuple[int, int], rows: slice) -> Tensor:
    """(D, rows, W) of length 1 at each pixel."""
    parts = []
    for feature in features:
        matrix = resize_matrix(feature.shape[-2], size[0], "bilinear", feature.device)[rows]
        near = matrix.any(0).nonzero()[:, 0]  # rows of the feature that this band lies between
        wide = resize(feature[:, near].float(), (len(near), size[1]))
        parts.append(matrix[:, near] @ wide)
    return F.normalize(torch.cat(parts), dim=0, eps=1e-10)
