"""What the statistics take from an attention call: by fused kernels where they fit, elsewhere by blocks of softmax rows.

Both paths compute the same numbers. On a GPU with half-precision queries and keys the kernels of `goca.attention.fused` are
used, once they have agreed with the plain path on the first call of their kind; everywhere else the plain path runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from goca.attention import by_head, fused
from goca.attention.call import AttentionCall, blocks, probabilities
from goca.method.aggregation import heads, maps
from goca.ops import HALF

log = logging.getLogger(__name__)

TOLERANCE = 2e-3  # of the largest value: fused and plain products of half-precision operands differ by rounding alone
_CHECKED_ROWS = 64
_HELD = 4  # heads worth of memory where one head at a time is added to a sum, what it is computed from included
_agreed: dict[tuple[object, ...], bool] = {}  # kind of call -> whether the fused kernels may be used for it


def weighted_map(call: AttentionCall, weights: Tensor, max_bytes: int) -> Tensor:
    """Token maps of a layer, heads weighted per pixel and added up: (B, S, n) from weights (B, H, S)."""
    assert call.text is not None
    images, _, pixels, _ = call.query.shape
    tokens = len(range(*call.text.indices(call.keys)))
    fast = _fused(call, call.text)
    if fast is not None:
        sums, _ = fast(None, weights.float(), None, True)
        assert sums is not None
        return sums if call.text_axis is None else torch.nn.functional.pad(sums, (0, call.text_axis - tokens))
    layer_map = torch.zeros(images, pixels, call.text_axis or tokens, device=call.query.device)
    if by_head.fits(call):
        mean = not any(weights.stride())  # one number for all heads and pixels, which is 1 / H
        for batch, rows in blocks(call, call.text, pixels, max_bytes // _HELD, heads_at_once=1):
            own = None if mean else weights[batch, :, rows]
            layer_map[batch, rows, :tokens] = by_head.head_sum(call, call.text, batch, rows, own)
        return layer_map
    for batch, rows in blocks(call, call.text, pixels, max_bytes):
        attention = probabilities(call, call.text, batch, rows)
        layer_map[batch, rows, :tokens] = maps.weigh_heads(attention, weights[batch, :, rows])
    return layer_map


def head_weights(call: AttentionCall, method: str) -> Tensor:
    """The weight of each head at each pixel (B, H, S) float32, by a method of `goca.method.aggregation.heads`."""
    assert call.output is not None and call.value is not None
    if method == "average" or call.projection is None:
        return heads.average(call.output, call.output, call.value)
    plain = heads.METHODS.find(method)
    if method == "dot_product" and call.half_products and fused.usable(call.output, None):
        kind = ("head weights", call.output.device, call.output.dtype, call.output.shape[1:])
        if kind not in _agreed:
            _agreed[kind] = _weights_agree(call, plain(call.output, call.projection, call.value))
        if _agreed[kind]:
            return fused.head_weights(call.output, _projected_back(call))
    if method == "dot_product" and call.projected is not None:
        return heads.shares(call.output, _projected_back(call))
    return plain(call.output, call.projection, call.value)


def _projected_back(call: AttentionCall) -> Tensor:
    """O W^O, with the O that the model computed where that is cheaper."""
    assert call.output is not None and call.projection is not None
    return heads.projected_back(call.output, call.projection, call.projected, call.bias)


def _weights_agree(call: AttentionCall, expected: Tensor) -> bool:
    """Whether the fused head weights are the plain ones; where a pixel's sum nearly cancels, rounding may part them."""
    assert call.output is not None and call.projection is not None
    try:
        found = fused.head_weights(call.output, heads.projected_back(call.output, call.projection))
        close = (found - expected).abs() <= TOLERANCE * (1 + expected.abs())
        good, reason = bool(close.float().mean() >= 0.99), f"only {float(close.float().mean()):.2%} of the head weights agree"
    except Exception as error:  # whatever a compiler or driver may raise
        good, reason = False, f"{type(error).__name__}: {error}"
    return _said(call, good, reason)


def _said(call: AttentionCall, good: bool, reason: str) -> bool:
    if not good:
        log.warning("fused attention kernels are not used for %s (%s); the plain path is slower", call.layer, reason)
    return good


def mean_rows(call: AttentionCall, rows: Tensor, max_bytes: int) -> Tensor:
    """Head-mean attention of query pixels `rows` on the image tokens: (B, r, S) float32."""
    assert call.image is not None
    fast = _fused(call, call.image)
    if fast is not None:
        sums, _ = fast(rows, None, None, True)
        assert sums is not None
        return sums
    parts: dict[int, list[Tensor]] = {}
    for batch, _, found in blocks_of_rows(call, rows, max_bytes):
        parts.setdefault(batch.start, []).append(found)
    return torch.cat([torch.cat(part, 1) if len(part) > 1 else part[0] for part in parts.values()])


