"""Head weights, layer weights and aggregated maps against the authors' function, then the whole chain to class maps.

The default `reference_channels: all` is compared with `out_ref_all_channels`, the option `first` with `out` (QUIRKS Q1).
"""

import math

import pytest
import torch
from torch import Tensor

from goca.method.aggregation import heads, layers, maps
from goca.method.calibration import Calibration
from goca.method.refinement import Affinity, RefinementContext
from tests.helpers.reference_cases import Case, cases
from tests.reference.test_calibration import CHAINS, _prompt

HEADS = {
    "average": "average",
    "dot-product": "dot_product_clamped",
    "dot-product w/o clamp": "dot_product",
    "l2-norm": "l2_norm",
    "cosine": "cosine",
    "cosine + VW": "cosine_vw",
    "dot-product + VW": "dot_product_vw",
}
LAYERS = {"vanilla": "average", "dot-product similarity": "dot_product", "mse": "mse", "iou-like": "iou"}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}

# Pixels without any direction (output 0): the authors' 0/0 stays NaN there, ours falls back to the mean over heads, because
# one NaN pixel would blank the whole class map later. docs/parity.md lists these.
DIFFERENT = {
    "goca/quirk_zero_post_value_dot-product-wo-clamp",
    "goca/quirk_zero_post_value_l2-norm",
    "goca/quirk_zero_post_value_cosine",
    "goca/quirk_nan_post_value_l2-norm",
}
SAME = cases("goca_cross_run", where=lambda case: case.id not in DIFFERENT)


def _layer_map(case: Case, name: str) -> Tensor:
    """(S, n) of one layer, heads weighted as the case says."""
    attention = case.inputs[f"{name}-cross-map"]
    output = case.inputs.get(f"{name}-cross-special-post-value")
    method = HEADS[case.options["head_method"]]
    if output is None or method == "average":
        weights = heads.average(attention, attention, attention)
    else:
        count = attention.shape[1]
        z = output.unflatten(2, (count, -1)).transpose(1, 2)
        value = case.inputs[f"{name}-cross-special-value"][None]
        weights = heads.METHODS[method](z, case.inputs[f"{name}-cross-special-weight"], value)
    return maps.weigh_heads(attention, weights)


def _names(case: Case) -> list[str]:
    return [name.removesuffix("-cross-map") for name in case.map_layers]


def _grid(pixels: int) -> tuple[int, int]:
    return (math.isqrt(pixels), math.isqrt(pixels))


def _layer_weights(case: Case, channels: str) -> Tensor:
    """(1, L), normalised."""
    method = LAYERS[case.options["layer_method"]]
    if method == "average":
        return torch.full((1, len(case.map_layers)), 1 / len(case.map_layers))
    feature = case.inputs[case.options["ref_layer"]]
    feature = feature[:, :1] if channels == "first" else feature
    reference, target = layers.reference_affinity(feature), (feature.shape[2], feature.shape[3])
    found = []
    for name in _names(case):
        attention = case.inputs[f"{name}-self-map"].mean(1)
        grid = _grid(attention.shape[1])
        attention = layers.resize_keys(attention[:, layers.nearest_rows(grid, target)], grid, target)
        found.append(layers.METHODS[method].weight(layers.METHODS[method].partial(reference, attention)))
    return layers.normalised(torch.stack(found, dim=-1))


def _aggregated(case: Case, weights: Tensor) -> Tensor:
    """(1, n, f, f)."""
    size = (case.size, case.size)
    total = torch.zeros(1)
    for name, weight in zip(_names(case), weights[0], strict=True):
        layer_map = _layer_map(case, name)
        total = total + weight * maps.resize_map(layer_map, _grid(layer_map.shape[1]), size)
    return maps.share_out(total)


@pytest.mark.parametrize("case", SAME)
def test_head_weights(case: Case):
    for name in _names(case):
        expected = case.expected[f"head_aggregated/{name}-cross-map"]
        torch.testing.assert_close(_layer_map(case, name)[0], expected, **TOLERANCE)


@pytest.mark.parametrize("case", cases("goca_cross_run", where=lambda case: case.id in DIFFERENT))
def test_pixels_without_direction_are_averaged(case: Case):
    for name in _names(case):
        expected, ours = case.expected[f"head_aggregated/{name}-cross-map"], _layer_map(case, name)[0]
        broken = expected.isnan()
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours[~broken], expected[~broken], **TOLERANCE)
        if "zero" in case.id:
            average = case.inputs[f"{name}-cross-map"].mean(1)[0]
            torch.testing.assert_close(ours[broken], average[broken], **TOLERANCE)
        else:  # a head whose output is infinite counts as 0, and the others share the pixel
            torch.testing.assert_close(ours.sum(-1), case.inputs[f"{name}-cross-map"].sum(-1).mean(1)[0], **TOLERANCE)


@pytest.mark.parametrize("case", SAME)
def test_layer_weights(case: Case):
    torch.testing.assert_close(_layer_weights(case, "first")[0], case.expected["layer_weights"], **TOLERANCE)
    if "layer_weights_ref_all_channels" in case.expected:
        torch.testing.assert_close(_layer_weights(case, "all")[0], case.expected["layer_weights_ref_all_channels"], **TOLERANCE)


@pytest.mark.parametrize("case", SAME)
def test_aggregated_token_maps(case: Case):
    ours = _aggregated(case, _layer_weights(case, "first"))[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, case.expected["aggregated"], **TOLERANCE)


def _class_maps(case: Case, channels: str):
    calibration = Calibration(CHAINS[case.options["rescale_method"]], case.options["multi_token_method"], parity=True)
    return calibration(_aggregated(case, _layer_weights(case, channels))[0], _prompt(case))


@pytest.mark.parametrize(
    "case",
    cases(
        "goca_cross_run",
        where=lambda case: (
            case.id not in DIFFERENT and "degenerate" not in case.id and case.options["keep_all_objects"] is None
        ),
    ),
)
def test_from_attention_to_class_maps(case: Case):
    for channels, key in (("first", "out"), ("all", "out_ref_all_channels")):
        if key in case.expected:
            torch.testing.assert_close(
                _class_maps(case, channels).stack(), case.expected[key], atol=5e-5, rtol=1e-4, equal_nan=True
            )


class _Explicit:
    """Self-attention that is at hand as a map."""

    def __init__(self, attention: Tensor) -> None:
        self.attention, self.grid = attention, _grid(attention.shape[0])

    def rows(self, index: Tensor) -> Tensor:
        return self.attention[index]


@pytest.mark.parametrize("case", cases("pipeline"))
def test_pipeline_with_affinity(case: Case):
    layers_used = {name: _Explicit(case.inputs[name].mean(1)[0]) for name in case.options["space_layer"]}
    context = RefinementContext(size=(case.size, case.size), self_attention=layers_used)
    affinity = Affinity(layers=tuple(layers_used), order=case.options["order"])
    channels = "first"
    ours = affinity.refine(_class_maps(case, channels), context).stack()
    torch.testing.assert_close(ours, case.expected["out"], atol=5e-5, rtol=1e-4)
