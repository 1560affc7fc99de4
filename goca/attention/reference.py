"""How well a layer's self-attention agrees with the reference affinity R, which gives the layer its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from goca.attention.call import AttentionCall, blocks, probabilities
from goca.attention.reductions import blocks_of_rows, inner_product
from goca.method.aggregation import layers

_KEPT_SHARE = 8  # part of the byte budget that the kept rows of one layer may take


@dataclass(frozen=True)
class KnownRows:
    """Head-mean self-attention that layer weights needed, kept for a refinement: each image's query rows and their values."""

    queries: Sequence[Tensor]  # (q,) of each image
    values: Sequence[Tensor] | Tensor  # (q, S) of each image


class Reference:
    """The reference affinity R of a batch: kept whole while it fits the byte budget, else recomputed block by block.

    Args:
        feature: (B, C, h, w), what R compares.
        max_bytes: of R, and of a block of attention.
        rows: query rows of R that count: as `Aggregation.rows` has it, or those of one image (r,) with how many rows each
            stands for (r,).
    """

    def __init__(self, feature: Tensor, max_bytes: int, rows: int | Literal["all", "auto"] | tuple[Tensor, Tensor]) -> None:
        self.feature, self.max_bytes = feature, max_bytes
        self.grid = (feature.shape[2], feature.shape[3])
        pixels = self.grid[0] * self.grid[1]
        self._factors: Tensor | None = None
        if isinstance(rows, tuple):
            self.rows, self._factors = rows
        else:
            self.rows = layers.sampled_rows(self.grid, rows)
        self._whole = 4 * feature.shape[0] * len(self.rows) * pixels <= max_bytes
        self._on_grid: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # R on layers' grids, and the query rows it meets
        # Where rows are drawn, each image has its own, which its R says; the common ones serve methods that are no sum of rows.
        drawn = rows == "auto" and len(self.rows) < pixels and self._whole
        self._images = [self._of_image(one, len(self.rows)) for one in feature.split(1)] if drawn else []

    def _of_image(self, feature: Tensor, count: int) -> Reference:
        rows, factors = layers.rows_by_importance(layers.reference_diagonal(feature[0]), self.grid, count)
        return Reference(feature, self.max_bytes, (rows.cpu(), factors))  # where rows lie is worked out on the CPU

    @cached_property
    def _affinity(self) -> Tensor | None:
        """Rows of R (B, r, h * w), each times the number of rows that it stands for; None where they do not fit."""
        if not self._whole:
            return None
        affinity = layers.reference_affinity(self.feature, self.rows.to(self.feature.device))
        return affinity if self._factors is None else affinity * self._factors[:, None]

    def agreement(
        self, method: str, call: AttentionCall, renormalize: bool, keep: dict[str, KnownRows] | None = None
    ) -> Tensor:
        """The layer's weight before normalisation, one per image: (B,). Attention rows that it took go to `keep`."""
        if method == "dot_product" and self._images and not renormalize:
            return self._one_by_one(call, keep)
        chosen = layers.METHODS.find(method)
        partial, weight = chosen.partial, chosen.weight
        if method == "dot_product" and self._affinity is not None and not renormalize:
            fused = self._fused(call, keep)
            if fused is not None:
                return fused
        by_row_fits = 4 * call.query.shape[0] * len(self.rows) * call.grid[0] * call.grid[1] <= self.max_bytes
        if chosen.linear and self._affinity is not None and by_row_fits and not renormalize:
            parts = self._on_the_layers_grid(call, partial, self._affinity, keep)
        else:
            parts = self._on_the_reference_grid(call, partial, renormalize)
        statistics: dict[int, Tensor] = {}
        for batch, values in parts:
            for image, value in zip(range(batch.start, batch.stop), values, strict=True):
                statistics[image] = statistics[image] + value if image in statistics else value
        return weight(torch.stack([statistics[image] for image in sorted(statistics)]))

    def _one_by_one(self, call: AttentionCall, keep: dict[str, KnownRows] | None) -> Tensor:
        """sum(R * P), estimated from rows that were drawn for each image."""
        if len(self._images) == 1:
            return self._images[0].agreement("dot_product", call, False, keep)
        totals: list[Tensor] = []
        known: list[KnownRows] = []
        for image, reference in enumerate(self._images):
            own: dict[str, KnownRows] | None = None if keep is None else {}
            totals.append(reference.agreement("dot_product", call.image_at(image), False, own))
            known += [] if own is None else own.values()
        if keep is not None and len(known) == len(self._images):
            keep[call.layer] = KnownRows(tuple(one.queries[0] for one in known), tuple(one.values[0] for one in known))
        return torch.cat(totals)

    def _on_the_reference_grid(
        self, call: AttentionCall, partial: Callable[[Tensor, Tensor], Tensor], renormalize: bool
    ) -> Iterator[tuple[slice, Tensor]]:
        """Statistics of blocks of R's rows, the layer's attention being resized to them."""
        assert call.image is not None
        device = call.query.device
        sources = layers.nearest_rows(call.grid, self.grid)[self.rows]
        for batch, rows in blocks(call, call.image, len(self.rows), self.max_bytes):
            # Neighbouring rows of the reference grid share a source row of a coarser layer: compute each once.
            source, inverse = sources[rows].unique(return_inverse=True)
            attention = probabilities(call, call.image, batch, source.to(device)).mean(1)
            attention = layers.resize_keys(attention, call.grid, self.grid)[:, inverse.to(device)]
            if renormalize:
                attention = attention / attention.sum(-1, keepdim=True)
            yield batch, partial(self._affinity_rows(batch, rows), attention)

    def _on_the_layers_grid(
        self,
        call: AttentionCall,
        partial: Callable[[Tensor, Tensor], Tensor],
        affinity: Tensor,
        keep: dict[str, KnownRows] | None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """The same sum for a linear method: R is brought to the layer's grid, once per grid, instead of every layer to R's."""
        assert call.image is not None
        moved, queries = self._moved(call.grid, affinity)
        kept = None
        if keep is not None and 4 * moved.numel() <= self.max_bytes // _KEPT_SHARE:
            kept = torch.empty_like(moved)
            keep[call.layer] = KnownRows((queries,) * len(moved), kept)
        for batch, rows, attention in blocks_of_rows(call, queries, self.max_bytes):
            if kept is not None:
                kept[batch, rows] = attention
            yield batch, partial(moved[batch, rows], attention)

    def _moved(self, grid: tuple[int, int], affinity: Tensor) -> tuple[Tensor, Tensor]:
        """R on a layer's grid and the query rows it meets there, computed once per grid."""
        if grid not in self._on_grid:
            self._on_grid[grid] = layers.on_layer_grid(affinity, self.rows, self.grid, grid)
        return self._on_grid[grid]

    def _fused(self, call: AttentionCall, keep: dict[str, KnownRows] | None) -> Tensor | None:
        """sum(R * P) for every image by one fused kernel; None where it does not fit. Rows it took go to `keep`."""
        assert self._affinity is not None
        moved, queries = self._moved(call.grid, self._affinity)
        kept = keep is not None and 4 * moved.numel() <= self.max_bytes // _KEPT_SHARE
        found = inner_product(call, queries, moved, kept)
        if found is None:
            return None
        product, values = found
        if keep is not None and values is not None:
            keep[call.layer] = KnownRows((queries,) * len(values), values)
        return product.sum(1)

    def _affinity_rows(self, batch: slice, rows: slice) -> Tensor:
        if self._affinity is not None:
            return self._affinity[batch, rows]
        return layers.reference_affinity(self.feature[batch], self.rows[rows].to(self.feature.device))
