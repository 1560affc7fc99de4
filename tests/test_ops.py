"""Resizing and its transpose, blur, min-max, blocks, and which number formats a processor multiplies."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from goca.ops import blocks, gaussian_blur, is_constant, minmax, multiplies_half, resize, resize_adjoint, resize_matrix

sides = st.integers(1, 9)
grids = st.tuples(sides, sides)


@settings(deadline=None, max_examples=40)
@given(grids, grids, st.sampled_from(["nearest", "bilinear", "bicubic"]))
def test_the_adjoint_moves_resizing_to_the_other_side(source, target, mode):
    small, large = torch.randn(2, *source), torch.randn(2, *target)
    left = (resize(small, target, mode) * large).sum()
    right = (small * resize_adjoint(large, source, mode)).sum()
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(grids, grids, st.sampled_from(["bilinear", "bicubic"]))
def test_the_matrices_are_the_resize(source, target, mode):
    maps = torch.randn(*source)
    by_matrix = resize_matrix(source[0], target[0], mode) @ maps @ resize_matrix(source[1], target[1], mode).T
    expected = F.interpolate(maps[None, None], target, mode=mode, align_corners=False)[0, 0]
    torch.testing.assert_close(by_matrix, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(resize(maps, target, mode), expected)


@settings(deadline=None, max_examples=30)
@given(grids, grids, st.sampled_from(["nearest", "bilinear", "bicubic"]), st.integers(1, 3), st.integers(1, 5))
def test_maps_with_their_channels_last_are_resized_alike(source, target, mode, images, tokens):
    maps = torch.randn(images, source[0] * source[1], tokens).transpose(1, 2).unflatten(2, source)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(resize(maps, target, mode), resize(maps.contiguous(), target, mode), atol=1e-5, rtol=1e-5)


def test_no_maps_can_be_resized_and_blurred():
    assert resize(torch.zeros(0, 4, 4), (8, 6)).shape == (0, 8, 6)
    assert gaussian_blur(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_minmax_does_not_see_scale_and_offset(offset, scale):
    maps = torch.rand(2, 5, 5)  # the offset is at most 1000 ranges: beyond 1e6 a map counts as constant
    torch.testing.assert_close(minmax((maps.double() + offset) * scale).float(), minmax(maps), atol=1e-4, rtol=0)


def test_minmax_of_a_constant_is_zero_and_of_rounding_noise_too():
    noisy = torch.full((1, 4, 4), 0.3) * (1 + torch.randn(1, 4, 4).sign() * 6e-8)
    assert is_constant(noisy).all()
    assert not minmax(noisy).any()
    assert minmax(torch.ones(1, 4, 4), parity=True).isnan().all()


def test_minmax_keeps_nan_in_its_own_map():
    maps = torch.rand(2, 4, 4)
    maps[0, 0, 0] = torch.nan
    scaled = minmax(maps)
    assert scaled[0].isnan().all()
    assert scaled[1].isfinite().all()


def test_blur_keeps_constants_and_is_symmetric():
    torch.testing.assert_close(gaussian_blur(torch.full((1, 6, 7), 2.5)), torch.full((1, 6, 7), 2.5))
    point = torch.zeros(9, 9)
    point[4, 4] = 1
    blurred = gaussian_blur(point)
    torch.testing.assert_close(blurred, blurred.T)
    torch.testing.assert_close(blurred, blurred.flip(0))
    assert blurred.sum() == pytest.approx(1.0)


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 100))
def test_blocks_cover_everything_once_within_the_budget(total, each, budget):
    parts = list(blocks(total, each, budget))
    assert [i for part in parts for i in range(total)[part]] == list(range(total))
    assert all((part.stop - part.start) * each <= max(budget, each) for part in parts)


@pytest.mark.parametrize(
    ("instructions", "bfloat16", "float16"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False, False),
        ({"avx512_bf16": True}, True, False),
        ({"amx_bf16": True, "amx_fp16": False, "avx512_fp16": True}, True, True),
        (None, False, False),
    ],
    ids=["older", "avx512_bf16", "amx", "a torch that does not say"],
)
def test_a_cpu_multiplies_half_precision_where_it_has_the_instructions(monkeypatch, instructions, bfloat16, float16):
    if instructions is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    asked = multiplies_half.__wrapped__  # what is remembered is this machine's answer
    assert (asked(torch.bfloat16, "cpu"), asked(torch.float16, "cpu")) == (bfloat16, float16)
    assert not asked(torch.float32, "cpu")
    assert asked(torch.bfloat16, "cuda")
    assert asked(torch.float16, "cuda")
