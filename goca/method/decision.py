"""From class maps to a label per pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, PositiveInt, field_validator
from pydantic.dataclasses import dataclass
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from goca.data.base import IGNORE
from goca.errors import DataError
from goca.method.calibration import ClassMaps
from goca.ops import CONSTANT, blocks, resize
from goca.registry import Registry, dotted_path

BackgroundRule = Callable[[Tensor, float], Tensor]
RULES: Registry[BackgroundRule] = Registry("decision.rule", "background rule")
NEAR = 1e-5  # scores closer than this may change places with another order of summation
_CONFIG = ConfigDict(extra="forbid")


def _each_once(thresholds: tuple[float, ...]) -> tuple[float, ...]:
    """Results go by their threshold, written with six digits."""
    written = [f"{tau + 0.0:g}" for tau in thresholds]  # -0 is 0
    if again := [text for place, text in enumerate(written) if text in written[:place]]:
        raise ValueError(f"the threshold {again[0]} is given more than once (six digits count)")
    return thresholds


Thresholds = Annotated[tuple[FiniteFloat, ...], Field(min_length=1), AfterValidator(_each_once)]


class Decided(NamedTuple):
    """Labels, and how much of them another rounding could change."""

    labels: Tensor  # (T, H, W) class ids
    near_ties: tuple[int, ...]  # pixels at each threshold whose two best scores are within `NEAR`


def background_rule(function: BackgroundRule) -> BackgroundRule:
    """Make a function known to `Decision(rule=...)`: (supporting map (h, w), threshold) -> score of class 0 (h, w)."""
    RULES.register(function.__name__.rstrip("_"), function, dotted_path(function))
    return function


@background_rule
def constant(supporting: Tensor, tau: float) -> Tensor:
    """The threshold alone."""
    return torch.full_like(supporting, tau)


@background_rule
def max_(supporting: Tensor, tau: float) -> Tensor:
    """The supporting map, but at least the threshold."""
    return supporting.clamp(min=tau)


@background_rule
def exact(supporting: Tensor, tau: float) -> Tensor:
    """The supporting map; the threshold is not used."""
    return supporting


@background_rule
def average(supporting: Tensor, tau: float) -> Tensor:
    """The mean of the supporting map and the threshold."""
    return (supporting + tau) / 2


@background_rule
def offset(supporting: Tensor, tau: float) -> Tensor:
    """The supporting map plus the threshold: the default."""
    return supporting + tau


@background_rule
def complement(best: Tensor, tau: float) -> Tensor:
    """(1 - the highest class score)^2: the only rule that looks at the classes, not at the supporting map; no threshold."""
    return (1 - best) ** 2


def background_score(rule: str, supporting: Tensor, tau: float) -> Tensor:
    """Score of class 0 from the supporting map and one threshold; every threshold starts from the same map."""
    return RULES.find(rule)(supporting, tau)


@dataclass(frozen=True, config=_CONFIG)
class Decision:
    """Arg-max over the classes of the prompt and, where the data set has one, the background, for every threshold at once.

    Args:
        rule: score of the background.
        thresholds: tau of the rule.
        absent_classes: those that are not in the prompt do not compete, or have score 0 as in the released code.
        stretch: min-max normalise each class's map once it has the label's size, where thresholds are of the stretched map.
        resize: how maps are brought to the label's size.
        ties: who wins where the best class scores as the background does.
        eight_bits: round stretched scores to 255 steps, as a method does that keeps them in pictures.
        max_bytes: of upsampled maps at once.
    """

    rule: str = "offset"
    thresholds: Thresholds = (-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
    absent_classes: Literal["left_out", "zero"] = "left_out"
    max_bytes: PositiveInt = 2**26  # of upsampled maps at once
    stretch: bool = False
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    ties: Literal["background", "class"] = "background"
    eight_bits: bool = False

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        RULES.find(rule)
        return rule

    def __post_init__(self) -> None:
        if self.eight_bits and not self.stretch:
            raise ValueError("eight_bits rounds stretched scores: set stretch=true as well")

    @property
    def scale(self) -> str:
        """What thresholds are compared with, by which data sets fix theirs: the rule, or `stretched` maps with `constant`."""
        return "stretched" if self.stretch and self.rule == "constant" else self.rule

    @property
    def has_threshold(self) -> bool:
        """Whether the rule reads its threshold."""
        return self.rule not in ("exact", "complement")

    def taus(self, has_background: bool) -> tuple[float | None, ...]:
        """The thresholds that apply, one per label map of the result; (None,) where nothing is compared with a background."""
        return self.thresholds if has_background else (None,)

    def __call__(
        self, maps: ClassMaps, size: tuple[int, int], num_classes: int, has_background: bool = True, label: Tensor | None = None
    ) -> Tensor:
        """The label maps of `decide` alone."""
        return self.decide(maps, size, num_classes, has_background, label).labels

    def decide(
        self, maps: ClassMaps, size: tuple[int, int], num_classes: int, has_background: bool = True, label: Tensor | None = None
    ) -> Decided:
        """Label maps (T, H, W) of class ids at the label's size, uint8 (int16 from 256 classes on); ties go to the lowest id.

        Maps are upsampled a band of rows at a time. `label` is not used; `Hungarian` takes it.
        """
        order = sorted(range(len(maps.ids)), key=maps.ids.__getitem__)  # ascending ids: the first maximum is the lowest id
        ids = torch.tensor([0, *(maps.ids[i] for i in order)], device=maps.supporting.device)
        stack = torch.cat([maps.supporting[None], maps.scores[order]])  # (1 + C, h, w)
        absent = next((i for i in range(1, num_classes) if i not in maps.ids), None) if self.absent_classes == "zero" else None
        # A maximum propagates NaN: such a map would win everywhere, as in the released code (docs/parity.md, E3); here it loses
        nan = torch.inf if self.absent_classes == "zero" else -torch.inf
        dtype = torch.uint8 if num_classes <= IGNORE else torch.int16
        taus = self.taus(has_background)
        labels = torch.empty(len(taus), *size, dtype=dtype, device=stack.device)
        near = torch.zeros(len(taus), dtype=torch.long, device=stack.device)
        for rows, band in self.score_bands(stack, size):
            band = band.nan_to_num(nan, torch.inf, -torch.inf)
            best, best_id = _best(band[1:], ids[1:], absent)
            doubtful = near_best(band[1:], best)  # between two classes
            for t, tau in enumerate(taus):
                if tau is None:
                    labels[t, rows] = best_id.to(dtype)
                    near[t] += doubtful.sum()
                else:
                    background = background_score(self.rule, best if self.rule == "complement" else band[0], tau)
                    wins = background >= best if self.ties == "background" else background > best
                    labels[t, rows] = best_id.masked_fill(wins, 0).to(dtype)
                    near[t] += ((doubtful & ~wins) | ((background - best).abs() < NEAR)).sum()
        return Decided(labels, tuple(near.tolist()))

    def score_bands(self, stack: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
        """The scores that are compared, (C, rows, W) at the label's size, a band of rows at a time (bicubic: all at once)."""

        def bands() -> Iterator[tuple[slice, Tensor]]:
            if self.resize == "bicubic":
                return iter([(slice(0, size[0]), resize(stack, size, "bicubic"))])
            return upsampled_bands(stack, size, self.max_bytes)

        if not self.stretch:
            return bands()
        low, high = stack.new_full((len(stack),), torch.inf), stack.new_full((len(stack),), -torch.inf)
        for _, band in bands():
            low, high = torch.minimum(low, band.amin((1, 2))), torch.maximum(high, band.amax((1, 2)))
        return ((rows, self._stretched(band, low[:, None, None], high[:, None, None])) for rows, band in bands())

    def _stretched(self, band: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Between 0 and 1; a constant map is 0."""
        constant = high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
        scores = ((band - low) / (high - low)).masked_fill(constant, 0.0)
        return (scores * 255).round() / 255 if self.eight_bits else scores


def near_best(scores: Tensor, best: Tensor) -> Tensor:
    """Where the second highest of the scores (C, h, w) is within `NEAR` of the highest (h, w)."""
    return (scores > best - NEAR).sum(0) > 1


def _best(scores: Tensor, ids: Tensor, absent: int | None) -> tuple[Tensor, Tensor]:
    """Highest score and its class id per pixel; `absent` is the lowest id that competes with score 0. No class: -inf, 0."""
    if len(ids):
        best, channel = scores.max(0)
        best_id = ids[channel]
    else:
        best = scores.new_full(scores.shape[1:], -torch.inf)
        best_id = torch.zeros_like(best, dtype=torch.long)
    if absent is not None:
        wins = (best < 0) | ((best == 0) & (best_id > absent))
        best, best_id = best.clamp(min=0), best_id.masked_fill(wins, absent)
    return best, best_id


def upsampled_bands(maps: Tensor, size: tuple[int, int], max_bytes: int) -> Iterator[tuple[slice, Tensor]]:
    """Bands of rows of `resize(maps, size)`: pairs (rows, (C, rows, W)), each within `max_bytes` or one row high."""
    height, (target_height, target_width) = maps.shape[-2], size
    wide = resize(maps, (height, target_width))  # (C, h, W)
    centre = ((torch.arange(target_height, device=maps.device) + 0.5) * (height / target_height) - 0.5).clamp(min=0)
    above = centre.long()
    below = (above + 1).clamp(max=height - 1)
    weight = (centre - above).to(maps.dtype)[:, None]
    # Three tensors of the band's size are alive in the interpolation.
    for rows in blocks(target_height, 3 * len(maps) * target_width * maps.element_size(), max_bytes):
        yield rows, torch.lerp(wide[:, above[rows]], wide[:, below[rows]], weight[rows])


@dataclass(frozen=True, config=_CONFIG)
class Hungarian:
    """The unsupervised protocol: maps are clusters, and each is given the class that its image's ground truth matches best."""

    max_bytes: PositiveInt = 2**26

    has_threshold: ClassVar[bool] = False

    def taus(self, has_background: bool) -> tuple[float | None, ...]:
        """No thresholds: (None,)."""
        return (None,)

    def __call__(
        self, maps: ClassMaps, size: tuple[int, int], num_classes: int, has_background: bool = True, label: Tensor | None = None
    ) -> Tensor:
        """The label map of `decide` alone."""
        return self.decide(maps, size, num_classes, has_background, label).labels

    def decide(
        self, maps: ClassMaps, size: tuple[int, int], num_classes: int, has_background: bool = True, label: Tensor | None = None
    ) -> Decided:
        """Label map (1, H, W): arg-max over the maps (also the supporting map unless all zero), then `match_clusters`."""
        if label is None:
            raise DataError("decision=hungarian matches clusters to ground truth, and this image has none; use decision=offset")
        stack = maps.stack(with_supporting=bool(maps.supporting.any()) or not maps.ids)
        clusters = torch.empty(size, dtype=torch.long, device=stack.device)
        near = 0
        for rows, band in upsampled_bands(stack, size, self.max_bytes):
            clusters[rows] = band.argmax(0)
            near += int(near_best(band, band.amax(0)).sum())
        return Decided(match_clusters(clusters, label.to(stack.device), num_classes, has_background)[None], (near,))


def match_clusters(
    clusters: Tensor, label: Tensor, num_classes: int, has_background: bool = True, ignore: int = IGNORE
) -> Tensor:
    """Class ids (H, W) in place of cluster ids (H, W): matched one to one over the whole image for the most hits (5b).

    Clusters that find no class become 0. Without a background class, 0 is not a class either and pixels labelled so do not
    count.

    >>> match_clusters(torch.tensor([[5, 5, 2]]), torch.tensor([[1, 1, 0]]), num_classes=2).tolist()
    [[1, 1, 0]]
    """
    first = 0 if has_background else 1
    # At least as many columns as classes, as the protocol's usual code has it: ties at zero hits then fall the same way.
    count = max(int(clusters.max()) + 1, num_classes - first)
    kept = (label != ignore) & (label >= first)
    pairs = (label[kept].long() - first) * count + clusters[kept].long()
    hits = torch.bincount(pairs, minlength=(num_classes - first) * count).view(num_classes - first, count)
    rows, columns = linear_sum_assignment(hits.cpu().numpy(), maximize=True)
    classes = torch.zeros(count, dtype=torch.long)
    classes[torch.from_numpy(columns)] = torch.from_numpy(rows) + first
    return classes.to(clusters.device)[clusters.long()]
