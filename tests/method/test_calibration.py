"""Calibration chains, their degenerate cases and steps of one's own."""

from dataclasses import dataclass, field

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from goca.errors import ConfigError
from goca.method.calibration import STEPS, Calibration, calibration_step
from goca.ops import gaussian_blur, minmax
from goca.paths import CONF
from goca.prediction import join
from tests.helpers.options import option


@dataclass
class Groups:
    class_tokens: dict[int, tuple[int, ...]]
    background_groups: tuple[tuple[int, ...], ...] = ()
    alternatives: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    lost_classes: tuple[int, ...] = ()

    @property
    def content(self) -> tuple[int, ...]:
        return tuple(sorted({t for group in (*self.class_tokens.values(), *self.background_groups) for t in group}))


PROMPT = Groups({7: (1, 2), 3: (4,)}, ((5,), (6, 7)))


def token_maps(seed: int = 0, tokens: int = 10) -> torch.Tensor:
    """Maps that add up to 1 over tokens at each pixel, as aggregation gives them; token 0 holds most."""
    logits = torch.randn(tokens, 8, 8, generator=torch.Generator().manual_seed(seed))
    logits[0] += 3
    return logits.softmax(0)


def test_goca_by_hand():
    maps = token_maps()
    factor = maps[[1, 2, 4, 5, 6, 7]].sum(0)
    result = Calibration()(maps, PROMPT)
    assert result.ids == (7, 3)
    torch.testing.assert_close(result.scores[0], minmax(gaussian_blur(maps[[1, 2]].mean(0) / factor)))
    torch.testing.assert_close(result.scores[1], minmax(gaussian_blur(maps[4] / factor)))
    background = [minmax(gaussian_blur(group / factor)) for group in (maps[5], maps[[6, 7]].mean(0))]
    torch.testing.assert_close(result.supporting, torch.maximum(*background))
    torch.testing.assert_close(result.raw, torch.stack([maps[[1, 2]].mean(0), maps[4]]))
    assert result.warnings == ()


def test_per_pixel_shares_add_up_to_one():
    """With sums for groups and one background group the shares of all groups cover the content."""
    prompt = Groups({7: (1, 2), 3: (4,)}, ((5, 6),))
    result = Calibration(("per_pixel",), "sum")(token_maps(), prompt)
    torch.testing.assert_close(result.scores.sum(0) + result.supporting, torch.ones(8, 8))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_rescaling_does_not_see_the_mass_of_special_tokens(seed, mass):
    """The paper's point: whatever a special token takes away at a pixel, shares among the content stay the same."""
    maps = token_maps(seed)
    thinned = maps * (1 + mass * torch.rand(8, 8))
    torch.testing.assert_close(Calibration()(maps, PROMPT).stack(), Calibration()(thinned, PROMPT).stack(), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["goca", "vanilla", "per_pixel_max", "compound", "max"]))
def test_range_and_order_of_classes(seed, name):
    calibration = instantiate(option("calibration", name))
    maps = token_maps(seed)
    result = calibration(maps, PROMPT)
    assert result.stack().amin() >= 0
    assert result.stack().amax() <= 1
    swapped = calibration(maps, Groups(dict(reversed(PROMPT.class_tokens.items())), PROMPT.background_groups))
    torch.testing.assert_close(swapped.scores, result.scores.flip(0))
    assert swapped.ids == result.ids[::-1]


@pytest.mark.parametrize("name", ["goca", "per_pixel", "per_pixel_max", "compound"])
def test_one_content_group_is_not_divided_by_itself(name):
    calibration = instantiate(option("calibration", name))
    result = calibration(token_maps(), Groups({7: (1, 2)}))
    assert result.scores.std() > 0
    assert result.warnings == ()
    background = calibration(token_maps(), Groups({}, ((1, 2),)))
    assert background.scores.shape == (0, 8, 8)
    assert background.supporting.std() > 0


def test_words_of_a_class_are_scored_apart_and_the_best_one_counts_at_each_pixel():
    several = Groups({7: (1, 2, 8), 3: (4,)}, ((5,), (6, 7)), {7: ((1, 2), (8,))})
    as_classes = Groups({7: (1, 2), 9: (8,), 3: (4,)}, ((5,), (6, 7)))
    for name in ("goca", "compound", "per_pixel_max_raw"):
        calibration = instantiate(option("calibration", name))
        found, apart = calibration(token_maps(), several), calibration(token_maps(), as_classes)
        assert found.ids == (7, 3)
        assert torch.equal(found.scores, torch.stack([apart.scores[:2].amax(0), apart.scores[2]]))
        assert torch.equal(found.raw, torch.stack([apart.raw[:2].amax(0), apart.raw[2]]))
        assert torch.equal(found.supporting, apart.supporting)


