"""Aggregation with weights that nobody computes: by resolution, by depth, or one for every head of every layer.

Most methods before GoCA add the maps of all layers up with constants. What differs is how layers are grouped, what is
normalised before the sum, how maps are resized, and what counts as attention (probabilities, logits, their exponentials).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from goca.errors import ModelError
from goca.ops import Grid, Interpolation, minmax, resize

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Mixture:
    """How the attention of one forward becomes one map per token, without a reference to compare layers with.

    A level is a resolution; its factor is how many times its side fits into the finest observed one (1, 2, 4, 8 in a UNet).

    Args:
        cross_layers: names or globs of the layers whose text attention is used.
        leave_out: of these not those, names or globs; a model without such layers leaves none out.
        weigh: what the weights are of: every (layer, head) `pair` counts once; every `layer` counts once; a `level` is the mean
            of all heads of its layers and has its weight; a `stage` is a run of layers on one grid along the forward, and each
            of its layers has its weight; `depth`: a Gaussian around the middle of the network.
        weights: factor -> weight, of levels, or of the layers of a level with `pair` and `layer` (levels not named have none).
            A model with one level only gives it weight 1.
        coarsest: only so many levels, the coarsest; null takes all.
        stage_weights: one number per stage, in the order of the forward.
        sigma: standard deviation of the Gaussian, in layers.
        heads: `mean`, `max`, or factor -> indices of the heads that count, numbered through the layers of that level.
        score: `softmax` over all keys; `text`: over the text's keys alone, of joint attention; `exp`: exponentials of the
            logits, not divided by their sum; `logits`.
        normalise: of a level's map before the sum: `spatial_sum` divides each token's map by its sum; `minmax` acts on the
            classes' maps, once tokens are joined (see `Calibration`).
        resize: how maps are brought to `feature_size`.
        clamp: each head's map is resized by itself and clamped at 0 before heads are averaged (bicubic resizing overshoots).
        share_out: divide each pixel by its sum over all tokens at the end, as GoCA does.
        feature_size: cells along the model's square of the grid on which maps are added up; other shapes in proportion.
    """

    cross_layers: tuple[str, ...]
    leave_out: tuple[str, ...] = ()
    weigh: Literal["pair", "layer", "level", "stage", "depth"] = "layer"
    weights: dict[PositiveInt, Weight] | None = None
    coarsest: PositiveInt | None = None
    stage_weights: tuple[Weight, ...] | None = None
    sigma: PositiveFloat | None = None
    heads: Literal["mean", "max"] | dict[PositiveInt, tuple[NonNegativeInt, ...]] = "mean"
    score: Literal["softmax", "text", "exp", "logits"] = "softmax"
    normalise: Literal["none", "minmax", "spatial_sum"] = "none"
    resize: Interpolation = "bilinear"
    clamp: bool = False
    share_out: bool = False
    feature_size: PositiveInt = 64

    def __post_init__(self) -> None:
        if not self.cross_layers:
            raise ValueError("a mixture needs at least one cross-attention layer; cross_layers is empty")
        ways = (("weights", "level", ("pair", "layer")), ("stage_weights", "stage", ()), ("sigma", "depth", ()))
        for name, kind, others in ways:
            given = getattr(self, name) is not None
            if self.weigh == kind and not given:
                raise ValueError(f"weigh={kind} needs {name}")
            if given and self.weigh not in (kind, *others):
                raise ValueError(f"{name} goes with weigh={kind}; weigh={self.weigh} does not read it")
        if self.stage_weights is not None and not any(self.stage_weights):
            raise ValueError("stage_weights are all 0")
        if self.score == "logits" and (self.share_out or self.normalise == "spatial_sum"):
            raise ValueError("logits have either sign, so that a sum of them divides nothing: score=softmax, text or exp")
        if self.normalise == "minmax" and self.share_out:
            raise ValueError(
                "normalise=minmax makes class maps of each level, of which share_out knows nothing: use one of them"
            )
        if self.normalise != "none" and self.weigh != "level":
            raise ValueError(f"normalise={self.normalise} is of a level's map; set weigh=level")
        if self.clamp and self.weigh not in ("pair", "layer"):
            raise ValueError("clamp resizes every head by itself, which goes with weigh=pair or layer")
        if self.clamp and (self.heads != "mean" or self.score == "text"):
            raise ValueError(
                "clamp averages all heads over the whole softmax: heads=mean and a score other than text go with it"
            )
        if self.coarsest is not None and self.weigh in ("stage", "depth"):
            raise ValueError(f"coarsest counts levels, and weigh={self.weigh} does not weigh levels")

    # What the rest of the program asks an aggregation for.
    @property
    def weighs_layers(self) -> bool:
        """Never: no layer is compared with a reference."""
        return False

    @property
    def reference(self) -> None:
        return None

    def level_weights(self, grids: Sequence[Grid]) -> dict[Grid, float]:
        """Weight of each level that the model has, not normalised.

        Raises:
            ModelError: none of the levels that the method weighs exists in this model.
        """
        return level_weights(self.weights, grids, self.coarsest)


def level_weights(weights: dict[int, float] | None, grids: Sequence[Grid], coarsest: int | None = None) -> dict[Grid, float]:
    """Weight of each grid from weights by factor; a factor that is not named has weight 0, and a single grid weight 1.

    `coarsest` takes all but so many of the coarsest grids the weight that they have.

    >>> level_weights({1: 0.1, 2: 0.9}, [(64, 64), (32, 32), (16, 16)])
    {(64, 64): 0.1, (32, 32): 0.9, (16, 16): 0.0}
    >>> level_weights(None, [(64, 64), (32, 32), (16, 16)], coarsest=2)
    {(64, 64): 0.0, (32, 32): 1.0, (16, 16): 1.0}
    """
    distinct = list(dict.fromkeys(grids))
    if weights is None or len(distinct) == 1:
        found = dict.fromkeys(distinct, 1.0)
    else:
        found = {grid: float(weights.get(factor(grid, distinct), 0.0)) for grid in distinct}
    for grid in sorted(distinct, key=max, reverse=True)[: -coarsest if coarsest else 0]:
        found[grid] = 0.0
    if not any(found.values()):
        known = ", ".join(f"{grid[0]} x {grid[1]}" for grid in distinct)
        raise ModelError(
            f"this method weighs levels {sorted(weights or ())} of a UNet, and none of them is in this model ({known})"
        )
    return found


def factor(grid: Grid, grids: Sequence[Grid]) -> int:
    """How many times the grid's longer side, which rounding changes least, fits into the finest one's.

    >>> factor((16, 16), [(64, 64), (16, 16)]), factor((1, 8), [(3, 30), (2, 15), (1, 8)])
    (4, 4)
    """
    return round(max(map(max, grids)) / max(grid))


def stages(grids: Sequence[Grid]) -> list[int]:
    """The stage of every layer in the order of the forward: a new one begins where the grid changes.

    >>> stages([(8, 8), (8, 8), (4, 4), (8, 8)])
    [0, 0, 1, 2]
    """
    numbers = [0] if grids else []
    for before, after in pairwise(grids):
        numbers.append(numbers[-1] + (before != after))
    return numbers


def stage_weights(weights: Sequence[float], grids: Sequence[Grid]) -> list[float]:
    """Weight of every layer from one number per stage.

    Raises:
        ModelError: as many numbers as the model has stages are needed; lists are made for one architecture.
    """
    numbers = stages(grids)
    if numbers and numbers[-1] + 1 != len(weights):
        raise ModelError(f"{len(weights)} stage weights for {numbers[-1] + 1} stages of this model; give one number for each")
    return [weights[number] for number in numbers]


def depth_weights(count: int, middle: float, sigma: float) -> Tensor:
    """exp(-(l - middle)^2 / (2 sigma^2)) of layers l = 0 ... count - 1."""
    return torch.exp(-((torch.arange(count) - middle) ** 2) / (2 * sigma**2))


def normalised(maps: Tensor, kind: str) -> Tensor:
    """Maps (..., h, w) divided by their sum over pixels, min-max normalised, or as they are."""
    if kind == "spatial_sum":
        return maps / maps.sum((-2, -1), keepdim=True)
    return minmax(maps) if kind == "minmax" else maps


def mix(
    levels: Sequence[tuple[Tensor, float]], size: Grid, normalise: str = "none", mode: Interpolation = "bilinear"
) -> Tensor:
    """Weighted mean of maps (..., h, w) of several grids at one size; `minmax` acts after resizing, `spatial_sum` before."""
    total = sum(weight for _, weight in levels)
    mixed = torch.zeros(())
    for maps, weight in levels:
        before, after = ("none", "minmax") if normalise == "minmax" else (normalise, "none")
        resized = normalised(resize(normalised(maps, before), size, mode), after)
        mixed = mixed.to(resized) + weight / total * resized
    return mixed
