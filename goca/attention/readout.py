"""A second text read off the same forward: its keys on the queries that the model made for another (OVAM, FA-Seg)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from goca.attention.call import AttentionCall


def with_text(call: AttentionCall, to_key: Callable[[Tensor], Tensor], text: Tensor) -> AttentionCall:
    """The cross-attention call with the keys of another text; the softmax runs over that text's tokens.

    Args:
        call: of a cross-attention layer; joint attention has no such reading, as its text changes from block to block.
        to_key: the layer's key projection, (B, n, C) -> (B, n, H * d).
        text: embeddings (1 or B, n, C), padded or not.
    """
    heads = call.query.shape[1]
    key = to_key(text).unflatten(-1, (heads, -1)).transpose(1, 2)
    key = key.expand(len(call.query), -1, -1, -1)
    return replace(call, key=key, value=key, text=slice(None), mask=None, lse=None, scratch={})
