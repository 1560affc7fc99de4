"""Layer weights from rows that are drawn by importance, beside whole matrices."""

import pytest
import torch

from goca.attention import by_head
from goca.attention.call import AttentionCall
from goca.attention.reference import Reference
from goca.method.aggregation import layers

GRID = (16, 16)


def _call(seed, grid=GRID, text=0, images=2):
    """A layer whose pixels attend to themselves, some far more than others, as in pictures."""
    generator = torch.Generator().manual_seed(seed)
    pixels = grid[0] * grid[1]
    query = torch.randn(images, 3, pixels, 8, generator=generator) * torch.rand(images, 1, pixels, 1, generator=generator) * 4
    key = torch.cat([torch.randn(images, 3, text, 8, generator=generator), query], 2)
    logits = query @ key.transpose(-1, -2) * 8**-0.5
    call = AttentionCall("layer", grid, query, key, 8**-0.5, image=slice(text, None), lse=logits.logsumexp(-1))
    return call, logits.softmax(-1)[..., text:].mean(1)


def _feature(seed, images=2):
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(images, 12, *GRID, generator=generator) * torch.rand(images, 1, *GRID, generator=generator) * 4


@pytest.fixture
def few(monkeypatch):
    """References of more than 64 pixels are estimated from 48 rows, so that small pictures are."""
    monkeypatch.setattr(layers, "EXACT_UP_TO", 64)
    monkeypatch.setattr(layers, "SAMPLED", 48)
    monkeypatch.setattr(by_head, "MANY_KEYS", 32)


def test_the_diagonal_is_that_of_the_reference():
    feature = _feature(0)
    whole = layers.reference_affinity(feature[1:])[0].diagonal()
    for budget in (2**24, 4 * 256 * 7):
        torch.testing.assert_close(layers.reference_diagonal(feature[1], budget), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("grid", [(16, 16), (9, 14), (64, 48)])
def test_rows_are_as_many_as_asked_for_each_once_and_stand_for_all(grid):
    pixels = grid[0] * grid[1]
    own = torch.rand(pixels, generator=torch.Generator().manual_seed(0)) ** 8
    rows, factors = layers.rows_by_importance(own, grid, 48)
    assert len(rows) == len(rows.unique()) == 48
    assert torch.equal(rows, rows.sort().values)
    assert factors.min() >= 1
    size = own.double() / own.mean() + 1  # a sum of what the chances are in proportion to has no error
    torch.testing.assert_close((size[rows] * factors).sum(), size.sum(), rtol=1e-5, atol=0)


def test_a_row_that_outweighs_all_others_is_certain():
    own = torch.full((256,), 1e-3)
    own[100] = 0.9
    rows, factors = layers.rows_by_importance(own, GRID, 48)
    assert factors[rows.tolist().index(100)] == 1


def test_equal_rows_are_spread_evenly_over_the_picture():
    rows, factors = layers.rows_by_importance(torch.full((256,), 0.1), GRID, 64)
    torch.testing.assert_close(factors, torch.full((64,), 4.0))
    assert torch.bincount((rows // 16 // 4) * 4 + rows % 16 // 4).tolist() == [4] * 16


def test_no_row_is_favoured():
    """Over many pictures an estimate is as often above the sum as below it."""
    errors = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        own, values = torch.rand(256, generator=generator) ** 4, torch.rand(256, generator=generator)
        rows, factors = layers.rows_by_importance(own, GRID, 48)
        errors.append((values[rows] * factors).sum() / values.sum() - 1)
    errors = torch.stack(errors)
    assert abs(errors.mean()) < 3 * errors.std() / len(errors) ** 0.5


@pytest.mark.parametrize("grid", [(16, 16), (8, 8)], ids=["the reference's grid", "a coarser layer"])
@pytest.mark.parametrize("text", [0, 7])
@pytest.mark.parametrize("images", [1, 2])
def test_estimates_are_far_closer_than_sums_over_as_many_rows(few, grid, text, images):
    errors = {"auto": [], 48: []}
    for seed in range(8):
        call, whole = _call(seed, grid, text, images)
        feature = _feature(seed, images)
        rows = layers.resize_keys(whole, grid, GRID)[:, layers.nearest_rows(grid, GRID)]
        exact = (layers.reference_affinity(feature) * rows).sum((1, 2))
        for how, found in errors.items():
            kept = {}
            total = Reference(feature, 2**28, how).agreement("dot_product", call, False, kept)
            found.append(((total * (1 if how == "auto" else 256 / 48) - exact) / exact).abs().mean())
            for image in range(images):
                queries, values = kept["layer"].queries[image], kept["layer"].values[image]
                torch.testing.assert_close(values, whole[image, queries], rtol=1e-4, atol=1e-6)
    by_importance, plain = (float(torch.stack(errors[how]).mean()) for how in ("auto", 48))
    if grid == GRID:  # the coarser layer here knows nothing of the reference: its rows are checked above
        assert by_importance < 0.6 * plain


def test_an_image_gets_the_same_rows_alone_and_in_a_batch(few):
    call, _ = _call(3)
    feature = _feature(3)
    together = Reference(feature, 2**28, "auto").agreement("dot_product", call, False)
    for image in range(2):
        alone = Reference(feature[image : image + 1], 2**28, "auto").agreement("dot_product", call.image_at(image), False)
        torch.testing.assert_close(alone[0], together[image], rtol=1e-5, atol=1e-7)


def test_rows_that_somebody_asked_for_are_taken_alone(few):
    call, whole = _call(0)
    feature = _feature(0)
    rows = layers.sampled_rows(GRID, 40)
    expected = (layers.reference_affinity(feature, rows) * whole[:, rows]).sum((1, 2))
    torch.testing.assert_close(Reference(feature, 2**28, 40).agreement("dot_product", call, False), expected)


@pytest.mark.parametrize("method", ["mse", "iou"])
def test_methods_that_are_no_sum_of_rows_keep_the_stratified_ones(few, method):
    call, _ = _call(0)
    feature = _feature(0)
    found = Reference(feature, 2**28, "auto").agreement(method, call, False)
    torch.testing.assert_close(found, Reference(feature, 2**28, 48).agreement(method, call, False))
