"""O = concat(z) W^O as the model itself computes it, in place of a product of our own for the heads' weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from goca.attention.call import AttentionCall
from goca.attention.mixture import Statistics
from goca.attention.tap import RawCall

_TOLERANCE = 2e-2  # of the length of O: half precision rounds to 0.4 %


class OwnProjections:
    """The output projections of a denoiser's attention layers.

    Args:
        modules: attention modules by layer name.
    """

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._modules = modules
        self._agreed: dict[tuple[str, type], bool] = {}  # by layer and attention processor

    def weights(self, statistics: Statistics) -> dict[str, Tensor]:
        """W^O of the layers whose heads are weighed by their share in O, without those with adapters or quantised weights."""
        if getattr(getattr(statistics, "aggregation", None), "heads", None) != "dot_product":
            return {}
        found: dict[str, Tensor] = {}
        for name in statistics.plan.cross:
            projection = getattr(self._modules[name], "to_out", None)
            linear = projection[0] if isinstance(projection, nn.ModuleList) else None
            if type(linear) is nn.Linear and type(linear.weight) is nn.Parameter:
                found[name] = linear.weight
        return found

    def add(self, call: AttentionCall | None, raw: RawCall) -> AttentionCall | None:
        """The call with the model's O, where that is W^O of the call's output.

        Attention processors may add something in between, as those of image prompts do: one pixel is compared when a layer runs
        with a processor for the first time.
        """
        if call is None or call.output is None or call.projection is None or raw.projected is None:
            return call
        images, _, pixels, _ = call.output.shape
        if raw.projected.shape != (images, pixels, call.projection.shape[0]):
            return call
        kind = (call.layer, type(getattr(self._modules[call.layer], "processor", None)))
        if kind not in self._agreed:
            here, there = call.output[:, :, pixels // 2].flatten(1), raw.projected[:, pixels // 2]
            expected = nn.functional.linear(here, call.projection, call.bias)
            self._agreed[kind] = bool(torch.dist(expected, there) <= _TOLERANCE * expected.norm())
        return replace(call, projected=raw.projected) if self._agreed[kind] else call
