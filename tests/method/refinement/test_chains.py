"""Refinements along heads and resolutions against plain matrices, whether rows are kept or computed again."""

import pytest
import torch

from goca.errors import ConfigError, ModelError
from goca.method.calibration import ClassMaps
from goca.method.refinement import (
    CutFeatures,
    EntropyAffinity,
    GlobalWalk,
    HeadChain,
    LevelPowers,
    MergedAttention,
    Prototype,
    RefinementContext,
    Refinements,
    Round,
    Rounds,
)
from goca.ops import minmax, resize
from tests.helpers.explicit_heads import ExplicitHeads, random_heads


def _maps(side: int, seed: int = 0) -> ClassMaps:
    scores = torch.rand(2, side, side, generator=torch.Generator().manual_seed(seed))
    return ClassMaps((1, 2), scores, torch.zeros(side, side), scores)


def _context(layers: dict[str, ExplicitHeads], side: int, max_bytes: int = 2**26) -> RefinementContext:
    return RefinementContext((side, side), layers, image=torch.rand(3, 32, 32), max_bytes=max_bytes)


BUDGETS = pytest.mark.parametrize("max_bytes", [600, 2**26])


@BUDGETS
def test_head_chain(max_bytes: int):
    layers, maps = {"down.0": random_heads(2, 6, 1), "up.0": random_heads(2, 6, 2), "up.1": random_heads(3, 6, 3)}, _maps(6)
    expected = maps.scores.flatten(1).T
    for heads in (layers["up.0"], layers["up.1"]):  # the last layer's heads stand leftmost, so they act last
        for head in reversed(range(heads.heads)):
            matrix = heads.maps[head]
            matrix = matrix / (matrix.amax(0) + 1e-5)
            matrix = torch.where(matrix < 0.3, 0.0, matrix)
            expected = matrix / (matrix.sum(1, keepdim=True) + 1e-5) @ expected
    refined = HeadChain(0.3).refine(maps, _context(layers, 6, max_bytes))
    torch.testing.assert_close(refined.scores.flatten(1).T, expected)


@BUDGETS
def test_entropy_affinity(max_bytes: int):
    heads, maps = random_heads(3, 5), _maps(5)
    t = heads.maps[[0, 2]].mean(0)
    t = t / t.amax(0)
    t = (t + 0.05 * (1 + t.log()) / torch.tensor(10.0).log()).clamp(min=0)
    t = t / t.sum(1, keepdim=True)
    expected = maps.scores.flatten(1).T
    for step in range(4):
        expected = expected if step == 0 else t @ expected
        expected = expected - expected.amin(0)
        expected = expected / expected.sum(0)
    refined = EntropyAffinity(0.05, 3, heads=(0, 2)).refine(maps, _context({"up.0": heads}, 5, max_bytes))
    torch.testing.assert_close(refined.scores.flatten(1).T, expected)


def test_rounds_keep_the_scale():
    fine, coarse, maps = random_heads(2, 4, 1), random_heads(2, 2, 2), _maps(4)
    refined = Rounds((Round(factors=(1,)), Round(("up*",), (1,), "decoder"))).refine(
        maps, _context({"down.0": coarse, "up.0": fine}, 4)
    )
    matrix = fine.maps.mean(0)
    torch.testing.assert_close(refined.scores.flatten(1).T, matrix @ matrix @ maps.scores.flatten(1).T)


def test_level_powers():
    fine, coarse, maps = random_heads(2, 4, 1), random_heads(2, 2, 2), _maps(4)
    repeated = torch.eye(4).view(4, 2, 2).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)  # keys of 2 x 2 on 4 x 4
    queries = resize(torch.eye(4).view(4, 2, 2), (4, 4), "bicubic").flatten(1).T
    operators = {1: fine.maps.mean(0), 2: queries @ coarse.maps.mean(0) @ repeated}
    expected = sum(
        weight * minmax((operators[factor] @ operators[factor] @ maps.scores.flatten(1).T).T.view(2, 4, 4))
        for factor, weight in ((1, 0.25), (2, 0.75))
    )
    context = _context({"down.0": fine, "down.1": coarse}, 4)
    torch.testing.assert_close(LevelPowers({1: 0.25, 2: 0.75}).refine(maps, context).scores, expected)


