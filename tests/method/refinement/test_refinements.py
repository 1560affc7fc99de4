"""The other refinements, and their composition."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from goca.errors import ConfigError, ModelError
from goca.method.refinement import CRF, PAMR, Affinity, Needs, Prototype, RefinementContext, Refinements, SpaceMerge, crf
from goca.method.refinement.pamr import median_filter, pamr
from goca.method.refinement.prototype import assign_to_prototypes
from goca.paths import CONF
from tests.helpers.explicit_attention import ExplicitAttention, class_maps, random_maps
from tests.helpers.explicit_heads import random_heads
from tests.helpers.options import option

MODEL = {"layers": {"affinity": ["up.*"], "reference": "up.0"}, "affinity_order": 2}


def _halves(size: int = 8) -> torch.Tensor:
    """1 on the left half, 0 on the right."""
    return (torch.arange(size) < size // 2).float().expand(size, size)


@pytest.mark.parametrize("path", sorted((CONF / "refinement").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_refines(path: Path):
    config = OmegaConf.create({"model": MODEL, "refinement": option("refinement", path.stem)})
    if "CRF" in str(config.refinement) and not crf.available():
        pytest.skip("pydensecrf2 is not installed")
    refinements = instantiate(config.refinement)
    needs, size = refinements.needs, (8, 8)
    assert needs.self_attention in ((), ("up.*",), ("*",))
    context = RefinementContext(
        size,
        {f"up.{i}": random_heads(3, 4, i) for i in range(2) if needs.self_attention},
        {name: torch.randn(6, 4, 4) for name in needs.features},
        torch.rand(3, 16, 16) * 2 - 1 if needs.image else None,
    )
    maps = refinements.refine(random_maps(2, size), context)
    assert maps.stack().shape[0] == 3
    assert maps.stack().isfinite().all()


def test_steps_compose_in_order():
    steps = (PAMR(iterations=1), Affinity(("a", "b")))
    both = Refinements(steps)
    assert both.needs == Needs(("a", "b"), (), True)
    attention = {name: ExplicitAttention.random((4, 4)) for name in "ab"}
    context = RefinementContext((4, 4), attention, image=torch.rand(3, 8, 8))
    maps = random_maps(1, (4, 4))
    by_hand = steps[1].refine(steps[0].refine(maps, context), context)
    assert torch.equal(both.refine(maps, context).stack(), by_hand.stack())
    assert Refinements().refine(maps, context) is maps


def test_pamr_averages_like_colours_only():
    """Two flat halves: scores spread inside a half, hardly across the edge."""
    image = torch.stack([_halves()] * 3)
    mask = torch.rand(1, 8, 8)
    refined = pamr(image, mask, 40, (1, 2))
    left, right = mask[0, :, :4].mean(), mask[0, :, 4:].mean()
    torch.testing.assert_close(refined[0, :, :4].mean(), left, atol=0.1, rtol=0)
    torch.testing.assert_close(refined[0, :, 4:].mean(), right, atol=0.1, rtol=0)
    assert refined[0, :, :4].std() < 0.1 * mask[0, :, :4].std()


def test_pamr_does_not_depend_on_blocks_or_on_the_scale_of_colours():
    image, masks = torch.rand(3, 9, 7), torch.rand(4, 5, 5)
    whole = pamr(image, masks, 3, (1, 2))
    torch.testing.assert_close(pamr(image * 255, masks, 3, (1, 2), max_bytes=1), whole, atol=1e-4, rtol=0)
    assert whole.amin() >= masks.amin()
    assert whole.amax() <= masks.amax()  # weights are a convex combination


def test_median_filter_removes_specks():
    speck = torch.zeros(1, 5, 5)
    speck[0, 2, 2] = 1
    assert not median_filter(speck).any()
    assert torch.equal(median_filter(_halves()[None]), _halves()[None])


def test_crf_without_its_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(crf, "available", lambda: False)
    with pytest.raises(ConfigError, match=r"preset=fttm needs the package pydensecrf2: .*pip install -e '\.\[crf\]'"):
        CRF()


@pytest.mark.skipif(not crf.available(), reason="pydensecrf2 is not installed")
def test_crf_follows_the_edge():
    image = torch.stack([_halves(16)] * 3) * 2 - 1
    noise = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    left = 0.2 * _halves(16) + 0.8 * noise  # right at two pixels of three
    refined = CRF().refine(class_maps(torch.stack([left, 1 - left])), RefinementContext((16, 16), image=image))
    assert torch.equal(refined.scores[0] > refined.supporting, _halves(16) > 0.5)


def test_space_merge_finds_the_blocks_of_the_attention():
    same_half = (_halves().flatten()[:, None] == _halves().flatten()).float()
    attention = ExplicitAttention((same_half + 1e-3) / (same_half + 1e-3).sum(1, keepdim=True), (8, 8))
    scores = torch.stack([0.8 * _halves(), 0.6 * (1 - _halves()), torch.zeros(8, 8)])
    refined = SpaceMerge(("a",)).refine(class_maps(scores), RefinementContext((8, 8), {"a": attention}))
    assert torch.equal(refined.stack(), torch.stack([_halves(), 1 - _halves(), torch.zeros(8, 8)]))


def test_space_merge_leaves_doubtful_segments_without_class():
    attention = ExplicitAttention(torch.full((64, 64), 1 / 64), (8, 8))
    refined = SpaceMerge(("a",)).refine(class_maps(torch.full((2, 8, 8), 0.5)), RefinementContext((8, 8), {"a": attention}))
    assert not refined.stack().any()


def test_prototypes_follow_the_feature():
    feature = torch.stack([_halves(4), 1 - _halves(4)])
    hint = torch.zeros(3, 4, 4)
    hint[0, 0, 0], hint[1, 0, 3] = 1, 1  # one pixel each; the background map stays all zero
    assigned = assign_to_prototypes(hint, feature, (8, 8))
    assert torch.equal(assigned[0], _halves())
    assert torch.equal(assigned[1], 1 - _halves())
    assert not assigned[2].any()
    assert not assign_to_prototypes(torch.zeros(2, 4, 4), feature, (8, 8)).any()


@pytest.mark.parametrize("step", [PAMR(), Prototype("f")] + ([CRF()] if crf.available() else []))
def test_a_missing_image_is_said(step):
    with pytest.raises(ModelError, match="image"):
        step.refine(random_maps(1, (4, 4)), RefinementContext((4, 4), features={"f": torch.randn(2, 4, 4)}))
