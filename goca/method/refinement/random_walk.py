"""Refinement by a random walk with restart along self-attention (Tong, Faloutsos and Pan, ICDM 2006)."""

from typing import Annotated

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from goca.layer_names import resolve
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import CONFIG, Needs, RefinementContext
from goca.method.refinement.propagation import propagate


@dataclass(frozen=True, config=CONFIG)
class RandomWalk:
    """X <- (1 - restart) T X + restart X_0: scores spread as in `Affinity`, and what a pixel said itself is not forgotten.

    Small objects survive many steps, so that the number of steps hardly matters, unlike the order of `Affinity`.

    Args:
        layers: self-attention layers, names or globs; T is their mean with rows that sum to 1.
        restart: share of the maps as they were before refinement.
        steps: how often T is applied; what further steps change falls by 1 - restart with each.
    """

    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    restart: Annotated[float, Field(gt=0, lt=1)] = 0.4
    steps: PositiveInt = 8

    @property
    def needs(self) -> Needs:
        return Needs(self_attention=self.layers)

    def refine(self, maps: ClassMaps, context: RefinementContext) -> ClassMaps:
        """Maps on the context's grid, each between 0 and 1."""
        names = resolve(self.layers, context.self_attention, "refinement: self-attention layers of the random walk")
        affinities = [context.self_attention[name] for name in names]
        return propagate(maps, affinities, self.steps, context, restart=self.restart)
