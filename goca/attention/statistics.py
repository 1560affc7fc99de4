"""Streaming statistics: every observed attention call is reduced as soon as it happens, so that no head's map is ever kept.

Of a cross-attention layer there remains one S x n map until its weight is known; of a self-attention layer its queries and keys
(S x D each), and only until the reference feature has run. Everything accumulates in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from goca.attention.call import AttentionCall, Precision, with_precision
from goca.attention.features import dense_feature
from goca.attention.reductions import head_mean_values, head_weights, mean_rows, weighted_map
from goca.attention.reference import KnownRows, Reference
from goca.method.aggregation import Aggregation, layers, maps
from goca.method.plan import Plan
from goca.ops import Grid


class SelfAttention:
    """Head-mean self-attention of one image, recomputed from queries and keys for the rows that are asked for.

    Args:
        call: of that image alone.
        max_bytes: largest block of attention probabilities to hold at a time.
        known: rows that need not be computed again, of the whole batch.
        image: the image's place in the batch.
        further: calls of the same layer in other forwards; the attention is the mean of all.
    """

    def __init__(
        self,
        call: AttentionCall,
        max_bytes: int,
        known: KnownRows | None = None,
        image: int = 0,
        further: Sequence[AttentionCall] = (),
    ) -> None:
        self._call, self._max_bytes, self._further = call, max_bytes, further
        self.grid = call.grid
        self._place: Tensor | None = None  # of each pixel among the known rows, -1 where there is none
        if known is not None:
            self._values = known.values[image]
            self._place = known.queries.new_full((self.grid[0] * self.grid[1],), -1)
            self._place[known.queries] = torch.arange(len(known.queries), device=known.queries.device)

    def rows(self, index: Tensor) -> Tensor:
        """(len(index), h * w) float32; rows of joint attention sum to less than 1, the rest went to text."""
        index = index.to(self._call.query.device)
        if self._place is None:
            return self._compute(index)
        place = self._place[index]
        missing = (place < 0).nonzero()[:, 0]
        found = self._values[place]  # missing rows hold placeholder values until they are filled below
        if len(missing):
            found[missing] = self._compute(index[missing])
        return found

    def _compute(self, index: Tensor) -> Tensor:
        rows = mean_rows(self._call, index, self._max_bytes)[0]
        for call in self._further:
            rows += mean_rows(call, index, self._max_bytes)[0]
        return rows / (1 + len(self._further)) if self._further else rows

    @property
    def heads(self) -> int:
        """How many heads the layer has."""
        return self._call.query.shape[1]

    def head_rows(self, index: Tensor, heads: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Of each head, or of those listed, its own rows (len(index), h * w) float32, one head at a time."""
        index = index.to(self._call.query.device)
        for head in range(self.heads) if heads is None else heads:
            parts = [mean_rows(call.head_at(head), index, self._max_bytes)[0] for call in (self._call, *self._further)]
            yield parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)

    @property
    def through_kernel(self) -> bool:
        """Whether `apply` is faster than rows: half precision on a GPU, where the attention kernel is far ahead of products."""
        return (
            not self._further and self._call.half_products and not self._call.linear and self._call.query.device.type == "cuda"
        )

    def apply(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """The rows times values (h * w, C), without the rows: (r, C) float32; `rows` chooses query pixels, None takes all."""
        return head_mean_values(self._call, values.to(self._call.query.device), rows)


@dataclass(frozen=True)
class Observation:
    """What one forward showed: B images, n text tokens, maps on a grid of the picture's aspect ratio."""

    token_maps: Tensor  # (B, n, h, w), shares that add up to 1 over tokens at each pixel
    layer_weights: Mapping[str, Tensor]  # cross-attention layer -> (B,), adding up to 1 over layers
    # Standard errors of these (B,), where they are estimated from some rows of the reference; empty where all rows count.
    layer_weight_errors: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    head_weights: Mapping[str, Tensor]  # cross-attention layer -> (B, H), the mean over pixels
    layer_maps: Mapping[str, Tensor] = field(default_factory=dict)  # (B, n, h, w), only if asked for
    features: Mapping[str, Tensor] = field(default_factory=dict)  # layer -> (B, C, h, w)
    self_attention_calls: Mapping[str, AttentionCall] = field(default_factory=dict)
    known_rows: Mapping[str, KnownRows] = field(default_factory=dict)
    max_bytes: int = 2**28
    further_calls: Mapping[str, tuple[AttentionCall, ...]] = field(default_factory=dict)  # of further forwards, to be averaged
    level_maps: tuple[tuple[Tensor, float], ...] = ()  # (B, n, h, w) of each resolution, and its weight

    def weights_of(self, image: int) -> tuple[dict[str, float], dict[str, float]]:
        """Weights of the layers for one image of the batch, and their standard errors where there are any."""
        return _numbers(self.layer_weights, image), _numbers(self.layer_weight_errors, image)

    def self_attention(self, image: int) -> dict[str, SelfAttention]:
        """Self-attention of one image of the batch, by layer."""
        found = {}
        for name, call in self.self_attention_calls.items():
            further = [other.image_at(image) for other in self.further_calls.get(name, ())]
            found[name] = SelfAttention(call.image_at(image), self.max_bytes, self.known_rows.get(name), image, further)
        return found


def _numbers(by_layer: Mapping[str, Tensor], image: int) -> dict[str, float]:
    """One image's number of each layer, brought from the device together."""
    return dict(zip(by_layer, torch.stack([*by_layer.values()])[:, image].tolist(), strict=True)) if by_layer else {}


class AttentionStatistics:
    """Collects one forward: pass `observe` every call, then ask for `finish()`.

    Args:
        aggregation: methods for heads and layers.
        plan: the layers involved.
        max_bytes: largest block of attention probabilities to hold at a time.
        keep_layer_maps: also keep each layer's map, for looking at.
        precision: of the products of queries and keys: the `model`'s own, with sums in float32, or `float32`; `auto` is the
            model's own where the device multiplies it fast (`multiplies_half`). A GPU's tensor cores lose nothing by it, a CPU
            rounds the products (`goca.attention.by_head`).
        size: grid of the result; None is a square of the aggregation's `feature_size`.
    """

    def __init__(
        self,
        aggregation: Aggregation,
        plan: Plan,
        max_bytes: int = 2**28,
        keep_layer_maps: bool = False,
        precision: Precision = "auto",
        size: Grid | None = None,
    ) -> None:
        self.aggregation, self.plan, self.max_bytes, self.keep_layer_maps = aggregation, plan, max_bytes, keep_layer_maps
        self.precision, self.size = precision, size or (aggregation.feature_size, aggregation.feature_size)
        self._cross_of: dict[str, list[str]] = {}
        for cross, paired in plan.cross.items():
            self._cross_of.setdefault(paired, []).append(cross)
        self._reference: Reference | None = None
        # Self-attention that ran before the reference feature, with head weights where it attends to text as well.
        self._waiting: list[tuple[AttentionCall, Tensor | None]] = []
        self._maps: dict[str, tuple[Tensor, tuple[int, int]]] = {}  # (B, S, n) and its grid, until the layer's weight is known
        self._weights: dict[str, Tensor] = {}
        self._weights_by_row: dict[str, Tensor] = {}  # (B, r), what each row of the reference adds, where it is sampled
        self.head_weights: dict[str, Tensor] = {}  # layer -> (B, H), the mean over pixels
        self.layer_maps: dict[str, Tensor] = {}  # (B, n, h, w), where they are kept
        self._totals: dict[tuple[int, int], Tensor] = {}  # grid -> (B, S, n): weighted maps of that grid's layers, added up
        self._self_attention: dict[str, AttentionCall] = {}
        self._known_rows: dict[str, KnownRows] = {}
        self._features: dict[str, Tensor] = {}

    def observe(self, call: AttentionCall) -> None:
        """Reduce one call to the statistics that the plan asks for."""
        call = with_precision(call, self.precision)
        if call.layer == self.plan.reference:
            self._reference = Reference(self._reference_feature(call), self.max_bytes, self.aggregation.rows)
        gives_map = call.layer in self.plan.cross and call.text is not None
        gives_weight = call.layer in self._cross_of and call.image is not None and self.aggregation.weighs_layers
        shares = self._weigh_heads(call) if gives_map else None
        if gives_weight and self._reference is None:
            # Of joint attention the map waits too: it is larger than the queries and keys that are kept anyway.
            self._waiting.append((call.without_values(), shares))
        else:
            self._reduce(call, gives_weight, shares)
        if call.layer in self.plan.self_attention and call.image is not None:
            self._self_attention[call.layer] = call.without_values()
        if call.layer in self.plan.features:
            self._features[call.layer] = dense_feature(call, self.plan.feature_kind)
        if call.layer == self.plan.reference:
            for waiting, weights in self._waiting:
                self._reduce(waiting, True, weights)
            self._waiting.clear()

    def added_up(self) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
        """Weighted maps by grid (B, S, n), and all layers' weights (B, layers); raises RuntimeError if one did not run."""
        missing = [name for name in self.plan.cross if name not in self._weights or name in self._maps]
        if missing or not self._totals:
            raise RuntimeError(f"these layers were planned but gave no attention in this forward: {missing}")
        return self._totals, torch.stack([self._weights[name] for name in self.plan.cross], dim=-1)

    def finish(self) -> Observation:
        """Normalise what has been added up; raises RuntimeError if a planned layer did not run."""
        totals, weights = self.added_up()
        total = torch.stack([maps.resize_map(added, grid, self.size) for grid, added in totals.items()]).sum(0)
        weights = layers.normalised(weights)
        return Observation(
            token_maps=maps.share_out(total),
            layer_weights=dict(zip(self.plan.cross, weights.unbind(-1), strict=True)),
            layer_weight_errors=self._errors(),
            head_weights={name: self.head_weights[name] for name in self.plan.cross},
            layer_maps=self.layer_maps,
            features=self._features,
            self_attention_calls=self._self_attention,
            known_rows=self._known_rows,
            max_bytes=self.max_bytes,
        )

    def _reduce(self, call: AttentionCall, gives_weight: bool, shares: Tensor | None) -> None:
        """Turn a call into the weight of its block's layers, into its own map, or both."""
        if gives_weight:
            assert self._reference is not None
            keep = self._known_rows if call.layer in self.plan.self_attention else None
            found = self._reference.agreement(self.aggregation.layers, call, self.aggregation.renormalize, keep)
            for cross in self._cross_of[call.layer]:
                self._weights[cross] = found.weight.clamp(min=0)
                if found.by_row is not None:
                    self._weights_by_row[cross] = found.by_row
                self._settle(cross)
        if shares is not None:
            self._maps[call.layer] = (weighted_map(call, shares, self.max_bytes), call.grid)
            if not self.aggregation.weighs_layers:
                self._weights[call.layer] = torch.ones(call.query.shape[0], device=call.query.device)
            self._settle(call.layer)

    def _errors(self) -> dict[str, Tensor]:
        """Standard errors of the weights by layer; none where a layer's is not known."""
        rows = self._weights_by_row
        if self._reference is None or set(rows) != set(self.plan.cross):
            return {}
        found = layers.standard_errors(torch.stack([rows[name] for name in self.plan.cross], 1), self._reference.pixels)
        return dict(zip(self.plan.cross, found.unbind(-1), strict=True))

    def _weigh_heads(self, call: AttentionCall) -> Tensor:
        """The weight of each head at each pixel: (B, H, S)."""
        weights = head_weights(call, self.aggregation.heads)
        self.head_weights[call.layer] = weights.mean(-1)
        return weights

    def _reference_feature(self, call: AttentionCall) -> Tensor:
        feature = dense_feature(call, self.plan.reference_kind or self.plan.feature_kind)
        return feature[:, :1] if self.aggregation.reference_channels == "first" else feature

    def _settle(self, layer: str) -> None:
        """Add a layer's map to its grid's total once both its map and its weight are known, whichever comes second.

        Resizing is linear, so each grid is brought to the size of the result once, at the end.
        """
        if layer not in self._maps or layer not in self._weights:
            return
        layer_map, grid = self._maps.pop(layer)
        weight = self._weights[layer]
        if self.keep_layer_maps:
            self.layer_maps[layer] = layer_map.transpose(1, 2).unflatten(2, grid)
        weighted = layer_map.mul_(weight[:, None, None]) if not self.keep_layer_maps else layer_map * weight[:, None, None]
        self._totals[grid] = self._totals[grid].add_(weighted) if grid in self._totals else weighted
