"""What tools of this field do with the same forward: keep every head's map of every layer until the end, then reduce them.

Plain implementations for comparison of time and memory, with the formulas of `preset=daam` and of GoCA's aggregation.
`benchmarks.paired` times them only where they give the maps that the streaming statistics give.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from goca.attention.call import AttentionCall
from goca.method.aggregation import Aggregation
from goca.method.aggregation.mixture import Mixture
from goca.method.plan import Plan


class StoredDaam:
    """DAAM: the probabilities of all heads, resized to one grid, clamped and stored; their mean at the end.

    Args:
        plan: the layers that are observed.
        aggregation: the levels that count, and the side of the grid.
    """

    def __init__(self, plan: Plan, aggregation: Mixture) -> None:
        self.plan, self.aggregation, self.size = plan, aggregation, aggregation.feature_size
        self.stored: dict[str, Tensor] = {}
        self.finest = 0  # side of the finest grid; a UNet begins with it

    def observe(self, call: AttentionCall) -> None:
        if call.layer not in self.plan.cross or call.text is None:
            return
        self.finest = max(self.finest, call.grid[0])
        if round(self.finest / call.grid[0]) not in (self.aggregation.weights or {1: 1.0}):
            return  # the middle block
        maps = _probabilities(call)[..., call.text].transpose(2, 3).unflatten(3, call.grid)  # (B, H, n, h, w)
        resized = F.interpolate(maps.flatten(0, 1), (self.size, self.size), mode="bicubic").clamp(min=0)
        self.stored[call.layer] = resized.unflatten(0, maps.shape[:2])

    def finish(self) -> Tensor:
        """(B, n, size, size)."""
        return torch.cat(list(self.stored.values()), 1).mean(1)


class StoredGoca:
    """GoCA from stored calls: head-weighted maps and layer weights from materialised attention, as the oracle of the tests."""

    def __init__(self, plan: Plan, aggregation: Aggregation) -> None:
        self.plan, self.aggregation = plan, aggregation
        self.calls: dict[str, Any] = {}

    def observe(self, call: AttentionCall) -> None:
        self.calls[call.layer] = call

    def finish(self) -> Tensor:
        """(B, n, f, f)."""
        from tests.helpers import oracle

        plan, calls = self.plan, self.calls
        query = calls[plan.reference].query
        reference = query.transpose(2, 3).flatten(1, 2).unflatten(2, calls[plan.reference].grid).float()
        own = {name: calls[layer] for name, layer in plan.cross.items()}
        return oracle.aggregate(self.aggregation, {name: calls[name] for name in plan.cross}, own, reference)[0]


def _probabilities(call: AttentionCall) -> Tensor:
    logits = torch.matmul(call.query.float() * call.scale, call.key.float().transpose(-1, -2))
    if call.mask is not None:
        logits = logits.masked_fill(~call.mask, float("-inf")) if call.mask.dtype == torch.bool else logits + call.mask
    return logits.softmax(-1)
