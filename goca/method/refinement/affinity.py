"""Refinement by self-attention affinity (paper section 4.4)."""

from typing import Annotated

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.method.refinement.propagation import propagate


@dataclass(frozen=True, config=CONFIG)
class Affinity:
    """Pixels share scores with the pixels they attend to: X <- T X, T the mean self-attention of the listed layers.

    Rows of coarser layers are not renormalised after resizing, so those layers weigh more (docs/parity.md, P1).

    Args:
        layers: self-attention layers, names or globs.
        order: how often T is applied.
    """

    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    order: PositiveInt = 2

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the context's grid, each between 0 and 1."""
        names = resolve(self.layers, context.self_attention, "refinement: self-attention layers of the affinity")
        return propagate(maps, [context.self_attention[name] for name in names], self.order, context)
