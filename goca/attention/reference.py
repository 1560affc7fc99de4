"""The reference affinity R and how far layers agree with it: what layer weights are made of (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from goca.attention.call import AttentionCall, blocks, probabilities
from goca.attention.reductions import blocks_of_rows, inner_product
from goca.method.aggregation import layers

_KEPT_SHARE = 8  # part of the byte budget that the kept rows of one layer may take


@dataclass(frozen=True)
class KnownRows:
    """Head-mean self-attention that layer weights needed, kept for a refinement: `values` (B, q, S) of the `queries` (q,)."""

    queries: Tensor
    values: Tensor


@dataclass(frozen=True)
class Agreement:
    """A layer's `weight` (B,) before normalisation.

    `by_row` (B, r): what each of the reference's rows adds to it, where these are a sample and the method is a sum over rows.
    """

    weight: Tensor
    by_row: Tensor | None = None


_Block = tuple[slice, slice, Tensor, Tensor]  # images, rows, and of these R and P


class Reference:
    """The reference affinity R of a batch: kept whole while it fits the byte budget, else recomputed block by block."""

    def __init__(self, feature: Tensor, max_bytes: int, rows: int | Literal["all", "auto"]) -> None:
        self.feature, self.max_bytes = feature, max_bytes
        self.grid = (feature.shape[2], feature.shape[3])
        self.pixels = self.grid[0] * self.grid[1]
        self.rows = layers.sampled_rows(self.grid, rows)
        count = len(self.rows)
        whole = 4 * feature.shape[0] * count * self.pixels <= max_bytes
        self._affinity = layers.reference_affinity(feature, self.rows.to(feature.device)) if whole else None
        self._on_grid: dict[tuple[int, int], _OnGrid] = {}

    def agreement(
        self, method: str, call: AttentionCall, renormalize: bool, keep: dict[str, KnownRows] | None = None
    ) -> Agreement:
        """The layer's weight before normalisation. Attention rows that it took go to `keep`."""
        chosen = layers.METHODS.find(method)
        adds_up = method == "dot_product"
        sampled = adds_up and 1 < len(self.rows) < self.pixels  # one row does not say how far it may be off
        if adds_up and self._affinity is not None and not renormalize:
            product = self._fused(call, keep)
            if product is not None:
                return Agreement(product.sum(1), self._moved(call.grid).shared_out(product) if sampled else None)
        fits = 4 * call.query.shape[0] * len(self.rows) * call.grid[0] * call.grid[1] <= self.max_bytes
        on_its_grid = chosen.linear and self._affinity is not None and fits and not renormalize
        parts = self._on_the_layers_grid(call, keep) if on_its_grid else self._on_the_reference_grid(call, renormalize)
        if sampled:
            count = len(self._moved(call.grid).queries) if on_its_grid else len(self.rows)
            product = torch.zeros(call.query.shape[0], count, device=call.query.device)
            for batch, rows, reference, attention in parts:
                product[batch, rows] = (reference * attention).sum(-1)
            return Agreement(product.sum(1), self._moved(call.grid).shared_out(product) if on_its_grid else product)
        statistics: dict[int, Tensor] = {}
        for batch, _, reference, attention in parts:
            for image, value in zip(range(batch.start, batch.stop), chosen.partial(reference, attention), strict=True):
                statistics[image] = statistics[image] + value if image in statistics else value
        return Agreement(chosen.weight(torch.stack([statistics[image] for image in sorted(statistics)])))

    def _on_the_reference_grid(self, call: AttentionCall, renormalize: bool) -> Iterator[_Block]:
        """Blocks of R's rows, the layer's attention being resized to them."""
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
            yield batch, rows, self._affinity_rows(batch, rows), attention

    def _on_the_layers_grid(self, call: AttentionCall, keep: dict[str, KnownRows] | None) -> Iterator[_Block]:
        """The same sum for a linear method: R is brought to the layer's grid, once per grid, instead of every layer to R's."""
        moved = self._moved(call.grid)
        if keep is not None and 4 * moved.affinity.numel() <= self.max_bytes // _KEPT_SHARE:
            keep[call.layer] = KnownRows(moved.queries, torch.empty_like(moved.affinity))
        for batch, rows, attention in blocks_of_rows(call, moved.queries, self.max_bytes):
            if keep is not None and call.layer in keep:
                keep[call.layer].values[batch, rows] = attention
            yield batch, rows, moved.affinity[batch, rows], attention

    def _moved(self, grid: tuple[int, int]) -> _OnGrid:
        """R on a layer's grid, computed once per grid."""
        if grid not in self._on_grid:
            assert self._affinity is not None
            self._on_grid[grid] = _OnGrid(*layers.on_layer_grid(self._affinity, self.rows, self.grid, grid))
        return self._on_grid[grid]

    def _fused(self, call: AttentionCall, keep: dict[str, KnownRows] | None) -> Tensor | None:
        """sum(R * P) of every query row (B, q) by one fused kernel; None where it does not fit. Rows it took go to `keep`."""
        moved = self._moved(call.grid)
        kept = keep is not None and 4 * moved.affinity.numel() <= self.max_bytes // _KEPT_SHARE
        found = inner_product(call, moved.queries, moved.affinity, kept)
        if found is None:
            return None
        product, values = found
        if keep is not None and values is not None:
            keep[call.layer] = KnownRows(moved.queries, values)
        return product

    def _affinity_rows(self, batch: slice, rows: slice) -> Tensor:
        if self._affinity is not None:
            return self._affinity[batch, rows]
        return layers.reference_affinity(self.feature[batch], self.rows[rows].to(self.feature.device))


@dataclass(frozen=True)
class _OnGrid:
    """R brought to a layer's grid: what `goca.method.aggregation.layers.on_layer_grid` returns."""

    affinity: Tensor
    queries: Tensor
    inverse: Tensor
    counts: Tensor

    def shared_out(self, product: Tensor) -> Tensor:
        """What each row of R adds to a sum, from what each query adds (B, q): rows that meet in a query add alike. (B, r)."""
        return product if len(self.counts) == len(self.inverse) else (product / self.counts)[:, self.inverse]
