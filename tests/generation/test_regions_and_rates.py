"""Properties of regions and rates beyond the reference cases."""

import pytest
import torch

from goca.generation.rate import guidance_strength, guide, rate_map
from goca.generation.regions import calibrate_tokens, find_regions, region_masks
from goca.generation.roles import TokenRoles, token_roles
from goca.method.calibration import Calibration
from goca.method.refinement import RefinementContext, Refinements
from goca.prompts.prompt import TextSegment
from goca.scenes.tokenizer import small_clip_tokenizer, small_t5_tokenizer

ROLES = TokenRoles(("<s>", "red", "car", "<e>"), (1, 2), (0, 1, 2), 0, "unconditional")


def test_roles_of_clip_and_t5():
    clip = token_roles("moon, grass", [TextSegment(small_clip_tokenizer(max_length=8), 8)])
    assert clip.content == (1, 2, 3) and clip.competing == (0, 1, 2, 3)
    assert (clip.global_token, clip.global_half) == (0, "unconditional")
    t5 = token_roles("moon", [TextSegment(small_t5_tokenizer(), 12)])
    assert t5.global_half == "conditional" and t5.global_token == t5.competing[-1] + 1


def test_roles_on_an_axis_of_several_segments():
    segments = [TextSegment(small_clip_tokenizer(max_length=8), 8), TextSegment(small_t5_tokenizer(), 12, start=8)]
    roles = token_roles("moon", segments)
    assert (roles.global_token, roles.global_half, len(roles.tokens)) == (0, "unconditional", 20)
    assert {1, 8} <= set(roles.content)


def test_every_pixel_belongs_to_a_token_and_padding_to_none():
    maps = torch.rand(4, 12, 12)
    context = RefinementContext(size=(12, 12))
    regions = find_regions(maps, maps[0], ROLES, Calibration(), Refinements(), context)
    assert regions.tokens.any(0).all() and not regions.tokens[3].any()
    assert 0 < regions.foreground.float().mean() < 1


def test_a_single_word_keeps_its_map():
    maps = torch.rand(4, 12, 12)
    one = TokenRoles(ROLES.tokens, (1,), (0, 1), 0, "unconditional")
    calibrated = calibrate_tokens(maps, one, Calibration())
    assert not calibrated.warnings and calibrated.scores[1].max() == 1


def test_tokens_that_tie_share_a_pixel():
    assert region_masks(torch.tensor([[[1.0, 0.2]], [[1.0, 0.7]]])).tolist() == [[[True, False]], [[True, True]]]


def test_an_even_prediction_is_left_alone_and_a_weak_region_is_strengthened():
    left = torch.zeros(2, 8, 8, dtype=torch.bool)
    left[0, :, :4] = left[1, :, 4:] = True
    foreground = left[1]
    assert rate_map(torch.full((8, 8), 3.0), left, foreground, 5.0).sub(1).abs().max() < 1e-5
    strength = torch.where(left[0], 0.5, 1.0)
    rate = rate_map(strength, left, foreground, 5.0)
    assert rate[0, 0] == pytest.approx(2.0) and rate[0, 7] == pytest.approx(1.0)
    assert rate_map(strength, left, foreground, 10.0).max() == pytest.approx(1.5)  # 15 / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type_and_small_numbers(dtype):
    unconditional, conditional = torch.randn(2, 4, 8, 8).mul(1e-3).to(dtype)
    regions = torch.ones(1, 8, 8, dtype=torch.bool)
    rate = rate_map(guidance_strength(unconditional, conditional), regions, regions[0], 3.0)
    assert rate.isfinite().all() and guide(unconditional, conditional, rate).dtype == dtype
    assert torch.equal(guide(unconditional, conditional, torch.ones(8, 8)), conditional)
