"""One observed attention call in canonical form, and its probabilities, recomputed a block of query rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from goca.ops import HALF, multiplies_half

# Measured on 2 cores for the head mean of 8 x 4096 x 4096 probabilities: 0.12 s in blocks of 4 MB, 0.42 s in blocks of 32 MB.
_CACHE_BYTES = 4 * 2**20
_TINY = 1e-15  # what linear attention of diffusers adds to a row sum, so that a row of zeros stays one


Precision = Literal["auto", "float32", "model"]  # of the products of queries and keys


@dataclass(frozen=True)
class AttentionCall:
    """Attention of image queries on text tokens, on image tokens, or on both in one joint sequence.

    Shapes: B images, H heads, S = h * w image queries, n keys, head width d, model width D.
    A cross-attention layer has only `text` keys, a self-attention layer only `image` keys; joint attention has both, and its
    probabilities are normalised over the whole sequence.
    """

    layer: str
    grid: tuple[int, int]  # (h, w) of the image queries
    query: Tensor  # (B, H, S, d)
    key: Tensor  # (B, H, n, d)
    scale: float
    text: slice | None = None  # keys that are text tokens
    image: slice | None = None  # keys that are image tokens, in the order of the queries
    mask: Tensor | None = None  # additive or boolean (True = attend), broadcastable to (B, H, S, n)
    value: Tensor | None = None  # (B, H, n, d)
    output: Tensor | None = None  # (B, H, S, d), z_h = A_h V_h, after the gate where there is one
    projection: Tensor | None = None  # (D, H * d), W^O without its bias: O = concat(z) projection^T
    bias: Tensor | None = None  # (D,) of W^O
    lse: Tensor | None = None  # (B, H, S) log-sum-exp of the logits over all keys, where the kernel gave it
    linear: bool = False  # linear attention: query . key over their row sum in place of a softmax; both are non-negative
    text_axis: int | None = None  # length of the text axis where `text` is its beginning alone: the rest gets no attention
    scratch: dict[str, Tensor] = field(default_factory=dict, compare=False)  # what a reduction computed and may use again
    half_products: bool = False  # multiply half-precision queries and keys as they are; sums are float32 either way
    gate: Tensor | None = None  # (B, H, S, d), what some models multiply A_h V_h by before W^O
    projected: Tensor | None = None  # (B, S, D), O with its bias, where the model's own projection gave it

    def without_values(self) -> AttentionCall:
        """The same call with only what probabilities need: queries and keys, without what was prepared of them."""
        kept = {name: tensor for name, tensor in self.scratch.items() if name == "lse"}
        return replace(self, value=None, output=None, gate=None, projection=None, bias=None, projected=None, scratch=kept)

    def mask_of(self, keys: slice) -> Tensor | None:
        """The mask of some keys, to be added to their logits; a mask of one key is all keys'."""
        return self.mask if self.mask is None or self.mask.shape[-1] == 1 else self.mask[..., keys]

    def head_at(self, index: int) -> AttentionCall:
        """The call of one head alone, for probabilities."""
        return self.with_heads([index])

    def with_heads(self, heads: list[int]) -> AttentionCall:
        """The call of some heads in the order of the list, for probabilities."""
        mask = self.mask
        if mask is not None and mask.ndim == 4 and mask.shape[1] > 1:
            mask = mask[:, heads]
        lse = None if self.lse is None else self.lse[:, heads]
        query, key = self.query[:, heads], self.key[:, heads]
        return replace(self.without_values(), query=query, key=key, mask=mask, lse=lse, scratch={})

    def image_at(self, index: int) -> AttentionCall:
        """The call of one image of the batch; shapes keep a batch axis of 1."""
        one = slice(index, index + 1)

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else (tensor[one] if tensor.shape[0] > 1 else tensor)

        return replace(
            self,
            query=self.query[one],
            key=self.key[one],
            mask=pick(self.mask),
            value=pick(self.value),
            output=pick(self.output),
            gate=pick(self.gate),
            projected=pick(self.projected),
            lse=pick(self.lse),
            scratch={name: tensor[one] for name, tensor in self.scratch.items()},
        )

    @property
    def keys(self) -> int:
        """n, of text and image together."""
        return self.key.shape[2]