def test_a_class_of_several_prompts_has_the_best_of_its_maps():
    first, second = (Calibration()(token_maps(seed), PROMPT) for seed in (0, 1))
    other = Calibration()(token_maps(2), Groups({5: (1,)}, ((2,),)))
    joined = join([first, second, other], 8)
    assert joined.ids == (7, 3, 5)
    assert torch.equal(joined.scores, torch.cat([torch.maximum(first.scores, second.scores), other.scores]))
    assert torch.equal(joined.supporting, torch.stack([part.supporting for part in (first, second, other)]).amax(0))


def test_a_class_without_tokens_is_left_out_and_named():
    result = Calibration()(token_maps(), Groups({7: (1,), 5: (), 3: (4,)}))
    assert result.ids == (7, 3)
    assert any("class 5" in warning for warning in result.warnings)
    kept = Calibration(parity=True)(token_maps(), Groups({7: (1,), 5: (), 3: (4,)}))
    assert kept.ids == (7, 5, 3)
    assert kept.scores[1].isnan().all()


def test_a_class_that_the_prompt_lost_is_nan_in_the_released_arithmetic_alone():
    cut_off = Groups({7: (1,), 3: (4,)}, lost_classes=(5,))
    assert Calibration()(token_maps(), cut_off).ids == (7, 3)
    kept = Calibration(parity=True)(token_maps(), cut_off)
    assert kept.ids == (7, 3, 5)
    assert kept.scores[2].isnan().all() and not kept.scores[:2].isnan().any()


@pytest.mark.parametrize("steps", [(), ("max",), ("minmax",), ("per_pixel", "minmax", "times_raw", "minmax")])
def test_a_constant_map_becomes_zeros_with_a_warning(steps):
    maps = torch.full((4, 8, 8), 0.25)
    result = Calibration(steps)(maps, Groups({7: (1,), 3: (2,)}, ((3,),)))
    assert not result.stack().any()
    assert len(result.warnings) == 3
    assert "background group 0" in result.warnings[2]


def test_pixels_without_content_are_zero_not_nan():
    maps = token_maps()
    maps[1:, 0, 0] = 0
    result = Calibration(("per_pixel",))(maps, PROMPT)
    assert not result.stack()[:, 0, 0].any()
    assert result.stack().isfinite().all()


def test_no_content_at_all():
    result = Calibration()(token_maps(), Groups({}))
    assert result.ids == ()
    assert result.stack().shape == (1, 8, 8)
    assert not result.supporting.any()


def squared(maps, groups):
    return maps**2


def test_lift_and_share_do_not_see_how_much_attention_a_word_has():
    maps = token_maps()
    louder = maps.clone()
    louder[4] *= 20  # the one token of class 3
    calibration = Calibration(("lift", "share"))
    expected = maps[[1, 2]].mean(0), maps[4], maps[5], maps[[6, 7]].mean(0)
    lifted = torch.stack([group / group.mean() for group in expected])
    for tokens in (maps, louder):
        found = calibration(tokens, PROMPT)
        torch.testing.assert_close(found.scores, (lifted / lifted.sum(0))[:2])
    assert not torch.allclose(
        Calibration(("per_pixel",))(louder, PROMPT).scores, Calibration(("per_pixel",))(maps, PROMPT).scores
    )


def test_a_step_of_ones_own():
    expected = Calibration(("per_pixel",))(token_maps(), PROMPT).scores ** 2
    by_path = Calibration(("per_pixel", f"{__name__}.squared"))(token_maps(), PROMPT)
    torch.testing.assert_close(by_path.scores, expected)
    calibration_step(squared)
    try:
        torch.testing.assert_close(Calibration(("per_pixel", "squared"))(token_maps(), PROMPT).scores, expected)
    finally:
        del STEPS["squared"]


def test_wrong_names_say_what_is_right():
    with pytest.raises(ConfigError, match=r"'per_pixle'.*per_pixel, max, minmax, stretch, .*lift, share, times_raw"):
        Calibration(("per_pixle",))
    with pytest.raises(ConfigError, match="no_such_module"):
        Calibration(("no_such_module.step",))
    with pytest.raises(ValidationError, match="'mean' or 'sum'"):
        Calibration(token_reduction="median")


OF_TOKENS = [path for path in sorted((CONF / "calibration").glob("*.yaml")) if path.stem != "files"]  # which reads no tokens


@pytest.mark.parametrize("path", OF_TOKENS, ids=lambda path: path.stem)
def test_every_config_gives_finite_maps(path):
    result = instantiate(option("calibration", path.stem))(token_maps(), PROMPT)
    assert result.stack().isfinite().all()
    assert result.size == (8, 8)
