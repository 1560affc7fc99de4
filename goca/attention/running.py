"""Statistics of a whole drawing: evaluations of the denoiser are added up as they run, in memory that does not grow.

Weights of heads and layers are those of each evaluation; what is averaged are the maps that they gave. Self-attention and
features for refinements are one evaluation's: the one nearest to the noise level at which the model is usually observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from goca.attention.call import AttentionCall, Precision
from goca.attention.features import dense_feature
from goca.attention.mixture import MixtureStatistics, collector
from goca.attention.statistics import AttentionStatistics, Observation
from goca.method.aggregation import Aggregation, layers, maps
from goca.method.aggregation.mixture import Mixture
from goca.method.plan import Plan
from goca.ops import resize

Grid = tuple[int, int]
_MANY = 2**31  # forwards: heads that are clamped wait for all of them


@dataclass(frozen=True)
class Kept:
    """What is kept of single steps or layers, on request: token maps of some positions at a small size.

    Args:
        steps: shorter side of the map of every evaluation; None keeps none.
        layers: shorter side of the mean map of every layer; None keeps none.
    """

    steps: int | None = None
    layers: int | None = None


class RunningStatistics:
    """Adds up evaluations of the denoiser: `begin`, `observe` every call, `end`; then ask for `finish()`.

    Args:
        aggregation: methods for heads and layers, or a mixture of layers.
        plan: the layers involved.
        time: noise level (0 ... 999) whose self-attention and features are wanted.
        max_bytes: largest block of attention probabilities to hold at a time.
        precision: as `AttentionStatistics` has it.
        kept: single steps and layers, on request.
    """

    def __init__(
        self,
        aggregation: Aggregation | Mixture,
        plan: Plan,
        time: float,
        max_bytes: int = 2**28,
        precision: Precision = "auto",
        kept: Kept = Kept(),
    ) -> None:
        self.aggregation, self.plan, self.kept = aggregation, plan, kept
        self._inner_plan = replace(plan, self_attention=(), features=())
        self._time, self._max_bytes, self._precision = time, max_bytes, precision
        self.evaluations: list[float] = []  # their noise levels
        self.positions: list[int] | None = None  # of the text axis, that single steps and layers are kept of; None: all
        self.step_maps: list[Tensor] = []  # (B, |positions|, h, w) float16 of each evaluation
        self._current: AttentionStatistics | MixtureStatistics | None = None
        self._mixture: MixtureStatistics | None = None
        if isinstance(aggregation, Mixture):
            self._mixture = MixtureStatistics(aggregation, self._inner_plan, max_bytes, _MANY, precision)
        self._totals: dict[Grid, Tensor] = {}
        self._layer_weights: Tensor | None = None
        self._head_weights: dict[str, Tensor] = {}
        self._layer_maps: dict[str, Tensor] = {}
        self._grids: dict[str, Grid] = {}
        self._nearest = float("inf")
        self._keeps = False
        self._self_attention: dict[str, AttentionCall] = {}
        self._features: dict[str, Tensor] = {}

    # --------------------------------------------------------------------------------------------------- one evaluation
    def begin(self, time: float) -> None:
        """Before an evaluation at this noise level (0 ... 1000)."""
        self._now = time
        self._keeps = abs(time - self._time) <= self._nearest
        alone = self._mixture is None or self.kept.steps is not None
        self._current = None
        if alone:
            self._current = collector(self.aggregation, self._inner_plan, self._max_bytes, 1, self._precision)  # type: ignore[assignment]
            if isinstance(self._current, AttentionStatistics):
                self._current.keep_layer_maps = self.kept.layers is not None

    def observe(self, call: AttentionCall) -> None:
        """Reduce one call of the evaluation."""
        if call.layer in self.plan.cross:
            self._grids[call.layer] = call.grid
        if self._current is not None:
            self._current.observe(call)
        if self._mixture is not None:
            self._mixture.observe(call)
            if self.kept.layers is not None and call.layer in self.plan.cross and call.text is not None:
                found = self._mixture.layer_map(call).transpose(1, 2).unflatten(2, call.grid)
                self._add_layer(call.layer, found)
        if self._keeps and call.layer in self.plan.self_attention and call.image is not None:
            self._self_attention[call.layer] = call.without_values()
        if self._keeps and call.layer in self.plan.features:
            self._features[call.layer] = dense_feature(call, self.plan.feature_kind)

    def end(self) -> None:
        """After an evaluation: its sums join those of the others; raises RuntimeError if a planned layer did not run."""
        missing = [name for name in self.plan.cross if name not in self._grids]
        if missing:
            raise RuntimeError(f"these layers were planned but gave no attention in this forward: {missing}")
        if isinstance(self._current, AttentionStatistics):
            self._add(self._current)
        if self.kept.steps is not None:
            assert self._current is not None
            self.step_maps.append(self._step_map(self._current))
        self._current = None
        self.evaluations.append(self._now)
        if self._keeps:
            self._nearest = abs(self._now - self._time)

    def _add(self, one: AttentionStatistics) -> None:
        totals, weights = one.added_up()
        scale = _reciprocal(weights.sum(-1))
        for grid, total in totals.items():
            scaled = total * scale[:, None, None]
            self._totals[grid] = self._totals[grid].add_(scaled) if grid in self._totals else scaled
        normalised = layers.normalised(weights)
        self._layer_weights = normalised if self._layer_weights is None else self._layer_weights + normalised
        for name, heads in one.head_weights.items():
            self._head_weights[name] = self._head_weights[name] + heads if name in self._head_weights else heads
        for name, layer_map in one.layer_maps.items():
            self._add_layer(name, layer_map)

    def _add_layer(self, layer: str, found: Tensor) -> None:
        """Add a layer's map (B, n, h, w) of one evaluation at the size that layers are kept in."""
        assert self.kept.layers is not None
        small = resize(self._chosen(found), self.size(self.kept.layers))
        self._layer_maps[layer] = self._layer_maps[layer] + small if layer in self._layer_maps else small

    def _step_map(self, one: AttentionStatistics | MixtureStatistics) -> Tensor:
        assert self.kept.steps is not None
        size = self.size(self.kept.steps)
        if isinstance(one, MixtureStatistics):
            one.size = size
            return self._chosen(one.finish().token_maps).half()
        totals, weights = one.added_up()
        added = [resize(self._chosen(total.transpose(1, 2).unflatten(2, grid)), size) for grid, total in totals.items()]
        return (torch.stack(added).sum(0) * _reciprocal(weights.sum(-1))[:, None, None, None]).half()

    def _chosen(self, found: Tensor) -> Tensor:
        return found if self.positions is None else found[:, self.positions]

    # ------------------------------------------------------------------------------------------------------------ results
    def size(self, shorter: int) -> Grid:
        """(h, w) with the picture's aspect ratio and this shorter side."""
        height, width = max(self._grids.values())
        if height <= width:
            return shorter, round(shorter * width / height)
        return round(shorter * height / width), shorter

    def finish(self) -> tuple[Tensor, Observation]:
        """Mean maps (B, n, f, f') over evaluations, as attention probabilities, and the same as an observation of an image.

        What has been added up stays, so that this can be asked for between steps.

        Raises:
            RuntimeError: there has been no evaluation.
        """
        if not self.evaluations:
            raise RuntimeError("there has been no evaluation of the denoiser")
        size = self.size(self.aggregation.feature_size)
        parts: dict[str, Any] = {"features": self._features, "self_attention_calls": self._self_attention}
        if self._mixture is not None:
            found = self._mixture.snapshot(len(self.evaluations), size).finish()
            return found.token_maps, replace(found, **parts)
        count = len(self.evaluations)
        mean = torch.stack([maps.resize_map(total, grid, size) for grid, total in self._totals.items()]).sum(0) / count
        assert self._layer_weights is not None
        return mean, Observation(
            token_maps=maps.share_out(mean),
            layer_weights=dict(zip(self.plan.cross, (self._layer_weights / count).unbind(-1), strict=True)),
            head_weights={name: heads / count for name, heads in self._head_weights.items()},
            max_bytes=self._max_bytes,
            **parts,
        )

    @property
    def layer_maps(self) -> Mapping[str, Tensor]:
        """Layer -> mean over evaluations (B, |positions|, h, w), where layers are kept."""
        return {name: total / len(self.evaluations) for name, total in self._layer_maps.items()}


def _reciprocal(total: Tensor) -> Tensor:
    return torch.where(total > 0, 1 / total, torch.zeros_like(total))
