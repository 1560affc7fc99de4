"""Refinements that find segments first: DiffSeg's merged attention, DiffCut's cut features, and colours alone.

Without words the segments themselves are the maps, to be matched with ground truth (decision=hungarian). With words each
segment takes the class that its pixels favour most on average.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.method.refinement.levels import by_grid, choose
from goca.method.segments import kl_merge, naming, normalised_cut
from goca.method.segments.colour import colour_segments
from goca.ops import resize

Names = Literal["none", "attention"]


@dataclass(frozen=True, config=CONFIG)
class MergedAttention:
    """DiffSeg: attention of all resolutions mixed, proposals grown from anchors and merged where they are alike.

    Args:
        thresholds: of the divergence, one for each round; the first one grows the proposals, the others merge them.
        points: anchors along each side.
        kmeans: replace proposals by the means of clusters that start at them.
        names: `none` leaves segments to be matched, `attention` names each by the class maps.
        layers: self-attention layers, names or globs.
    """

    thresholds: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    points: Annotated[int, Field(ge=2)] = 16
    kmeans: bool = False
    names: Names = "none"
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """One map per segment, or class maps of 0 and 1, on the grid of the finest layer."""
        levels = by_grid(choose(context, self.layers, "refinement: self-attention layers of the segments"))
        size = next(iter(levels))
        mixture = kl_merge.LevelMixture(levels, size, max_bytes=context.max_bytes)
        proposals, _ = kl_merge.grow(mixture, min(self.points, *size), self.thresholds[0])
        for threshold in self.thresholds[1:]:
            proposals = kl_merge.merge(proposals, threshold)
        if self.kmeans:
            proposals = kl_merge.kmeans(mixture, proposals)
        return concluded(maps, proposals.unflatten(1, size).float(), self.names)


@dataclass(frozen=True, config=CONFIG)
class CutFeatures:
    """DiffCut: a layer's output, after its projection, cut in two again and again while the normalised cut is below tau.

    Args:
        layer: self-attention layer; of several that a glob matches, the last.
        tau: value of a cut above which a segment stays whole.
        alpha: exponent of the affinity.
        names: as in `MergedAttention`.
        drop_zeros: pixels of affinity 0 to any other leave the recursion after the first cut, as in the released code.
        size: (height, width) at which pixels go to segments; null is the image's.
    """

    layer: str
    tau: PositiveFloat = 0.5
    alpha: PositiveFloat = 10.0
    names: Names = "none"
    drop_zeros: bool = True
    size: tuple[PositiveInt, PositiveInt] | None = None

    @property
    def needs(self) -> Needs:
        return Needs(features=(self.layer,), feature_kind="projected", image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """One map per segment, or class maps of 0 and 1, at the chosen size."""
        names = resolve((self.layer,), context.features, "refinement: feature layer of the cuts")
        if context.image is None and self.size is None:
            raise ModelError("refinement: pixels go to segments at the size of the image, and the context holds none")
        feature = context.features[names[-1]]
        unit = normalised_cut.unit_features(feature)
        cuts = normalised_cut.recursive_cuts(normalised_cut.affinity(unit, self.alpha), self.tau, self.drop_zeros)
        clusters = cuts.clusters(len(unit)).view(feature.shape[-2], feature.shape[-1])
        size = self.size or (context.image.shape[-2], context.image.shape[-1])  # type: ignore[union-attr]
        return concluded(maps, normalised_cut.assign(unit, clusters, size).float(), self.names)


@dataclass(frozen=True, config=CONFIG)
class ColourSegments:
    """Pixels of like colour are a segment, and attention only gives it a name: what colour alone is worth on a set of pictures.

    Not a method of anybody's, but the baseline that a refinement which looks at pixels (PAMR, CRF) has to beat.

    Args:
        count: segments at most.
        compactness: 0 clusters colours wherever they are; above, segments keep together (SLIC's superpixels).
        iterations: of the clustering.
        names: as in `MergedAttention`.
    """

    count: PositiveInt = 9
    compactness: NonNegativeFloat = 0.0
    iterations: PositiveInt = 10
    names: Names = "attention"

    @property
    def needs(self) -> Needs:
        return Needs(image=True)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """One map per segment, or class maps of 0 and 1, at the size of the image."""
        if context.image is None:
            raise ModelError("refinement=colour_segments needs the image, and the context holds none")
        members = colour_segments(context.image.to(maps.scores.device), self.count, self.compactness, self.iterations)
        segments = torch.nn.functional.one_hot(members, int(members.max()) + 1).permute(2, 0, 1)
        return concluded(maps, segments.float(), self.names)


def concluded(maps: ClassMaps, segments: Tensor, names: Names) -> ClassMaps:
    """Maps (K, h, w) of segments as results, or class maps of 0 and 1 where each segment takes its class."""
    if names == "none":
        nothing = segments.new_zeros(segments.shape[-2:])
        numbers = tuple(range(1, len(segments) + 1))
        return replace(maps, ids=numbers, scores=segments, supporting=nothing, raw=segments, named=False)
    stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), (segments.shape[-2], segments.shape[-1]))
    if not len(stack):
        return maps.with_stack(stack)
    members = segments.argmax(0)
    chosen = naming.name_by_attention(members, stack.clamp(min=0))[members]
    labels = torch.nn.functional.one_hot(chosen.clamp(min=0), len(stack)).permute(2, 0, 1)
    return maps.with_stack(labels.to(stack.dtype))
