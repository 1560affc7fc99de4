"""Scaled dot product attention together with the log-sum-exp of its logits, where torch's own kernel has it anyway.

With it a few columns of the probabilities cost a few columns of logits, exp(q . k - lse): of joint attention on 512 text and
4096 image tokens, the text's part costs a ninth of the whole softmax.
"""

from __future__ import annotations

from collections.abc import Callable

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
    kernel = _kernel(query, key, value, scale) if plain else None
    if kernel is not None:
        found = kernel(query, key, value, scale)
        return found[0], found[1]
    output = scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return output, None


_Kernel = Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, ...]]


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)


def _flash_cuda(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, ...]:
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)


def _cudnn(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, ...]:
    output, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, scale=scale)
    return output, lse.view(query.shape[:3])


def _kernel(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> _Kernel | None:
    """The kernel that torch would choose for these operands by its own rule, if it can give the log-sum-exp."""
    device = query.device.type
    if query.ndim != 4 or device not in ("cpu", "cuda"):
        return None
    if device == "cuda" and query.shape[-1] % _CUDA_HEAD_WIDTHS:
        return None
    choice = torch._fused_sdp_choice(query, key, value, scale=scale)
    if choice == SDPBackend.FLASH_ATTENTION.value:
        return _flash_cpu if device == "cpu" else _flash_cuda
    if choice == SDPBackend.CUDNN_ATTENTION.value and _same_bits(query, key, value, scale):
        return _cudnn
    return None


_cudnn_agrees: dict[tuple[object, ...], bool] = {}


def _same_bits(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> bool:
    """Whether cuDNN's output has the same bits when it is asked for its log-sum-exp too; tried once for each kind of call."""
    kind = (query.shape, key.shape, query.stride(), key.stride(), value.stride(), query.dtype, query.device, scale)
    if kind not in _cudnn_agrees:
        try:
            output, lse = _cudnn(query, key, value, scale)
            usual = scaled_dot_product_attention(query, key, value, scale=scale)
            _cudnn_agrees[kind] = torch.equal(output, usual) and lse.shape == query.shape[:3]
        except (RuntimeError, TypeError):  # this build has another signature
            _cudnn_agrees[kind] = False
    return _cudnn_agrees[kind]
