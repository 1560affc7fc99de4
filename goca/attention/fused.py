"""Fused Triton kernels for half-precision attention on a GPU: what the statistics need of softmax rows, without the rows.

Every kernel recomputes tiles of P_h = exp(scale q_h k_h^T - lse_h) from half-precision queries and keys with products that
accumulate in float32, adds heads up inside the tile, and writes only the result. The plain path in `goca.attention.reductions`
computes the same numbers anywhere; these kernels run where `usable` says so, after they have once agreed with it.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from goca.ops import HALF

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:  # a build of torch without GPU support comes without Triton
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CPU = False  # tests of the kernels set it, so that the interpreter runs them there
_LOG2_E = 1.4426950408889634


def usable(query: Tensor, mask: Tensor | None) -> bool:
    """Whether these operands suit the kernels: half precision on CUDA, and no mask that differs between query pixels."""
    if triton is None or query.dtype not in HALF:
        return False
    device_fits = query.device.type == "cuda" or (INTERPRETED and ON_CPU and query.device.type == "cpu")
    return device_fits and (mask is None or mask.ndim == 1 or mask.shape[-2] == 1)


def key_bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask over keys, broadcastable to (B, H, 1, n), as what is added to the logits: (B, H, n) float32, expanded."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
    return mask.float().expand(*like.shape[:2], 1, mask.shape[-1])[:, :, 0]


def log_sum_exp(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """log-sum-exp over keys of scale q k^T + bias: (B, H, S) float32."""
    images, heads, pixels, width = query.shape
    lse = torch.empty(images, heads, pixels, device=query.device)
    block_m, block_n = 64, 64
    _lse_kernel[(triton.cdiv(pixels, block_m), heads, images)](
        query, key, bias if bias is not None else lse, lse,
        *query.stride(), *key.stride(), *(bias.stride() if bias is not None else (0, 0, 0)), *lse.stride(),
        pixels, key.shape[2], scale * _LOG2_E, width,
        D=max(16, triton.next_power_of_2(width)), BLOCK_M=block_m, BLOCK_N=block_n, BIAS=bias is not None,
    )  # fmt: skip
    return lse


def head_sum(
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    scale: float,
    rows: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    reference: Tensor | None = None,
    store: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Softmax rows added up over heads, for the given keys: sum_h w_h[i] exp(scale q_h[i] . k_h[j] + bias[j] - lse_h[i]).

    Args:
        query: (B, H, S, d).
        key: (B, H, n, d), the keys of interest; `lse` was taken over all keys.
        lse: (B, H, S) float32.
        rows: (r,) query pixels; None takes all S.
        weights: (B, H, S) of heads at pixels; None is the mean over heads.
        bias: (B, H, n), added to the logits.
        reference: (B, r, n) float32 to take the inner product with.
        store: whether the sums themselves are wanted.

    Returns:
        The sums (B, r, n) float32 or None, and each row's inner product with the reference's (B, r) or None.
    """
    images, heads, pixels, width = query.shape
    count, keys = pixels if rows is None else len(rows), key.shape[2]
    block_m, block_n, warps, stages = _tile(width)
    block_n = min(block_n, max(16, triton.next_power_of_2(keys)))
    grid = (triton.cdiv(count, block_m), triton.cdiv(keys, block_n), images)
    out = torch.empty(images, count, keys, device=query.device) if store else lse
    partial = torch.empty(images, grid[1], count, device=query.device) if reference is not None else lse
    _head_sum_kernel[grid](
        query, key, lse, weights if weights is not None else lse, bias if bias is not None else lse,
        rows if rows is not None else lse, reference if reference is not None else lse, out, partial,
        *query.stride(), *key.stride(), *lse.stride(), *(weights.stride() if weights is not None else (0, 0, 0)),
        *(bias.stride() if bias is not None else (0, 0, 0)),
        *(reference.stride() if reference is not None else (0, 0, 0)),
        heads, count, keys, width, scale * _LOG2_E, 1.0 / heads,
        D=max(16, triton.next_power_of_2(width)), BLOCK_M=block_m, BLOCK_N=block_n,
        INDEXED=rows is not None, WEIGHTED=weights is not None, BIAS=bias is not None,
        DOT=reference is not None, STORE=store, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out if store else None, partial.sum(1) if reference is not None else None


def _tile(width: int) -> tuple[int, int, int, int]:
    """Rows, keys, warps and pipeline stages of a tile, the fastest of ten measured on an H100 (head widths 40, 64, 128)."""
    if width > 64:
        return 64, 128, 4, 2
    return (64, 64, 4, 3) if width >= 64 else (128, 64, 4, 3)


def head_weights(output: Tensor, back: Tensor) -> Tensor:
    """Shares of the heads in the layer's output, z_h . back_h normalised over heads: (B, H, S).

    As `heads.dot_product`: a head whose product is not a number counts as 0, and where all add up to 0 each gets 1 / H.

    Args:
        output: (B, H, S, d), z_h.
        back: (B, S, H * d), the layer's output O times W^O.
    """
    images, heads, pixels, width = output.shape
    weights = torch.empty(images, heads, pixels, device=output.device)
    block = 64
    _head_weights_kernel[(triton.cdiv(pixels, block), images)](
        output, back, weights, *output.stride(), *back.stride(), *weights.stride(), heads, pixels, width, 1.0 / heads,
        D=triton.next_power_of_2(width), BLOCK_M=block,
    )  # fmt: skip
    return weights


if triton is not None:
    LOG2_E = tl.constexpr(_LOG2_E)
    LN_2 = tl.constexpr(1 / _LOG2_E)

    @triton.jit
    def _head_weights_kernel(  # type: ignore[no-untyped-def]
        z, back, weights, zb, zh, zs, zd, ob, os, oc, wb, wh, ws, H, S, width, mean,
        D: tl.constexpr, BLOCK_M: tl.constexpr,
    ):  # fmt: skip
        """One program: the weights of all heads at one block of pixels."""
        image = tl.program_id(1).to(tl.int64)
        pixel, channel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, D)
        inside = (pixel[:, None] < S) & (channel[None, :] < width)
        place = weights + image * wb + pixel * ws
        total = tl.zeros([BLOCK_M], tl.float32)
        for head in range(H):
            own = tl.load(z + image * zb + head * zh + pixel[:, None] * zs + channel[None, :] * zd, mask=inside, other=0.0)
            column = head * width + channel[None, :]
            whole = tl.load(back + image * ob + pixel[:, None] * os + column * oc, mask=inside, other=0.0)
            product = tl.sum(own.to(tl.float32) * whole.to(tl.float32), 1)
            product = tl.where(product == product, product, 0.0)
            total += product
            tl.store(place + head * wh, product, mask=pixel < S)
        for head in range(H):
            product = tl.load(place + head * wh, mask=pixel < S, other=0.0)
            tl.store(place + head * wh, tl.where(total != 0.0, product / total, mean), mask=pixel < S)

    @triton.jit
    def _lse_kernel(  # type: ignore[no-untyped-def]
        q, k, bias, lse, qb, qh, qs, qd, kb, kh, kn, kd, bb, bh, bn, lb, lh, ls, S, N, scale, width,
        D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BIAS: tl.constexpr,
    ):  # fmt: skip
        """One program: the rows of one block, of one head of one image, in one pass over the keys."""
        head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
        pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        channel, column = tl.arange(0, D), tl.arange(0, BLOCK_N)
        inside = pixel[:, None] < S
        queries = tl.load(
            q + image * qb + head * qh + pixel[:, None] * qs + channel[None, :] * qd,
            mask=inside & (channel[None, :] < width),
            other=0.0,
        )
        largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        for start in range(0, N, BLOCK_N):
            at = start + column
            keys = tl.load(
                k + image * kb + head * kh + at[None, :] * kn + channel[:, None] * kd,
                mask=(at[None, :] < N) & (channel[:, None] < width),
                other=0.0,
            )
            logits = tl.dot(queries, keys) * scale
            if BIAS:
                logits += tl.load(bias + image * bb + head * bh + at * bn, mask=at < N, other=0.0)[None, :] * LOG2_E
            logits = tl.where(at[None, :] < N, logits, float("-inf"))
            new = tl.maximum(largest, tl.max(logits, 1))
            shift = tl.where(new == float("-inf"), 0.0, new)  # a row all of whose keys so far are masked
            total = total * tl.exp2(largest - shift) + tl.sum(tl.exp2(logits - shift[:, None]), 1)
            largest = new
        result = (largest + tl.log2(total)) * LN_2
        tl.store(lse + image * lb + head * lh + pixel * ls, result, mask=pixel < S)

    @triton.jit
    def _head_sum_kernel(  # type: ignore[no-untyped-def]
        q, k, lse, weights, bias, rows, reference, out, partial,
        qb, qh, qs, qd, kb, kh, kn, kd, lb, lh, ls, wb, wh, ws, bb, bh, bn, rb, rr, rk,
        H, M, N, width, scale, mean,
        D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
        INDEXED: tl.constexpr, WEIGHTED: tl.constexpr, BIAS: tl.constexpr, DOT: tl.constexpr, STORE: tl.constexpr,
    ):  # fmt: skip
        """One program: one tile of rows x keys of one image, heads added up in registers."""
        image = tl.program_id(2).to(tl.int64)
        row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        at = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        channel = tl.arange(0, D)
        pixel = tl.load(rows + row, mask=row < M, other=0) if INDEXED else row
        query_mask = (row[:, None] < M) & (channel[None, :] < width)
        key_mask = (at[None, :] < N) & (channel[:, None] < width)
        query_at = q + image * qb + pixel[:, None] * qs + channel[None, :] * qd
        key_at = k + image * kb + at[None, :] * kn + channel[:, None] * kd
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for head in range(H):
            queries = tl.load(query_at + head * qh, mask=query_mask, other=0.0)
            keys = tl.load(key_at + head * kh, mask=key_mask, other=0.0)
            logits = tl.dot(queries, keys) * scale
            if BIAS:
                logits += tl.load(bias + image * bb + head * bh + at * bn, mask=at < N, other=0.0)[None, :] * LOG2_E
            norm = tl.load(lse + image * lb + head * lh + pixel * ls, mask=row < M, other=0.0) * LOG2_E
            share = tl.exp2(logits - norm[:, None])
            if WEIGHTED:
                share *= tl.load(weights + image * wb + head * wh + pixel * ws, mask=row < M, other=0.0)[:, None]
            total += share
        if not WEIGHTED:
            total *= mean
        tile = (row[:, None] < M) & (at[None, :] < N)
        if STORE:
            tl.store(out + (image * M + row[:, None]) * N + at[None, :], total, mask=tile)
        if DOT:
            other = tl.load(reference + image * rb + row[:, None] * rr + at[None, :] * rk, mask=tile, other=0.0)
            product = tl.sum(tl.where(tile, total * other, 0.0), 1)
            tl.store(partial + (image * tl.num_programs(1) + tl.program_id(1)) * M + row, product, mask=row < M)
