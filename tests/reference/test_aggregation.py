"""Head weights, layer weights and aggregated maps against the authors' function, then the whole chain to class maps.

The default `reference_channels: all` is compared with `out_ref_all_channels`, the option `first` with `out` (docs/parity.md,
Q1).
"""

import pytest
import torch

from goca.method.calibration import Calibration
from goca.method.refinement import Affinity, RefinementContext
from tests.helpers.explicit_attention import ExplicitAttention
from tests.helpers.reference_cases import Case, cases
from tests.helpers.reference_chain import CHAINS, aggregated, layer_map, layer_names, layer_weights, prompt_of

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


@pytest.mark.parametrize("case", SAME)
def test_head_weights(case: Case):
    for name in layer_names(case):
        expected = case.expected[f"head_aggregated/{name}-cross-map"]
        torch.testing.assert_close(layer_map(case, name)[0], expected, **TOLERANCE)


@pytest.mark.parametrize("case", cases("goca_cross_run", where=lambda case: case.id in DIFFERENT))
def test_pixels_without_direction_are_averaged(case: Case):
    for name in layer_names(case):
        expected, ours = case.expected[f"head_aggregated/{name}-cross-map"], layer_map(case, name)[0]
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
    torch.testing.assert_close(layer_weights(case, "first")[0], case.expected["layer_weights"], **TOLERANCE)
    if "layer_weights_ref_all_channels" in case.expected:
        torch.testing.assert_close(layer_weights(case, "all")[0], case.expected["layer_weights_ref_all_channels"], **TOLERANCE)


@pytest.mark.parametrize("case", SAME)
def test_aggregated_token_maps(case: Case):
    ours = aggregated(case, layer_weights(case, "first"))[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, case.expected["aggregated"], **TOLERANCE)


def _class_maps(case: Case, channels: str):
    calibration = Calibration(CHAINS[case.options["rescale_method"]], case.options["multi_token_method"], parity=True)
    return calibration(aggregated(case, layer_weights(case, channels))[0], prompt_of(case))


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


@pytest.mark.parametrize("case", cases("pipeline"))
def test_pipeline_with_affinity(case: Case):
    layers_used = {name: ExplicitAttention.square(case.inputs[name].mean(1)[0]) for name in case.options["space_layer"]}
    context = RefinementContext(size=(case.size, case.size), self_attention=layers_used)
    affinity = Affinity(layers=tuple(layers_used), order=case.options["order"])
    channels = "first"
    ours = affinity.refine(_class_maps(case, channels), context).stack()
    torch.testing.assert_close(ours, case.expected["out"], atol=5e-5, rtol=1e-4)
