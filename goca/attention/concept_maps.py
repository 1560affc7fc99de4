"""One map per concept, from a concept stream beside the forward (ConceptAttention)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from goca.attention import concepts
from goca.attention.call import AttentionCall, Precision, with_precision
from goca.attention.statistics import Observation
from goca.attention.tap import RawCall
from goca.layer_names import resolve
from goca.method.aggregation.concepts import ConceptMaps
from goca.method.plan import Plan
from goca.ops import Grid, resize


class ConceptStatistics:
    """Collects the forwards of a batch; every image has a stream of its own, as it has concepts of its own.

    Args:
        aggregation: which blocks count, and how their scores become maps.
        plan: the layers involved.
        max_bytes: of temporary tensors, for the self-attention that refinements ask for.
        precision: of the products of queries and keys of that self-attention, as `AttentionStatistics` has it.
        size: grid of the result; None is a square of the aggregation's `feature_size`.
    """

    def __init__(
        self,
        aggregation: ConceptMaps,
        plan: Plan,
        max_bytes: int = 2**28,
        precision: Precision = "auto",
        size: Grid | None = None,
    ) -> None:
        self.aggregation, self.plan, self.max_bytes, self.precision = aggregation, plan, max_bytes, precision
        self.size = size or (aggregation.feature_size, aggregation.feature_size)
        names = list(plan.cross)
        chosen = resolve(aggregation.layers, names, "aggregation.layers") if aggregation.layers else tuple(names)
        self._chosen = set(chosen)
        self._branches: Sequence[concepts.TextBranch] = ()
        self._streams: list[concepts.ConceptStream] = []
        self._maps: dict[str, list[Tensor]] = {}  # block -> (C, S) of each image, summed over forwards
        self._passes = 0
        self._grid = (0, 0)
        self._self_attention: dict[str, list[AttentionCall]] = {}

    def begin(self, branches: Sequence[concepts.TextBranch]) -> None:
        """Before each forward: the text branch of every image's concepts."""
        self._branches = branches
        self._streams = [concepts.ConceptStream(branch) for branch in branches]
        self._passes += 1

    def follow(self, raw: RawCall, image: slice) -> None:
        """Take the concepts through this call's block."""
        if raw.layer not in self.plan.cross:
            return
        found = []
        for row, (stream, branch) in enumerate(zip(self._streams, self._branches, strict=True)):
            vectors = stream(_row(raw, row), image)
            if vectors is None:
                return
            if raw.layer in self._chosen:
                found.append(self._scores(vectors, branch))
        if found:
            before = self._maps.get(raw.layer)
            self._maps[raw.layer] = found if before is None else [a + b for a, b in zip(before, found, strict=True)]

    def observe(self, call: AttentionCall) -> None:
        """Keep what refinements need."""
        self._grid = call.grid
        if call.layer in self.plan.self_attention and call.image is not None:
            self._self_attention.setdefault(call.layer, []).append(with_precision(call, self.precision).without_values())

    def finish(self) -> Observation:
        """The mean over blocks and forwards; images with fewer concepts have maps of zeros in the end."""
        if not self._maps:
            raise RuntimeError("none of the chosen layers has a text branch that concepts could go through")
        layers = self._last(list(self._maps))
        images = []
        for row in range(len(self._streams)):
            mean = torch.stack([self._maps[layer][row] for layer in layers]).mean(0) / self._passes
            images.append(resize(mean.unflatten(1, self._grid), self.size))
        longest = max(len(maps) for maps in images)
        padded = [torch.cat([maps, maps.new_zeros(longest - len(maps), *self.size)]) for maps in images]
        count = len(images)
        return Observation(
            token_maps=torch.stack(padded),
            layer_weights={name: torch.full((count,), (name in layers) / len(layers)) for name in self.plan.cross},
            head_weights={},
            self_attention_calls={name: calls[0] for name, calls in self._self_attention.items()},
            further_calls={name: tuple(calls[1:]) for name, calls in self._self_attention.items() if len(calls) > 1},
            max_bytes=self.max_bytes,
        )

    def _last(self, layers: list[str]) -> list[str]:
        return layers if self.aggregation.last is None else layers[-self.aggregation.last :]

    def _scores(self, vectors: concepts.Vectors, branch: concepts.TextBranch) -> Tensor:
        """(C, S) of one block: softmax over concepts, so that a block with long vectors does not outweigh the others."""
        words = vectors.concepts.float()[0, branch.leading :]
        if self.aggregation.normalise:
            words = concepts.linear_normalised(words)
        if branch.unit:
            words = words / (words.norm(dim=-1, keepdim=True) + 1e-8)
        scores = concepts.scores(words, vectors.image.float()[0])
        return (scores / branch.temperature).softmax(0) if self.aggregation.softmax else scores


def _row(raw: RawCall, row: int) -> RawCall:
    one = slice(row, row + 1)
    parts = {name: getattr(raw, name)[one] for name in ("query", "key", "value", "output")}
    return replace(raw, **parts, mask=None, lse=None)