def test_global_walk_forgets_neither_itself_nor_colours():
    heads, maps = random_heads(2, 4), _maps(4)
    walk = GlobalWalk(alpha=0.5, beta=1.0, steps=60)
    refined = walk.refine(maps, _context({"up.0": heads}, 4)).scores
    entropies = -(heads.maps * heads.maps.log()).sum(-1).mean(-1)
    matrix = torch.einsum("h,hij->ij", (-entropies / 0.5).softmax(0), heads.maps)
    limit = 0.5 * torch.linalg.solve(torch.eye(16) - 0.5 * matrix, maps.scores.flatten(1).T)
    torch.testing.assert_close(refined, minmax(limit.T.view(2, 4, 4)), atol=1e-5, rtol=1e-4)


def test_layers_of_several_grids_are_refused():
    layers = {"up.0": random_heads(2, 4), "up.1": random_heads(2, 2)}
    with pytest.raises(ModelError, match="one grid"):
        HeadChain(0.1, factors=None).refine(_maps(4), _context(layers, 4))


def test_segments_of_two_halves():
    """Pixels attend to their own half alone: two segments, each taking the class that its half favours."""
    half = torch.zeros(64)
    half[32:] = 1
    attention = (5.0 * (half[:, None] == half[None])).softmax(-1)
    scores = torch.stack([1 - half, half]).view(2, 8, 8)
    context = _context({"up.0": ExplicitHeads(attention[None])}, 8)
    maps = ClassMaps((3, 7), scores, torch.zeros(8, 8), scores)
    segments = MergedAttention((0.5, 0.5, 0.5), points=4).refine(maps, context)
    assert segments.ids == (1, 2)
    assert torch.equal(segments.scores.argmax(0).flatten(), half.long())
    named = MergedAttention((0.5, 0.5, 0.5), points=4, names="attention").refine(maps, context)
    assert torch.equal(named.scores, scores)


def test_layers_by_place():
    """Of the chosen layers, counted from the end; what a model lacks is left out, and nothing left is an error."""
    layers = {name: random_heads(2, 6, number) for number, name in enumerate(("down.0", "up.0", "up.1", "up.2"))}
    context, maps = _context(layers, 6), _maps(6)

    def refined(places: tuple[int, ...] | None, *names: str) -> torch.Tensor:
        return HeadChain(0.3, layers=names or ("*",), places=places).refine(maps, context).scores

    torch.testing.assert_close(refined((-2, -3)), refined(None, "up.0", "up.1"), rtol=0, atol=0)
    torch.testing.assert_close(refined((-2, -9)), refined(None, "up.1"), rtol=0, atol=0)
    with pytest.raises(ModelError, match=r"no layer number 7 among up\.0, up\.1, up\.2"):
        refined((7,))


def test_features_of_two_kinds_are_refused():
    steps = Refinements((CutFeatures("mid"), Prototype("mid")))
    with pytest.raises(ConfigError, match=r"features of different kinds \(projected and the model's own\)"):
        _ = steps.needs
    assert Refinements((Prototype("mid"), Prototype("up"))).needs.features == ("mid", "up")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factors": ()}, "factors"),
        ({"places": ()}, "places"),
        ({"head": 2}, "combine=chain takes all heads"),
        ({"combine": "mean", "head": 1}, "combine=mean takes all heads"),
    ],
)
def test_a_choice_of_nothing_or_one_that_is_not_read_is_refused(options: dict, said: str):
    with pytest.raises(ValueError, match=said):
        HeadChain(0.1, **options)
