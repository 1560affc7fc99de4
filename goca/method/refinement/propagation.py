"""Class maps spread along an affinity between pixels, without the matrix T ever standing at full size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from goca.method.aggregation.layers import nearest_rows, resize_keys
from goca.method.calibration import ClassMaps
from goca.method.refinement.base import KernelSelfAttention, RefinementContext, SelfAttention
from goca.ops import Interpolation, blocks, is_constant, minmax, resize, resize_adjoint

_BLOCK_BYTES = 8 * 2**20  # of one layer's rows and their sum


def propagate(
    maps: ClassMaps,
    affinities: Sequence[SelfAttention],
    order: int,
    context: RefinementContext,
    mode: Interpolation | None = None,
    restart: float = 0.0,
) -> ClassMaps:
    """Replace every map X by T X, `order` times, then min-max normalise each; T is the mean of the affinities.

    With `restart`, X becomes (1 - restart) T' X + restart X_0, where T' is T with rows that sum to 1 and X_0 the maps given.

    An all-zero supporting map is left out and put back. A map that T has levelled to a constant becomes zeros, with a warning.
    `mode` as in `Propagation`.
    """
    stack = resize(maps.stack(with_supporting=bool(maps.supporting.any())), context.size)
    if not len(stack):
        return maps.with_stack(stack)
    operator = Propagation(affinities, context.size, context.max_bytes if order > 1 else 0, context.max_bytes, mode)
    start, before = stack, is_constant(stack)
    rows = operator(torch.ones_like(stack[:1])) if restart else None  # what T's rows sum to
    for _ in range(order):
        stack = operator(stack)
        if rows is not None:
            stack = torch.lerp(stack / rows, start, restart)
    names = [*(f"class {class_id}" for class_id in maps.ids), "the background"]
    levelled = (is_constant(stack) & ~before).tolist()
    warnings = [f"the affinity levels the map of {names[i]}, which counts as zero" for i, gone in enumerate(levelled) if gone]
    return maps.with_stack(minmax(stack), *warnings)


class Propagation:
    """The linear operator X -> T X on maps (C, h, w), T = mean over affinities of each one resized to the maps' grid.

    Upstream resizes each affinity P to |maps|^2: keys bilinearly, queries to the nearest row. Resizing is linear, so T X is
    resize(P resize_adjoint(X)): P stays on its own grid, affinities of one grid are added up, and rows that the nearest rule
    skips are not computed. With `mode`, queries and keys are both resized in that mode.

    Args:
        affinities: rows on request.
        size: grid of the maps.
        keep_bytes: rows are kept between calls if all of them fit in this, else computed again for each call.
        max_bytes: of rows at once.
    """

    def __init__(
        self,
        affinities: Sequence[SelfAttention],
        size: tuple[int, int],
        keep_bytes: int,
        max_bytes: int,
        mode: Interpolation | None = None,
    ) -> None:
        def grid(affinity: SelfAttention) -> tuple[int, int]:
            return affinity.grid

        groups = [list(group) for _, group in groupby(sorted(affinities, key=grid), key=grid)]
        self._terms = [_Term(group, size, mode, max_bytes) for group in groups]
        self._count = len(affinities)
        self._kept = [list(term.rows()) for term in self._terms] if sum(t.bytes for t in self._terms) <= keep_bytes else None
        # Rows that are used more than once pay for themselves; otherwise the attention kernel may be faster without them.
        by_kernel = all(isinstance(affinity, KernelSelfAttention) and affinity.through_kernel for affinity in affinities)
        self._through_kernel = by_kernel and mode is None and self._kept is None

    def __call__(self, maps: Tensor) -> Tensor:
        """T X for maps (C, h, w)."""
        if self._through_kernel:
            return sum((term.apply(maps) for term in self._terms), maps.new_zeros(())) / self._count
        kept: Sequence[Iterable[Tensor]] = self._kept or [term.rows() for term in self._terms]
        return sum((term(maps, rows) for term, rows in zip(self._terms, kept, strict=True)), maps.new_zeros(())) / self._count


def affinity_rows(
    affinities: Sequence[SelfAttention], size: tuple[int, int], max_bytes: int, index: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of T for all or the given pixels of the `size` grid: pairs (slice of index, (r, pixels)) within `max_bytes`."""
    index = torch.arange(size[0] * size[1]) if index is None else index
    finest = max(height * width for height, width in (size, *(affinity.grid for affinity in affinities)))
    for block in blocks(len(index), 3 * 4 * finest, max_bytes):
        total = torch.zeros(())
        for affinity in affinities:
            # Neighbouring pixels may take the same row of a coarser layer: compute it once.
            source, inverse = nearest_rows(affinity.grid, size)[index[block]].unique(return_inverse=True)
            rows = resize_keys(affinity.rows(source), affinity.grid, size)
            total = total.to(rows.device) + rows[inverse.to(rows.device)]
        yield block, total / len(affinities)


@dataclass
class _Term:
    """The affinities of one grid, summed."""

    affinities: list[SelfAttention]
    size: tuple[int, int]
    mode: Interpolation | None
    max_bytes: int

    def __post_init__(self) -> None:
        self.grid = self.affinities[0].grid
        pixels = self.grid[0] * self.grid[1]
        # Query rows in use, and for each pixel of the maps which of them it takes.
        self.source, self.inverse = nearest_rows(self.grid, self.size).unique(return_inverse=True)
        if self.mode:
            self.source = torch.arange(pixels)
        # A finer grid's keys are brought to the maps' grid at once: fewer bytes, and T X needs no adjoint.
        self.coarsens = self.mode is None and pixels > self.size[0] * self.size[1]
        self.keys = self.size if self.coarsens else self.grid
        self.bytes = 4 * len(self.source) * self.keys[0] * self.keys[1]

    def rows(self) -> Iterator[Tensor]:
        """The rows in use, summed over affinities: blocks (r, keys)."""
        # Small blocks are added up within a CPU's cache; a GPU wants few and large ones.
        by_kernel = any(isinstance(affinity, KernelSelfAttention) and affinity.through_kernel for affinity in self.affinities)
        block_bytes = self.max_bytes if by_kernel else min(self.max_bytes, _BLOCK_BYTES)
        for block in blocks(len(self.source), 2 * 4 * self.grid[0] * self.grid[1], block_bytes):
            index = self.source[block]
            total = self.affinities[0].rows(index)
            for affinity in self.affinities[1:]:
                total += affinity.rows(index)
            yield resize_keys(total, self.grid, self.size) if self.coarsens else total

    def apply(self, maps: Tensor) -> Tensor:
        """The term's part of T X by attention kernels, with the maps as values."""
        values = resize_adjoint(maps, self.grid).flatten(1).T  # (keys, C)
        every = len(self.source) == self.grid[0] * self.grid[1]
        source = None if every else self.source.to(maps.device)
        moved = values.new_zeros(())
        for affinity in self.affinities:
            assert isinstance(affinity, KernelSelfAttention)
            moved = moved + affinity.apply(values, source).T
        return moved[:, self.inverse.to(moved.device)].unflatten(1, self.size)

    def __call__(self, maps: Tensor, rows: Iterable[Tensor]) -> Tensor:
        values = resize_adjoint(maps, self.keys, self.mode or "bilinear").flatten(1).T  # (keys, C)
        moved = torch.cat([block @ values for block in rows]).T  # (C, rows)
        if self.mode:
            return resize(moved.unflatten(1, self.grid), self.size, self.mode)
        return moved[:, self.inverse.to(moved.device)].unflatten(1, self.size)
