"""Refinement by products with self-attention, nothing normalised in between (DiffSegmenter, ELBO-T2IAlign)."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.method.refinement.levels import Factors, Part, choose
from goca.method.refinement.propagation import Propagation
from goca.ops import resize


@dataclass(frozen=True, config=CONFIG)
class Round:
    """One product X <- T X, T the mean self-attention of these layers (`choose` says which they are)."""

    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("*",)
    factors: Factors | None = None
    part: Part = "all"


@dataclass(frozen=True, config=CONFIG)
class Rounds:
    """X <- T_k ... T_1 X. Unlike `Affinity` the result keeps its scale: where rows of T sum to less than 1, that matters.

    Args:
        rounds: in the order in which they are applied.
    """

    rounds: Annotated[tuple[Round, ...], Field(min_length=1)]

    scale: ClassVar[str] = "kept"

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=tuple(dict.fromkeys(name for each in self.rounds for name in each.layers)))

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the context's grid."""
        stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), context.size)
        for each in self.rounds if len(stack) else ():
            layers = choose(context, each.layers, "refinement: self-attention layers of a round", each.factors, each.part)
            stack = Propagation(layers, context.size, 0, context.max_bytes)(stack)
        return maps.with_stack(stack)
