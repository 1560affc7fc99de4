"""Scaled dot product attention together with the log-sum-exp of its logits, where torch's own kernel has it anyway.

With it a few columns of the probabilities cost a few columns of logits, exp(q . k - lse): of joint attention on 512 text and
4096 image tokens, the text's part costs a ninth of the whole softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

_CUDA_HEAD_WIDTHS = 8  # the CUDA kernel takes multiples of this; torch pads others before it calls the kernel


def attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `scaled_dot_product_attention` returns for these arguments, bit for bit, and its log-sum-exp (B, H, S) float32.

    The log-sum-exp is None where torch would choose a kernel that does not give it; with a mask, for instance.
    """
    plain = attn_mask is None and not dropout_p and not is_causal and not enable_gqa
    if plain and _takes_flash(query, key, value, scale):
        if query.device.type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
        output, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
        return output, lse
    output = scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return output, None


def _takes_flash(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> bool:
    """Whether torch would run its flash kernel for these operands, by its own rule."""
    if query.ndim != 4 or query.device.type not in ("cpu", "cuda"):
        return False
    if query.device.type == "cuda" and query.shape[-1] % _CUDA_HEAD_WIDTHS:
        return False
    return bool(torch._fused_sdp_choice(query, key, value, scale=scale) == SDPBackend.FLASH_ATTENTION.value)
