"""Which self-attention layers a refinement takes: by name, by resolution, or the decoder's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from goca.errors import ModelError
from goca.layer_names import resolve
from goca.method.aggregation.mixture import factor
from goca.method.refinement.base import RefinementContext, SelfAttention

Part = Literal["all", "decoder"]
Factors = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
Places = Annotated[tuple[int, ...], Field(min_length=1)]


def choose(
    context: RefinementContext,
    layers: Sequence[str],
    what: str,
    factors: Sequence[int] | None = None,
    part: Part = "all",
    places: Sequence[int] | None = None,
) -> list[SelfAttention]:
    """Self-attention of the layers that match, in the model's order.

    Args:
        layers: names or globs.
        what: who asks, for messages.
        factors: only grids whose side fits so many times into the finest one's; a model with one grid has factor 1 alone, and
            then all its layers are taken.
        part: `decoder` keeps the layers of a UNet's `up_blocks`; models without such layers keep all.
        places: of what is left only these, -1 being the last, in the model's order; those that a model lacks are left out.

    Raises:
        ModelError: nothing is left.
    """
    names = resolve(layers, context.self_attention, what)
    grids = [context.self_attention[name].grid for name in names]
    if factors is not None and len(set(grids)) > 1:
        names = tuple(name for name, grid in zip(names, grids, strict=True) if factor(grid, grids) in factors)
    if part == "decoder" and any(name.startswith("up") for name in names):
        names = tuple(name for name in names if name.startswith("up"))
    if places is not None and names:
        wanted = {place % len(names) for place in places if -len(names) <= place < len(names)}
        if not wanted:
            raise ModelError(f"{what}: there is no layer number {' or '.join(map(str, places))} among {', '.join(names)}")
        names = tuple(name for place, name in enumerate(names) if place in wanted)
    if not names:
        known = ", ".join(sorted({f"{height} x {width}" for height, width in grids}))
        raise ModelError(
            f"{what}: no layer is {' or '.join(map(str, factors or ()))} times coarser than the finest; grids: {known}"
        )
    return [context.self_attention[name] for name in names]


def by_grid(attention: Sequence[SelfAttention]) -> dict[tuple[int, int], list[SelfAttention]]:
    """Layers by their grid, finest first."""
    groups: dict[tuple[int, int], list[SelfAttention]] = {}
    for layer in sorted(attention, key=lambda layer: -layer.grid[0] * layer.grid[1]):
        groups.setdefault(layer.grid, []).append(layer)
    return groups
