"""Refinement by class prototypes in feature space."""

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.ops import resize


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
