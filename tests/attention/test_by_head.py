"""Sums over heads one at a time: the same numbers as a softmax over all heads, for every number format, size and block."""

from dataclasses import replace

import pytest
import torch

from goca.attention import by_head
from goca.attention.call import AttentionCall, with_precision
from goca.attention.reductions import mean_rows, weighted_map

# Of the norm of head-mean rows, beside float64; products are rounded to 8 and 11 bits, sums are not.
ERROR = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def _call(dtype, text=0, pixels=48, images=2, width=16, seed=0, gain=1.5):
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(images, 3, n, width, generator=generator).mul(gain).to(dtype) for n in (pixels, text + pixels))
    lse = torch.logsumexp(query.double() @ key.double().transpose(-1, -2) * width**-0.5, -1).float()
    parts = {"text": slice(0, text) if text else None, "image": slice(text, text + pixels)}
    call = AttentionCall("layer", (6, pixels // 6), query, key, width**-0.5, lse=lse, **parts)
    return with_precision(call, "model")


def _exact(call):
    return (call.query.double() @ call.key.double().transpose(-1, -2) * call.scale).softmax(-1)


def _error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(by_head, "MANY_KEYS", 16)


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("text", [0, 7])
@pytest.mark.parametrize("max_bytes", [2**28, 4 * 4 * 55 * 5])
def test_head_mean_rows(large, dtype, text, max_bytes):
    call, rows = _call(dtype, text), torch.arange(0, 48, 3)
    assert by_head.fits(call)
    found = mean_rows(call, rows, max_bytes)
    assert found.dtype == torch.float32
    assert _error(found, _exact(call).mean(1)[:, rows][..., call.image]) < ERROR[dtype]


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("alike", [True, False])
def test_weighted_maps(large, dtype, alike):
    call = _call(dtype, 7)
    weights = torch.full((1, 1, 1), 1 / 3).expand(2, 3, 48) if alike else torch.randn(2, 3, 48)
    expected = (_exact(call) * weights[..., None]).sum(1)[..., call.text]
    assert _error(weighted_map(call, weights, 4 * 4 * 7 * 10), expected) < 2 * ERROR[dtype]
    padded = weighted_map(replace(call, text_axis=9), weights, 2**28)
    assert padded.shape == (2, 48, 9)
    assert not padded[..., 7:].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_image_of_a_batch_is_the_same_alone(dtype):
    """What a call has prepared for its batch is cut with it."""
    call, rows = _call(dtype), torch.arange(48)
    together = mean_rows(call, rows, 2**28)
    assert call.scratch
    torch.testing.assert_close(mean_rows(call.image_at(1), rows, 2**28)[0], together[1], atol=1e-6, rtol=1e-5)


def test_what_is_small_masked_linear_or_without_its_sum_keeps_the_softmax():
    single, half = _call(torch.float32), _call(torch.bfloat16)
    assert not by_head.fits(single)
    assert by_head.fits(half)
    assert not by_head.fits(with_precision(replace(half, half_products=False), "float32"))
    for call in (single, half):
        assert not by_head.fits(replace(call, lse=None))  # as with a mask
        assert not by_head.fits(replace(call, linear=True))


def test_shares_that_matter_are_rounded_least():
    """Rounding a logit of 60 to 8 bits would move its probability by a tenth; its logarithm is near 0."""
    call = _call(torch.bfloat16, gain=6.0, images=1)
    expected = _exact(call)
    assert expected.amax() > 0.99
    rounded = (call.query @ call.key.transpose(-1, -2)).float().mul(call.scale).softmax(-1)
    whole = by_head.head_sum(call, slice(None), slice(None))
    assert _error(whole, expected.mean(1)) < 0.3 * _error(rounded.mean(1), expected.mean(1))


def test_a_call_that_is_kept_does_not_keep_copies_of_its_queries_and_keys():
    call = _call(torch.bfloat16)
    mean_rows(call, torch.arange(48), 2**28)
    assert set(call.scratch) == {"query less lse", "key and ones"}
    assert not call.without_values().scratch
    assert set(replace(call, scratch={"lse": call.lse}).without_values().scratch) == {"lse"}
