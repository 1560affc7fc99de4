"""Refinements against the authors' functions."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from goca.calibration import ClassMaps
from goca.refinement import Activation, Affinity, RefinementContext
from goca.refinement.propagation import Propagation

from .cases import Case, cases

BYTES = 2**14  # small: several blocks even for these sizes


@dataclass(frozen=True)
class ExplicitAttention:
    """Self-attention whose maps (S, S) are at hand."""

    maps: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        side = int(len(self.maps) ** 0.5)
        return side, side

    def rows(self, index: Tensor) -> Tensor:
        return self.maps[index]


def _matrix(operator: Propagation, size: int) -> Tensor:
    """T as (h, w, h, w), column by column."""
    pixels = size * size
    basis = torch.eye(pixels).view(pixels, size, size)
    return operator(basis).flatten(1).T.reshape(size, size, size, size)


def _class_maps(stack: Tensor) -> ClassMaps:
    """Maps with the background as the last channel, as upstream keeps them."""
    return ClassMaps(tuple(range(1, len(stack))), stack[:-1], stack[-1], stack[:-1])


@pytest.mark.parametrize("case", cases("self_attn_run"))
@pytest.mark.parametrize("keep_bytes", [0, 2**20])
def test_self_attention_affinity(case: Case, keep_bytes: int):
    attentions = [ExplicitAttention(maps[0].mean(0)) for maps in case.inputs.values()]
    operator = Propagation(attentions, (case.size, case.size), keep_bytes, BYTES)
    torch.testing.assert_close(_matrix(operator, case.size), case.expected["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("activation_similarity_run"))
def test_activation_affinity(case: Case):
    """All channels, or channel 0 alone where upstream's features had lost an axis (P2)."""
    features = {name: feature.reshape(-1, *feature.shape[-2:]) for name, feature in case.inputs.items()}
    activation = Activation(tuple(features), channels="first" if case.quirk else "all")
    affinities = activation.affinities(RefinementContext((case.size, case.size), features=features))
    operator = Propagation(affinities, (case.size, case.size), 0, BYTES, "bicubic")
    torch.testing.assert_close(_matrix(operator, case.size), case.expected["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("affinity_propagate"))
def test_affinity(case: Case):
    size, order = case.size, case.options["order"]
    attention = {"layer": ExplicitAttention(case.inputs["space_feat"].reshape(size * size, size * size))}
    context = RefinementContext((size, size), attention, max_bytes=BYTES)
    maps = Affinity(("layer",), order).refine(_class_maps(case.inputs["cross_feat"]), context)
    tolerance = 5e-5 if order >= 5 else 1e-5
    torch.testing.assert_close(maps.stack(), case.expected["out"], atol=tolerance, rtol=0, equal_nan=True)
