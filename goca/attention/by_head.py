"""Sums of attention over heads on a CPU, one head at a time: a block of one head's rows and its sum stay within the cache.

With the log-sum-exp that the attention kernel gave, a probability is exp(q . k scale - lse): a product and an exponential where
a softmax passes over its row five times. Half-precision queries and keys are multiplied in their own format if that is asked
for, which a CPU does several times as fast as in float32. Such a product is rounded to that format; three more channels
subtract the log-sum-exp within it, so that what is rounded is the logarithm of a probability, small where the probability
counts, and not the logit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from goca.attention.call import AttentionCall
from goca.ops import HALF

# From so many keys on; smaller layers keep the softmax over all heads at once, and so the bits of their results.
MANY_KEYS = 2048


def fits(call: AttentionCall) -> bool:
    """Whether sums over heads are taken here: on a CPU, with the kernel's log-sum-exp, for large layers or half precision."""
    if call.query.device.type != "cpu" or call.lse is None or call.linear:
        return False
    return rounds(call) or call.keys > MANY_KEYS


def rounds(call: AttentionCall) -> bool:
    """Whether products are taken in half precision."""
    return call.half_products and call.query.dtype in HALF


def head_sum(
    call: AttentionCall, keys: slice, batch: slice, rows: slice | Tensor = slice(None), weights: Tensor | None = None
) -> Tensor:
    """Probabilities of some keys, heads weighted per row and added up: (b, r, |keys|) float32.

    Args:
        call: one that `fits`.
        keys, batch, rows: which keys, images and query rows.
        weights: (b, H, r); None is the mean over heads.
    """
    lse = call.lse
    assert lse is not None
    prepared = _rounded_operands(call) if rounds(call) else None
    query, key = prepared or (call.query, call.key)
    sums: list[Tensor] = []
    spare: Tensor | None = None  # what every head but the first is written to: fresh memory for each costs a third more time
    for image in range(call.query.shape[0])[batch]:
        total = None
        for head in range(call.query.shape[1]):
            own, others = query[image, head, rows], key[image, head, keys].T
            out: Tensor | None = None if total is None else spare
            if prepared:
                found = torch.mul(own @ others, torch.tensor([[call.scale]]), out=out).exp_()  # float32 from here on
            else:
                less = lse[image, head, rows, None]
                found = torch.addmm(less, own.float(), others.float(), beta=-1, alpha=call.scale, out=out).exp_()
            if total is not None and not torch.is_grad_enabled():
                spare = found
            if weights is None:
                total = found if total is None else total.add_(found)
            else:
                weight = weights[len(sums), head, :, None]
                total = found.mul_(weight) if total is None else total.addcmul_(found, weight)
        assert total is not None
        sums.append(total if weights is not None else total.div_(call.query.shape[1]))
    return torch.stack(sums) if len(sums) > 1 else sums[0][None]


def _rounded_operands(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Queries and keys with three channels more, whose product is the logit less the log-sum-exp, both over the scale."""
    if "query less lse" not in call.scratch:
        assert call.lse is not None
        rest, parts = (call.lse / -call.scale)[..., None], []
        for _ in range(3):
            parts.append(rest.to(call.query.dtype))
            rest = rest - parts[-1].float()
        call.scratch["query less lse"] = torch.cat([call.query, *parts], -1)
        call.scratch["key and ones"] = torch.nn.functional.pad(call.key, (0, 3), value=1.0)
    return call.scratch["query less lse"], call.scratch["key and ones"]
