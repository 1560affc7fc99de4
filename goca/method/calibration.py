"""From token maps to one calibrated score map per class (paper section 4.3).

A calibration is a chain of named steps. A step is `step(maps (G, h, w), groups) -> (G, h, w)`; yours is one decorated function

    @calibration_step
    def square(maps, groups):
        return maps**2

used as `steps: [per_pixel, square]` once its module is imported, or as `steps: [per_pixel, my_module.square]` without that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from pydantic import ConfigDict, field_validator
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from goca import ops
from goca.method.clusters import clustered
from goca.method.losses import LossExponents
from goca.registry import Registry, dotted_path


class TokenGroups(Protocol):
    """What calibration reads of a prompt; `goca.prompts.prompt.Prompt` has it."""

    @property
    def class_tokens(self) -> Mapping[int, tuple[int, ...]]: ...
    @property
    def background_groups(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def content(self) -> tuple[int, ...]: ...
    @property
    def alternatives(self) -> Mapping[int, tuple[tuple[int, ...], ...]]: ...
    @property
    def lost_classes(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class PlainGroups:
    """`TokenGroups` without a prompt around them: for tokens that were chosen, or brought together, otherwise."""

    class_tokens: Mapping[int, tuple[int, ...]]
    content: tuple[int, ...]
    background_groups: tuple[tuple[int, ...], ...] = ()
    alternatives: Mapping[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    lost_classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassMaps:
    """Scores of the classes of one prompt: what calibration makes, refinement changes and the decision reads."""

    ids: tuple[int, ...]  # class id of each channel, in prompt order
    scores: Tensor  # (C, h, w) float32
    supporting: Tensor  # (h, w) float32: the background groups' maximum; zeros without such groups
    raw: Tensor  # (C, h', w') float32: grouped, not calibrated, on the grid of the token maps
    warnings: tuple[str, ...] = ()
    named: bool = True  # False: `ids` number segments that have no class yet

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        height, width = self.supporting.shape
        return height, width

    def stack(self, with_supporting: bool = True) -> Tensor:
        """Class maps and, as the last channel, the supporting map: (C + 1, h, w), or (C, h, w) without it."""
        return torch.cat([self.scores, self.supporting[None]]) if with_supporting else self.scores

    def with_stack(self, maps: Tensor, *warnings: str) -> "ClassMaps":
        """The same classes with other maps (C + 1, h, w) or, where the supporting map was all zero, (C, h, w)."""
        count = len(self.ids)
        supporting = maps[count] if len(maps) > count else maps.new_zeros(maps.shape[-2:])
        return replace(self, scores=maps[:count], supporting=supporting, warnings=(*self.warnings, *warnings))


@dataclass(frozen=True)
class Groups:
    """What a step may use besides the maps it changes."""

    raw: Tensor  # (G, h, w): classes, then background groups, before any step
    factor: Tensor  # (h, w): sum of the maps of all content tokens
    alone: bool  # one group holds every content token, so X / factor is a constant
    parity: bool  # keep the released code's arithmetic where it breaks (0/0)
    exponents: Tensor | None = None  # (G,): of the step `power`


CalibrationStep = Callable[[Tensor, Groups], Tensor]
STEPS: Registry[CalibrationStep] = Registry("calibration.steps", "step")


def calibration_step(function: CalibrationStep) -> CalibrationStep:
    """Make a function known to `Calibration(steps=...)` under its own name."""
    STEPS.register(function.__name__.rstrip("_"), function, dotted_path(function))
    return function


def _divide(maps: Tensor, divisor: Tensor, parity: bool) -> Tensor:
    """maps / divisor, and 0 where the divisor is 0, unless parity keeps the released code's inf and NaN."""
    quotient = maps / divisor
    return quotient if parity else quotient.masked_fill(divisor == 0, 0.0)


@calibration_step
def per_pixel(maps: Tensor, groups: Groups) -> Tensor:
    """X / factor: the paper's rescaling, which takes out the mass that special tokens hold at each pixel."""
    return maps if groups.alone and not groups.parity else _divide(maps, groups.factor, groups.parity)


@calibration_step
def max_(maps: Tensor, groups: Groups) -> Tensor:
    """X / its maximum over pixels."""
    return _divide(maps, maps.amax((-2, -1), keepdim=True), groups.parity)


@calibration_step
def minmax(maps: Tensor, groups: Groups) -> Tensor:
    """Blurred (5x5, sigma 1.1), then min-max normalised."""
    return ops.minmax(ops.gaussian_blur(maps), groups.parity)


@calibration_step
def stretch(maps: Tensor, groups: Groups) -> Tensor:
    """Min-max normalised without a blur."""
    return ops.minmax(maps, groups.parity)


@calibration_step
def stretch_softly(maps: Tensor, groups: Groups) -> Tensor:
    """Min-max normalised without a blur, 1e-6 added to the divisor: a nearly constant map stays small."""
    return _stretch_softly(maps)


@calibration_step
def power(maps: Tensor, groups: Groups) -> Tensor:
    """X to the power of the group's exponent, which says how well the model predicts the picture given that word."""
    return maps if groups.exponents is None else maps ** groups.exponents.to(maps)[:, None, None]


@calibration_step
def lift(maps: Tensor, groups: Groups) -> Tensor:
    """X / its mean over pixels: how much more likely a pixel makes a group, whatever share the group has of all attention."""
    return _divide(maps, maps.mean((-2, -1), keepdim=True), groups.parity)


@calibration_step
def share(maps: Tensor, groups: Groups) -> Tensor:
    """X / the sum of all groups as they now are, per pixel; `per_pixel` divides by the sum of the tokens' raw maps."""
    return maps if groups.alone and not groups.parity else _divide(maps, maps.sum(0), groups.parity)