def blocks_of_rows(call: AttentionCall, rows: Tensor, max_bytes: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """`mean_rows` on the plain path a block at a time: which images, which of the rows, and their attention (b, r, S)."""
    assert call.image is not None
    if by_head.fits(call):
        for batch, block in blocks(call, call.image, len(rows), max_bytes // _HELD, heads_at_once=1):
            yield batch, block, by_head.head_sum(call, call.image, batch, rows[block])
        return
    for batch, block in blocks(call, call.image, len(rows), max_bytes):
        yield batch, block, probabilities(call, call.image, batch, rows[block]).mean(1)


def inner_product(call: AttentionCall, rows: Tensor, reference: Tensor, keep: bool) -> tuple[Tensor, Tensor | None] | None:
    """Inner products of the reference's rows and the head-mean attention's: (B, r), with those rows (B, r, S) if to be kept.

    None where the fused kernels do not fit: the caller then adds up blocks of rows.
    """
    assert call.image is not None
    fast = _fused(call, call.image)
    if fast is None:
        return None
    sums, product = fast(rows, None, reference, keep)
    assert product is not None
    return product, sums


def head_mean_values(call: AttentionCall, values: Tensor, rows: Tensor | None = None) -> Tensor:
    """P V with P the head-mean attention on image tokens, by the attention kernel and without P: (S, C) -> (r, C) float32.

    For a call of one image. Half-precision kernels take each value as two half-precision numbers that add up to it, so that
    only the kernel's own rounding remains.
    """
    assert call.image is not None
    half = call.query.dtype in HALF
    query = call.query if rows is None else call.query[:, :, rows]
    width, dtype = call.query.shape[-1], call.query.dtype
    mask = call.mask if call.mask is None or rows is None or call.mask.shape[-2] == 1 else call.mask[..., rows, :]
    results = []
    for part in values.split(width // 2 if half else width, dim=1):
        columns = part.shape[1]
        value = torch.zeros(call.keys, width, device=query.device, dtype=dtype)
        value[call.image, :columns] = part.to(dtype)
        if half:
            value[call.image, columns : 2 * columns] = (part - part.to(dtype)).to(dtype)
        moved = scaled_dot_product_attention(query, call.key, value.expand(*call.key.shape[:2], -1, -1), mask, scale=call.scale)
        mean = moved.float().mean(1)[0]
        results.append(mean[:, :columns] + mean[:, columns : 2 * columns] if half else mean[:, :columns])
    return torch.cat(results, 1) if len(results) > 1 else results[0]


_Fast = Callable[[Tensor | None, Tensor | None, Tensor | None, bool], tuple[Tensor | None, Tensor | None]]


def _fused(call: AttentionCall, keys: slice) -> _Fast | None:
    """The fused kernels bound to a call and some of its keys, or None where they do not fit or do not agree."""
    if call.linear or not (call.half_products and fused.usable(call.query, call.mask)):
        return None
    bias = fused.key_bias(call.mask, call.query)
    lse = _log_sum_exp(call, bias)
    some, some_bias = call.key[:, :, keys], None if bias is None else bias[:, :, keys]

    def fast(
        rows: Tensor | None, weights: Tensor | None, reference: Tensor | None, store: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return fused.head_sum(call.query, some, lse, call.scale, rows, weights, some_bias, reference, store)

    kind = (call.query.device, call.query.dtype, call.query.shape[1:], some.shape[2], call.keys, bias is None, call.lse is None)
    if kind not in _agreed:
        _agreed[kind] = _agrees(call, keys, fast)
    return fast if _agreed[kind] else None


def _log_sum_exp(call: AttentionCall, bias: Tensor | None) -> Tensor:
    """The kernel's own log-sum-exp, or one pass over the keys, kept for the next use of the call."""
    if call.lse is not None:
        return call.lse
    if "lse" not in call.scratch:
        call.scratch["lse"] = fused.log_sum_exp(call.query, call.key, call.scale, bias)
    return call.scratch["lse"]


def _agrees(call: AttentionCall, keys: slice, fast: _Fast) -> bool:
    """Whether the fused kernels give the plain path's numbers for some rows of this call; a failure is said once."""
    rows = torch.arange(min(_CHECKED_ROWS, call.query.shape[2]), device=call.query.device)
    plain = probabilities(replace(call, half_products=False), keys, slice(None), rows).mean(1)
    try:
        found, product = fast(rows, None, plain, True)
        assert found is not None and product is not None
        expected = plain.square().sum(2)
        good = bool(
            ((found - plain).abs().amax() <= TOLERANCE * plain.amax())
            & ((product - expected).abs() <= TOLERANCE * expected.amax()).all()
        )
        reason = f"they differ by {float((found - plain).abs().amax()):.2g}"
    except Exception as error:  # whatever a compiler or driver may raise
        good, reason = False, f"{type(error).__name__}: {error}"
    return _said(call, good, reason)
