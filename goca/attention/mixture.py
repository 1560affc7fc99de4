"""Streaming statistics of a `Mixture`: layers are added up with constants, over one forward or several (time steps, noises)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goca.attention.call import AttentionCall, Precision, blocks, exponentials, logits, probabilities, with_precision
from goca.attention.concept_maps import ConceptStatistics
from goca.attention.features import dense_feature
from goca.attention.statistics import AttentionStatistics, Observation
from goca.errors import ModelError
from goca.method.aggregation import maps, mixture
from goca.method.aggregation.concepts import ConceptMaps
from goca.method.aggregation.mixture import Mixture
from goca.method.plan import Plan
from goca.ops import Grid, resize


@dataclass
class _Sum:
    """Maps of a level, or of a layer, added up: `total` (B, S, n), or (B, n, *size) where heads are resized by themselves."""

    grid: Grid
    total: Tensor
    count: float


class MixtureStatistics:
    """Collects the forwards of a batch: pass `observe` every call of each, then ask for `finish()`.

    Args:
        aggregation: which layers and heads count how much.
        plan: the layers involved.
        max_bytes: largest block of attention probabilities to hold at a time.
        passes: how many forwards will be seen; with `clamp`, heads are clamped after the sum over forwards.
        precision: of the products of queries and keys, as `AttentionStatistics` has it.
        size: grid of the result; None is a square of the aggregation's `feature_size`.
    """

    def __init__(
        self,
        aggregation: Mixture,
        plan: Plan,
        max_bytes: int = 2**28,
        passes: int = 1,
        precision: Precision = "auto",
        size: Grid | None = None,
    ) -> None:
        self.aggregation, self.plan, self.max_bytes, self.passes = aggregation, plan, max_bytes, passes
        self.precision, self.size = precision, size or (aggregation.feature_size, aggregation.feature_size)
        self._sums: dict[str | Grid, _Sum] = {}
        self._per_head: dict[str, tuple[Grid, Tensor]] = {}  # (B, H, S, n), only where heads wait for further forwards
        self._grids: dict[str, Grid] = {}  # of cross-attention layers, in the order of the forward
        self._head_counts: dict[str, int] = {}
        self._chosen: dict[str, list[int] | None] = {}  # of a layer's heads those that count; None: all
        self._self_attention: dict[str, list[AttentionCall]] = {}
        self._features: dict[str, Tensor] = {}

    def observe(self, call: AttentionCall) -> None:
        """Reduce one call; what it is good for follows from the plan."""
        call = with_precision(call, self.precision)
        if call.layer in self.plan.cross and call.text is not None:
            self._grids.setdefault(call.layer, call.grid)
            self._head_counts.setdefault(call.layer, call.query.shape[1])
            self._add(call)
        if call.layer in self.plan.self_attention and call.image is not None:
            self._self_attention.setdefault(call.layer, []).append(call.without_values())
        if call.layer in self.plan.features:
            feature = dense_feature(call, self.plan.feature_kind).float() / self.passes
            self._features[call.layer] = self._features.get(call.layer, torch.zeros(())).to(feature) + feature

    def finish(self) -> Observation:
        """Weigh and add up; raises RuntimeError if a planned layer did not run, ModelError where the weights fit no layer."""
        missing = [name for name in self.plan.cross if name not in self._grids]
        if missing or not self._grids:
            raise RuntimeError(f"these layers were planned but gave no attention in this forward: {missing}")
        for layer, (grid, heads) in self._per_head.items():
            self._put(self._key(layer), grid, self._clamped(heads / self.passes, grid), self._weight_of(heads.shape[1]))
        self._check_heads()
        weighed = [(found, weight) for found, weight in self._weighed() if weight]
        levels = [(self._maps(found), weight) for found, weight in weighed]
        total = mixture.mix(levels, self.size, self._token_normalisation, self.aggregation.resize)
        weight_sum = sum(weight for _, weight in levels)
        kept = [
            (resize(level, self.size, self.aggregation.resize), weight / weight_sum)
            for level, weight in levels
            if self.aggregation.normalise == "minmax"
        ]
        images = len(total)
        layer_weights = self._layer_weights()
        return Observation(
            token_maps=maps.share_out(total) if self.aggregation.share_out else total,
            layer_weights={name: torch.full((images,), weight) for name, weight in layer_weights.items()},
            head_weights={name: self._head_weights(name).expand(images, -1) for name in self._head_counts},
            features=self._features,
            self_attention_calls={name: calls[0] for name, calls in self._self_attention.items()},
            further_calls={name: tuple(calls[1:]) for name, calls in self._self_attention.items() if len(calls) > 1},
            max_bytes=self.max_bytes,
            level_maps=tuple(kept),
        )

    def snapshot(self, passes: int, size: Grid) -> MixtureStatistics:
        """A copy to finish after so many forwards, at that size, while this one goes on."""
        other = copy.copy(self)
        other.passes, other.size = passes, size
        other._sums = {key: replace(found, total=found.total.clone()) for key, found in self._sums.items()}
        return other

    @property
    def _token_normalisation(self) -> str:
        return "spatial_sum" if self.aggregation.normalise == "spatial_sum" else "none"

    def _weight_of(self, heads: int) -> float:
        """How often a layer with so many heads counts within its level."""
        return 1.0 if self.aggregation.weigh == "layer" else float(heads)

    def _key(self, layer: str) -> str | Grid:
        return layer if self.aggregation.weigh in ("stage", "depth") else self._grids[layer]

    def _put(self, key: str | Grid, grid: Grid, mean: Tensor, count: float) -> None:
        """Add a layer's mean over heads with its count."""
        if key in self._sums:
            self._sums[key].total.add_(mean, alpha=count)
            self._sums[key].count += count
        else:
            self._sums[key] = _Sum(grid, mean * count, count)

    def _maps(self, found: _Sum) -> Tensor:
        """(B, n, h, w) on the level's own grid, or on the grid of the result where heads were resized by themselves."""
        mean = found.total / found.count
        return mean if self.aggregation.clamp else mean.transpose(1, 2).unflatten(2, found.grid)

    def _weighed(self) -> list[tuple[_Sum, float]]:
        sums = list(self._sums.values())
        method = self.aggregation
        if method.weigh in ("stage", "depth"):
            return list(zip(sums, self._depth_weights(), strict=True))
        of_level = method.level_weights([found.grid for found in sums])
        return [(found, of_level[found.grid] * (1.0 if method.weigh == "level" else found.count)) for found in sums]

    def _depth_weights(self) -> Sequence[float]:
        """One weight per layer in the order of the forward."""
        method, names = self.aggregation, list(self._sums)
        if method.weigh == "stage":
            assert method.stage_weights is not None
            return mixture.stage_weights(method.stage_weights, list(self._grids.values()))
        assert method.sigma is not None
        middle = [place for place, name in enumerate(names) if str(name).startswith("mid")] or [0, len(names) - 1]
        weights: Sequence[float] = mixture.depth_weights(len(names), sum(middle) / len(middle), method.sigma).tolist()
        return weights

    def _layer_weights(self) -> dict[str, float]:
        """What each layer counts in the result; adds up to 1."""
        by_key = {key: weight for key, (_, weight) in zip(self._sums, self._weighed(), strict=True)}
        keys = {name: self._key(name) for name in self.plan.cross}
        parts: dict[str, float] = {}
        for name, key in keys.items():
            same = [self._share(other) for other, its in keys.items() if its == key]
            parts[name] = by_key.get(key, 0.0) * self._share(name) / sum(same) if sum(same) else 0.0
        total = sum(parts.values())
        return {name: part / total for name, part in parts.items()}

    def _share(self, layer: str) -> float:
        """How often a layer counts within its level, by the heads of it that do."""
        chosen = self._chosen[layer]
        count = self._head_counts[layer] if chosen is None else len(chosen)
        return self._weight_of(count) if count else 0.0

    def _head_weights(self, layer: str) -> Tensor:
        """What each head counts in its layer: (H,)."""
        chosen, count = self._chosen[layer], self._head_counts[layer]
        if chosen is None:
            return torch.full((count,), 1 / count)
        weights = torch.zeros(count)
        weights[chosen] = 1 / max(1, len(chosen))
        return weights

    def _add(self, call: AttentionCall) -> None:
        chosen = self._chosen[call.layer] = self._chosen_heads(call)
        if chosen is not None and not chosen:
            return
        if self.aggregation.clamp:
            every = self._heads(call)
            if self.passes > 1:
                if call.layer in self._per_head:
                    self._per_head[call.layer][1].add_(every)
                else:
                    self._per_head[call.layer] = (call.grid, every)
                return
            mean = self._clamped(every, call.grid)
        else:
            mean = self.layer_map(call, chosen)
        count = len(chosen) if chosen is not None else call.query.shape[1]
        self._put(self._key(call.layer), call.grid, mean, self._weight_of(count))

    def _check_heads(self) -> None:
        """Heads are chosen while the forward runs; now that all levels are known, they have to be those that were meant."""
        if isinstance(self.aggregation.heads, str):
            return
        grids = list(self._grids.values())
        for number, (name, grid) in enumerate(self._grids.items(), start=1):
            if mixture.factor(grid, grids[:number]) != mixture.factor(grid, grids):
                raise ModelError(
                    f"aggregation.heads: {name} runs before the finest layer, so that its level was not known: observe"
                    " a finest layer before it (aggregation.cross_layers)"
                )
        for level, wanted in self.aggregation.heads.items():
            same = [name for name, grid in self._grids.items() if mixture.factor(grid, grids) == level]
            count = sum(self._head_counts[name] for name in same)
            if not wanted or max(wanted) >= count:
                there = f"{count} heads, 0 to {count - 1}" if count else "no heads in this model"
                raise ModelError(f"aggregation.heads: level {level} has {there}; asked for {list(wanted)}")

    def _chosen_heads(self, call: AttentionCall) -> list[int] | None:
        """Of this layer's heads those that are listed; None where all count."""
        listed = self.aggregation.heads
        if isinstance(listed, str):
            return None
        grids = list(self._grids.values())
        of_level = listed.get(mixture.factor(call.grid, grids))
        if of_level is None:
            return None
        first = 0
        for name, grid in self._grids.items():
            if name == call.layer:
                break
            first += self._head_counts[name] if grid == call.grid else 0
        heads = self._head_counts[call.layer]
        return [index - first for index in of_level if first <= index < first + heads]

    def _scores(self) -> Callable[[AttentionCall, slice, slice, slice], Tensor]:
        return {"exp": exponentials, "logits": logits}.get(self.aggregation.score, probabilities)

    def layer_map(self, call: AttentionCall, chosen: list[int] | None = None) -> Tensor:
        """(B, S, n): the mean over heads, or over the chosen ones, or the maximum, block by block."""
        assert call.text is not None
        if self.aggregation.score == "text":
            call = _text_alone(call)
        if chosen is not None:
            call = call.with_heads(chosen)
        text = call.text
        assert text is not None
        images, _, pixels, _ = call.query.shape
        tokens = len(range(*text.indices(call.keys)))
        found = torch.zeros(images, pixels, call.text_axis or tokens, device=call.query.device)
        for batch, rows in blocks(call, text, pixels, self.max_bytes):
            scores = self._scores()(call, text, batch, rows)
            found[batch, rows, :tokens] = scores.amax(1) if self.aggregation.heads == "max" else scores.mean(1)
        return found

    def _heads(self, call: AttentionCall) -> Tensor:
        """(B, H, S, n) of the text's keys. Blocks are copied: a view of one would keep its probabilities of all keys."""
        assert call.text is not None
        text, (images, heads, pixels, _) = call.text, call.query.shape
        found = torch.empty(images, heads, pixels, len(range(*text.indices(call.keys))), device=call.query.device)
        for batch, rows in blocks(call, text, pixels, self.max_bytes):
            found[batch, :, rows] = self._scores()(call, text, batch, rows)
        return found

    def _clamped(self, heads: Tensor, grid: Grid) -> Tensor:
        """Mean over heads (B, n, *size) of each head's map, resized and clamped at 0; a head at a time."""
        total = torch.zeros(())
        for head in heads.unbind(1):
            part = resize(head.transpose(1, 2).unflatten(2, grid), self.size, self.aggregation.resize).clamp(min=0)
            total = total.to(part) + part
        return total / heads.shape[1]