def with_precision(call: AttentionCall, precision: Precision) -> AttentionCall:
    """The call, its products of queries and keys in its own number format where `precision` and the device ask for that."""
    own = precision == "model" or (precision == "auto" and multiplies_half(call.query.dtype, call.query.device.type))
    return replace(call, half_products=True) if own else call


def probabilities(call: AttentionCall, keys: slice, batch: slice = slice(None), rows: slice | Tensor = slice(None)) -> Tensor:
    """Attention rows of every head, restricted to some keys after normalisation: (b, H, r, |keys|) float32.

    `batch` and `rows` choose images and query rows, so that a caller can visit a large call in blocks.
    """
    query = call.query[batch][:, :, rows]
    if call.linear:
        query, key = query.float() * call.scale, call.key[batch].float()
        totals = torch.matmul(query, key.sum(2)[..., None])  # (b, H, r, 1); 0 of a query that is all zeros
        return torch.matmul(query, key[:, :, keys].transpose(-1, -2)) / totals.clamp(min=_TINY)
    if call.lse is not None and _visited(call, keys) < call.keys:
        some = _logits(query, call.key[batch][:, :, keys], call)
        return some.sub_(call.lse[batch][:, :, rows, None]).exp_()
    every = _logits(query, call.key[batch], call)
    if call.mask is not None:
        every = _masked(every, call.mask, batch, rows)
    return every.softmax(-1)[..., keys]


def logits(call: AttentionCall, keys: slice, batch: slice = slice(None), rows: slice | Tensor = slice(None)) -> Tensor:
    """Scaled products of queries and keys before the softmax, as `probabilities` shapes them: (b, H, r, |keys|) float32."""
    return _logits(call.query[batch][:, :, rows], call.key[batch][:, :, keys], call)


def exponentials(call: AttentionCall, keys: slice, batch: slice = slice(None), rows: slice | Tensor = slice(None)) -> Tensor:
    """exp(q k^T scale), not divided by its sum over keys: as `probabilities` shapes it; large logits overflow to inf.

    A key that is masked has 0.
    """
    some = logits(call, keys, batch, rows)
    mask = call.mask_of(keys)
    return (some if mask is None else _masked(some, mask, batch, rows)).exp_()


def _logits(query: Tensor, key: Tensor, call: AttentionCall) -> Tensor:
    """Scaled products of (b, H, r, d) and (b, H, k, d): (b, H, r, k) float32.

    Products of half-precision numbers are exact in float32, so tensor cores that accumulate in float32 lose nothing. Where the
    backend would round the result to half precision (the CPU does), queries and keys are converted first.
    """
    if not (call.half_products and query.dtype in HALF and query.device.type == "cuda"):
        return torch.matmul(query.float() * call.scale, key.float().transpose(-1, -2))
    product = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
    return product.mul_(call.scale).unflatten(0, query.shape[:2])


def _visited(call: AttentionCall, keys: slice) -> int:
    """How many keys the logits have to be computed of for the probabilities of `keys`: all of them without the log-sum-exp."""
    return call.keys if call.lse is None and not call.linear else len(range(*keys.indices(call.keys)))


def _masked(values: Tensor, mask: Tensor, batch: slice, rows: slice | Tensor) -> Tensor:
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    if mask.shape[0] > 1:
        mask = mask[batch]
    if mask.shape[2] > 1:
        mask = mask[:, :, rows]
    if mask.dtype == torch.bool:
        return values.masked_fill(~mask, float("-inf"))
    return values + mask.float()


def blocks(
    call: AttentionCall, keys: slice, rows: int, max_bytes: int, heads_at_once: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """(batch, rows) slices that cover `rows` query rows of all images, the logits for `keys` taking at most `max_bytes` each.

    Whole images go together while they fit: small models run in one block, large ones a few rows at a time. On a CPU blocks
    also stay within its cache, whatever `max_bytes` allows. `heads_at_once` where not all heads are held together.
    """
    if call.query.device.type == "cpu":
        max_bytes = min(max_bytes, _CACHE_BYTES)
    images, heads = call.query.shape[:2]
    row_bytes = 4 * (heads_at_once or heads) * _visited(call, keys)
    images_at_once = max(1, max_bytes // max(1, row_bytes * rows))
    rows_at_once = max(1, min(rows, max_bytes // row_bytes))
    for first in range(0, images, images_at_once):
        for start in range(0, rows, rows_at_once):
            yield slice(first, min(first + images_at_once, images)), slice(start, min(start + rows_at_once, rows))