@calibration_step
def times_raw(maps: Tensor, groups: Groups) -> Tensor:
    """X times the group's uncalibrated scores."""
    return maps * groups.raw


TokenStep = Callable[[Tensor], Tensor]


def _stretch_softly(maps: Tensor) -> Tensor:
    shifted = maps - maps.amin((-2, -1), keepdim=True)
    return shifted / (shifted.amax((-2, -1), keepdim=True) + 1e-6)


# Before tokens are joined: on maps (n, h, w) of all tokens, special ones included.
TOKEN_STEPS: dict[str, TokenStep] = {"cluster": clustered, "stretch": _stretch_softly}


@config_dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Calibration:
    """Groups the tokens' maps by class and passes them through a chain of steps.

    Args:
        steps: names of steps on the groups' maps, in order.
        token_reduction: of the tokens of a class or background group.
        parity: keep what the released code computes where it breaks: NaN, and maps of classes without tokens.
        token_steps: steps on all tokens' maps before they are joined: `cluster` gives every pixel the mean of the pixels that
            say nearly the same about all tokens; `stretch` min-max normalises each token.
        token_choice: `last` takes a class's last token alone.
        exponents: of the step `power`; measured on each image with further forwards.
    """

    steps: tuple[str, ...] = ("per_pixel", "minmax")
    token_reduction: Literal["mean", "sum"] = "mean"
    parity: bool = False
    token_steps: tuple[Literal["cluster", "stretch"], ...] = ()
    token_choice: Literal["all", "last"] = "all"
    exponents: LossExponents | None = None

    @field_validator("steps")
    @classmethod
    def _known(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        for name in steps:
            STEPS.find(name)
        return steps

    def __call__(
        self,
        token_maps: Tensor,
        prompt: TokenGroups,
        levels: Sequence[tuple[Tensor, float]] = (),
        exponents: Mapping[int, float] | None = None,
    ) -> ClassMaps:
        """Token maps (n, h, w) on the prompt's text axis -> class maps. Negative values are the caller's to clamp.

        Args:
            levels: maps (n, h, w) of each resolution with its weight, where the groups' maps are to be min-max normalised
                within a resolution and then mixed.
            exponents: of the step `power`, by class; others have 1.
        """
        token_maps = token_maps.float()
        for token_step in self.token_steps:
            token_maps = TOKEN_STEPS[token_step](token_maps)
        kept = {class_id: tokens for class_id, tokens in prompt.class_tokens.items() if tokens or self.parity}
        kept |= dict.fromkeys(prompt.lost_classes if self.parity else (), ())
        lost = sorted(prompt.class_tokens.keys() - kept)
        warnings = [f"class {class_id} has no token in the prompt and is left out" for class_id in lost]
        # A class that is asked for by several words has a group for each, and the maximum of their maps in the end.
        words = [(class_id, tokens) for class_id in kept for tokens in prompt.alternatives.get(class_id, (kept[class_id],))]
        members = [*(tokens for _, tokens in words), *prompt.background_groups]
        raw = self._group(token_maps, members)  # (G, h, w)
        if levels and members:
            raw = torch.stack([weight * ops.minmax(self._group(part.float(), members)) for part, weight in levels]).sum(0)
        alone = len(members) == 1 and set(members[0]) >= set(prompt.content)
        factor = token_maps[list(prompt.content)].sum(0)
        powers = None
        if exponents is not None:
            powers = torch.tensor([exponents.get(i, 1.0) for i, _ in words] + [1.0] * len(prompt.background_groups))
        groups = Groups(raw, factor, alone, self.parity, powers)
        maps = raw
        for name in self.steps:
            maps = STEPS.find(name)(maps, groups)
        if not self.parity:
            names = [f"class {class_id}" for class_id, _ in words]
            names += [f"background group {number}" for number in range(len(prompt.background_groups))]
            maps, silenced = _silence(maps, names)
            warnings += [f"the map of {name} is constant or not finite and counts as zero" for name in silenced]
        scores, background = maps[: len(words)], maps[len(words) :]
        supporting = background.amax(0) if len(background) else maps.new_zeros(token_maps.shape[-2:])
        ids, (scores, raw) = highest([class_id for class_id, _ in words], scores, raw[: len(words)])
        return ClassMaps(ids, scores, supporting, raw, tuple(dict.fromkeys(warnings)))

    def _group(self, token_maps: Tensor, members: list[tuple[int, ...]]) -> Tensor:
        """Mean or sum of each group's token maps: (G, h, w)."""
        if not members:
            return token_maps[:0]
        reduce = torch.mean if self.token_reduction == "mean" else torch.sum
        chosen = [tokens[-1:] if self.token_choice == "last" else tokens for tokens in members]
        return torch.stack([reduce(token_maps[list(tokens)], dim=0) for tokens in chosen])


def highest(ids: Sequence[int], *stacks: Tensor) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
    """One channel per class: the maximum of those that have its id, in the order in which the ids first occur.

    Args:
        ids: class of each channel.
        stacks: maps (C, h, w).
    """
    places: dict[int, list[int]] = {}
    for place, class_id in enumerate(ids):
        places.setdefault(class_id, []).append(place)
    if len(places) == len(ids):
        return tuple(ids), stacks
    return tuple(places), tuple(torch.stack([maps[found].amax(0) for found in places.values()]) for maps in stacks)


def _silence(maps: Tensor, names: list[str]) -> tuple[Tensor, list[str]]:
    """Zeros in place of maps that are constant or not finite, and their names: they could win everywhere."""
    unusable = ops.is_constant(maps) | ~maps.isfinite().flatten(1).all(1)
    silenced = [name for name, bad in zip(names, unusable.tolist(), strict=True) if bad]
    return maps.masked_fill(unusable[:, None, None], 0.0), silenced
