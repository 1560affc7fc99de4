"""What the processor that is here, or that the environment makes torch take it for, can compute."""

from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention

NO_BFLOAT16 = "torch cannot compute attention in bfloat16 where ATEN_CPU_CAPABILITY alone hides what the processor has"


@cache
def computes_bfloat16_attention() -> bool:
    """False where torch is told to do without AVX-512 while oneDNN packs weights for it: an error of torch, not a result."""
    query = torch.zeros(1, 1, 64, 8, dtype=torch.bfloat16)
    try:
        scaled_dot_product_attention(query, query, query)
    except RuntimeError:
        return False
    return True


def float_types() -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16] if computes_bfloat16_attention() else [torch.float32]
