"""Region masks, rate maps and smoothing of guided generation against the authors' functions.

Cases that are not compared, or only in part, stand in docs/parity.md with the reason.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from goca import ops
from goca.generation import rate as rates
from goca.generation.regions import Regions, find_regions
from goca.generation.roles import TokenRoles, content_positions
from goca.method.calibration import Calibration
from goca.method.refinement import Affinity, RefinementContext, Refinements
from tests.helpers.explicit_attention import ExplicitAttention
from tests.helpers.reference_cases import REFERENCE, Case, cases
from tests.helpers.reference_chain import aggregated, layer_map, layer_weights

GENERATION = REFERENCE / "generation"
CHAINS = {
    "raw": (),
    "per-token renorm+": ("minmax",),
    "sum-1 rescaling + per-token renorm+": ("per_pixel", "minmax"),
}
# A pixel without any direction is NaN in the authors' code and blanks every mask; here it gets the mean over heads.
NOT_FINITE = {"mask/quirk_nan_cond", "mask/quirk_nan_uncond"}
# One word divided by itself; their min-max then makes rounding noise of it. Only the foreground is comparable.
ONE_WORD = {"mask/quirk_single_token_prompt_sum1"}
# The SD code on T5 features: the foreground is rounding noise. Only the regions are comparable.
NOISY_FOREGROUND = {"mask_sigma/quirk_utils_15_code"}


def _masks(**options):
    return cases("get_mask", folder=GENERATION, **options)


def _half(case: Case, half: int) -> SimpleNamespace:
    """One half of the guidance batch, in the form that the aggregation tests read."""
    shared = ("special-weight", "special-value")  # the value's batch axis is folded into its heads; no method here reads it
    inputs = {
        name: tensor.float() if name.endswith(shared) else tensor.float()[half : half + 1]
        for name, tensor in case.inputs.items()
    }
    return SimpleNamespace(
        id=case.id, inputs=inputs, options=case.options, map_layers=_layers(case), size=case.options["feat_size"]
    )


def _layers(case: Case) -> list[str]:
    index = json.loads((GENERATION / "cases.json").read_text())
    return index["feature_sets"][case.feature_set]["map_layers"]


def _roles(case: Case) -> TokenRoles:
    content = tuple(case.rescaling_token_id)
    token, half = (0, "unconditional") if case.global_token_id is None else (case.global_token_id, "conditional")
    return TokenRoles(tuple(case.tokens), content, tuple(range(content[-1] + 1)), token, half)


def _regions(case: Case) -> Regions:
    negative, positive = _half(case, 0), _half(case, 1)
    found = {half: aggregated(part, layer_weights(part, "all"))[0] for half, part in enumerate((negative, positive))}
    roles = _roles(case)
    attention = {name: ExplicitAttention.square(positive.inputs[name].mean(1)[0]) for name in case.options["space_layer"]}
    context = RefinementContext(size=(positive.size, positive.size), self_attention=attention)
    refinement = Refinements((Affinity(layers=tuple(attention), order=case.options["order"]),))
    global_map = found[roles.global_half == "conditional"][roles.global_token]
    calibration = Calibration(CHAINS[case.options["rescale_method"]])
    return find_regions(found[1], global_map, roles, calibration, refinement, context)


def _same_masks(ours: Tensor, expected: Tensor, scores: Tensor, tolerance: float = 1e-4) -> None:
    """Equal, except where two tokens are closer than the tolerance."""
    differ = (ours != expected.bool()).any(0)
    top = scores.topk(2, dim=0).values
    assert (top[0] - top[1])[differ].abs().le(tolerance).all() and differ.float().mean() < 0.01


@pytest.mark.parametrize("case", _masks(where=lambda case: case.id not in NOT_FINITE | ONE_WORD))
def test_regions(case: Case):
    _same_masks((ours := _regions(case)).tokens, case.expected["ca_mask"][0], ours.scores)
    if case.mask_exact:
        assert torch.equal(ours.tokens, case.expected["ca_mask"][0].bool())
    if "pos_affinity" in case.expected:
        competing = list(_roles(case).competing)
        torch.testing.assert_close(ours.scores[competing], case.expected["pos_affinity"][competing], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", _masks(where=lambda case: case.id not in NOT_FINITE | NOISY_FOREGROUND))
def test_foreground(case: Case):
    ours = _regions(case)
    torch.testing.assert_close(ours.background, case.expected["fore_map"], atol=1e-4, rtol=0)
    assert torch.equal(ours.foreground, case.expected["fore_mask"][0, 0].bool())


@pytest.mark.parametrize("case", _masks(where=lambda case: case.id not in NOT_FINITE))
def test_aggregation_of_both_halves(case: Case):
    for half, sign in enumerate(("neg", "pos")):
        part = _half(case, half)
        weights = layer_weights(part, "all")
        torch.testing.assert_close(weights[0], case.expected[f"layer_weights_{sign}"], atol=1e-5, rtol=1e-5)
        for name in case.expected:
            if name.startswith(f"head_aggregated_{sign}/"):
                layer = name.split("/")[1].removesuffix("-cross-map")
                torch.testing.assert_close(layer_map(part, layer)[0], case.expected[name], atol=1e-5, rtol=1e-5)
        if f"{sign}_aggregated" in case.expected:
            ours = aggregated(part, weights)[0].permute(1, 2, 0)
            torch.testing.assert_close(ours, case.expected[f"{sign}_aggregated"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", _masks(where=lambda case: case.id in NOT_FINITE | ONE_WORD))
def test_where_the_released_code_breaks_ours_stays_finite(case: Case):
    ours = _regions(case)
    assert ours.scores.isfinite().all() and ours.tokens.any(0).all()
    assert 0 < ours.foreground.float().mean() < 1


@pytest.mark.parametrize("case", cases("rate", folder=GENERATION))
def test_rate(case: Case):
    unconditional, conditional = case.inputs["noise_pred_uncond"][0], case.inputs["noise_pred_text"][0]
    regions, foreground = case.inputs["ca_mask"][0].float(), case.inputs["fore_mask"][0, 0].float()
    strength = rates.guidance_strength(unconditional, conditional)
    size = tuple(strength.shape)
    resized, fore = (ops.resize(mask, size, "nearest") for mask in (regions, foreground))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(rates.mean_inside(strength, resized), case.expected["delta_mask_norms"][0], **close)
    torch.testing.assert_close(rates.mean_inside(strength, fore), case.expected["fore_norms"].flatten()[0], **close)
    torch.testing.assert_close(rates.token_rates(strength, resized, fore), case.expected["rate_per_token"][0], **close)
    scale = case.options["guidance_scale"]
    ours = rates.rate_map(strength, regions, foreground, scale)
    torch.testing.assert_close(ours, case.expected["rate_after_smoothing"].reshape(size), **close)
    # What an unmodified pipeline makes of the replaced conditional half.
    guided = unconditional + scale * (rates.guide(unconditional, conditional, ours) - unconditional)
    expected = case.expected["noise_pred"][0]
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "case",
    cases(
        "gaussian_smoothing",
        folder=GENERATION,
        where=lambda case: case.options["dim"] == 2 and isinstance(size := case.options["kernel_size"], int) and size % 2 == 1,
    ),
)
def test_smoothing(case: Case):
    size, sigma = case.options["kernel_size"], case.options["sigma"]
    (image,) = case.inputs.values()
    margin = size // 2  # the module does not pad
    blurred = ops.gaussian_blur(image, size, sigma * 2**0.5)[..., margin:-margin, margin:-margin]
    torch.testing.assert_close(blurred, case.expected["out"], atol=1e-6, rtol=1e-5)
    weight = case.expected["weight"][:1].reshape(1, 1, size, size)
    impulse = F.pad(torch.ones(1, 1, 1, 1), [size] * 4)
    drawn = ops.gaussian_blur(impulse, size, sigma * 2**0.5)
    torch.testing.assert_close(drawn[..., size - margin : size + margin + 1, size - margin : size + margin + 1], weight)


def _tokenizations():
    path = GENERATION / "tokenization.json"
    found = json.loads(path.read_text())["cases"] if path.is_file() else []
    return [pytest.param(entry, id=f"{i}-{entry['tokenizer']}") for i, entry in enumerate(found) if entry.get("raw_tokens")]


@pytest.mark.parametrize("entry", _tokenizations())
def test_words_of_a_prompt(entry):
    special = {"clip": {"<|startoftext|>", "<|endoftext|>"}, "t5": {"</s>", "<pad>"}}[entry["tokenizer"]]
    assert list(content_positions(entry["raw_tokens"], frozenset(special))) == (entry["rescaling_token_id"] or [])