def _text_alone(call: AttentionCall) -> AttentionCall:
    """The call with the text's keys only, so that probabilities are normalised over them; masked ones stay masked."""
    assert call.text is not None
    key, mask = call.key[:, :, call.text], call.mask_of(call.text)
    return replace(call.without_values(), key=key, text=slice(None), image=None, lse=None, mask=mask, scratch={})


Statistics = AttentionStatistics | MixtureStatistics | ConceptStatistics


def collector(
    aggregation: object,
    plan: Plan,
    max_bytes: int,
    passes: int = 1,
    precision: Precision = "auto",
    size: Grid | None = None,
) -> Statistics:
    """The statistics that suit an aggregation, with maps on a grid of that size.

    Raises:
        ModelError: several forwards where layers are compared with a reference, which is one forward's.
    """
    if isinstance(aggregation, Mixture):
        return MixtureStatistics(aggregation, plan, max_bytes, passes, precision, size)
    if isinstance(aggregation, ConceptMaps):
        return ConceptStatistics(aggregation, plan, max_bytes, precision, size)
    if passes > 1:
        raise ModelError("several time steps go with a mixture of layers (aggregation=daam, elbo, ...), not with layer weights")
    return AttentionStatistics(aggregation, plan, max_bytes, precision=precision, size=size)  # type: ignore[arg-type]
