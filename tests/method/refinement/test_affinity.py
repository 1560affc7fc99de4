"""Propagation along affinities against T built in full."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from goca.errors import ModelError
from goca.method.refinement import Activation, Affinity, RandomWalk, RefinementContext
from goca.method.refinement.propagation import Propagation, affinity_rows
from goca.ops import minmax
from tests.helpers.explicit_attention import ExplicitAttention, class_maps, random_maps

grids = st.tuples(st.integers(1, 7), st.integers(1, 7))


def oracle(attention: ExplicitAttention, size: tuple[int, int]) -> Tensor:
    """T (N, N) of one layer as docs/method.md states it: keys bilinear, queries nearest, every entry formed."""
    keys = F.interpolate(attention.maps.view(-1, 1, *attention.grid), size, mode="bilinear", align_corners=False)
    queries = keys.flatten(1).T.reshape(-1, 1, *attention.grid)  # (keys, 1, h, w)
    return F.interpolate(queries, size, mode="nearest").flatten(1).T


@settings(deadline=None, max_examples=40)
@given(
    size=grids,
    layers=st.lists(grids, min_size=1, max_size=4),
    channels=st.integers(1, 3),
    max_bytes=st.sampled_from([1, 600, 2**20]),
)
def test_propagation_equals_the_full_matrix(size, layers, channels, max_bytes):
    attentions = [ExplicitAttention.random(grid, seed) for seed, grid in enumerate(layers)]
    full = sum(oracle(attention, size) for attention in attentions) / len(attentions)
    maps = torch.rand(channels, *size)
    expected = (full @ maps.flatten(1).T).T.view_as(maps)
    for keep_bytes in (0, 2**20):
        operator = Propagation(attentions, size, keep_bytes, max_bytes)
        torch.testing.assert_close(operator(maps), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(operator(maps), expected, atol=1e-5, rtol=1e-5)  # a second order
    rows = torch.cat([rows for _, rows in affinity_rows(attentions, size, max_bytes)])
    torch.testing.assert_close(rows, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_order_and_range(order: int, seed: int):
    """A step rounds at the size of the values; T shrinks their range, and min-max magnifies the rounding by value / range."""
    attention, maps = ExplicitAttention.random((6, 6), seed), random_maps(2, (6, 6), seed)
    refined = Affinity(("a",), order).refine(maps, RefinementContext((6, 6), {"a": attention}))
    power = torch.linalg.matrix_power(attention.maps.double(), order)
    exact = (power @ maps.stack().double().flatten(1).T).T.view(3, 6, 6)
    eps, largest = order * torch.finfo(torch.float32).eps, exact.amax((1, 2))
    operator, spread_out = Propagation([attention], (6, 6), 0, 2**20), maps.stack()
    for _ in range(order):
        spread_out = operator(spread_out)
    torch.testing.assert_close(spread_out.double(), exact, atol=0, rtol=8 * eps)
    bounds = 8 * eps * largest / (largest - exact.amin((1, 2)))
    for found, expected, bound in zip(refined.stack(), minmax(exact), bounds.tolist(), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=bound, rtol=0)
    assert refined.stack().amin() == 0.0
    assert refined.stack().amax() == 1.0


def test_rows_are_computed_once_however_high_the_order():
    attention = ExplicitAttention.random((4, 4))
    Affinity(("a",), 5).refine(random_maps(2, (8, 8)), RefinementContext((8, 8), {"a": attention}))
    assert sorted(attention.asked) == list(range(16))


def test_only_rows_that_the_nearest_rule_takes_are_computed():
    attention = ExplicitAttention.random((8, 8))
    Affinity(("a",), 1).refine(random_maps(2, (4, 4)), RefinementContext((4, 4), {"a": attention}))
    assert sorted(attention.asked) == [y * 8 + x for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)]


def test_an_all_zero_background_is_left_out_and_put_back():
    attention, maps = ExplicitAttention.random((4, 4)), random_maps(2, (4, 4)).stack()
    maps[-1] = 0
    refined = Affinity(("a",)).refine(class_maps(maps), RefinementContext((4, 4), {"a": attention}))
    assert not refined.supporting.any()
    assert refined.scores.amax() == 1.0
    assert not refined.warnings


def test_a_levelled_map_becomes_zeros_with_a_warning():
    attention = ExplicitAttention(torch.full((16, 16), 1 / 16), (4, 4))
    refined = Affinity(("a",)).refine(random_maps(1, (4, 4)), RefinementContext((4, 4), {"a": attention}))
    assert not refined.stack().any()
    assert len(refined.warnings) == 2
    assert "class 1" in refined.warnings[0]


def test_no_class_and_no_background_pass_through():
    context = RefinementContext((4, 4), {"a": ExplicitAttention.random((4, 4))})
    refined = Affinity(("a",)).refine(class_maps(torch.zeros(1, 2, 2)), context)
    assert refined.scores.shape == (0, 4, 4)
    assert refined.supporting.shape == (4, 4)


def test_maps_of_another_size_come_to_the_context_grid():
    context = RefinementContext((4, 4), {"a": ExplicitAttention.random((4, 4))})
    assert Affinity(("a",)).refine(random_maps(2, (9, 7)), context).size == (4, 4)


def test_globs_and_unknown_layers():
    context = RefinementContext((4, 4), {f"up.{i}": ExplicitAttention.random((4, 4), i) for i in range(2)})
    both = Affinity(("up.*",)).refine(random_maps(1, (4, 4)), context)
    listed = Affinity(("up.0", "up.1")).refine(random_maps(1, (4, 4)), context)
    assert torch.equal(both.stack(), listed.stack())
    with pytest.raises(ModelError, match=r"'down\.0'"):
        Affinity(("down.0",)).refine(random_maps(1, (4, 4)), context)


@pytest.mark.parametrize("channels", ["all", "first"])
def test_activation_is_the_softmax_of_feature_products(channels):
    feature, maps = torch.randn(5, 6, 6), random_maps(2, (6, 6))
    used = feature if channels == "all" else feature[:1]
    flat = used.flatten(1)
    matrix = (flat.T @ flat / len(used) ** 0.5).softmax(1)
    refined = Activation(("f",), 1, channels).refine(maps, RefinementContext((6, 6), features={"f": feature}))
    torch.testing.assert_close(refined.stack(), minmax((matrix @ maps.stack().flatten(1).T).T.view(3, 6, 6)), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu():
    attention, maps = ExplicitAttention.random((6, 6)), random_maps(2, (8, 8)).stack()
    on_cpu = Affinity(("a",)).refine(class_maps(maps), RefinementContext((8, 8), {"a": attention}))
    moved = ExplicitAttention(attention.maps.cuda(), attention.grid)
    on_gpu = Affinity(("a",)).refine(class_maps(maps.cuda()), RefinementContext((8, 8), {"a": moved}))
    torch.testing.assert_close(on_gpu.stack().cpu(), on_cpu.stack(), atol=1e-4, rtol=0)


def test_a_random_walk_goes_to_its_limit_and_keeps_part_of_every_map():
    attention, maps = ExplicitAttention.random((5, 5)), random_maps(2, (5, 5))
    joint = ExplicitAttention(0.3 * attention.maps, (5, 5))  # of joint attention, whose rows sum to less than 1
    start = maps.stack().flatten(1).T
    limit = torch.linalg.solve(torch.eye(25) - 0.6 * attention.maps, 0.4 * start).T.view(3, 5, 5)
    for affinity in (attention, joint):
        refined = RandomWalk(("a",), restart=0.4, steps=40).refine(maps, RefinementContext((5, 5), {"a": affinity}))
        torch.testing.assert_close(refined.stack(), minmax(limit), atol=1e-4, rtol=0)
