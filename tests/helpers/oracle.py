"""The plain implementation: every head's map of every layer is materialised and the formulas are written out as
docs/method.md has them.

Slow and large on purpose; the streaming statistics must agree with it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from goca.attention.call import AttentionCall
from goca.method.aggregation import Aggregation
from goca.method.aggregation.layers import sampled_rows

HEAD_METHODS = ("average", "dot_product", "dot_product_clamped", "l2_norm", "cosine", "cosine_vw", "dot_product_vw")
LAYER_METHODS = ("dot_product", "mse", "iou")


def attention_maps(call: AttentionCall) -> Tensor:
    """(B, H, S, n) softmax over the whole sequence; of linear attention the products over their sum."""
    if call.linear:
        products = torch.einsum("bhsd,bhnd->bhsn", call.query.double(), call.key.double())
        return (products / (products.sum(-1, keepdim=True) + 1e-15)).float()
    logits = torch.einsum("bhsd,bhnd->bhsn", call.query.float(), call.key.float()) * call.scale
    if call.mask is not None:
        mask = call.mask
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)


def head_contributions(call: AttentionCall) -> Tensor:
    """o_h = z_h W_h for every head: (B, H, S, D)."""
    per_head = call.projection.float().unflatten(1, (call.query.shape[1], -1)).permute(1, 2, 0)  # (H, d, D)
    return torch.einsum("bhsd,hdo->bhso", call.output.float(), per_head)


def head_weights(method: str, call: AttentionCall) -> Tensor:
    """(B, H, S), from the contributions themselves."""
    if method == "average":
        return torch.full(call.query.shape[:3], 1 / call.query.shape[1])
    o = head_contributions(call)
    total = o.sum(1, keepdim=True)
    dots, norms = (o * total).sum(-1), o.norm(dim=-1)
    cosines = F.cosine_similarity(o, total.expand_as(o), dim=-1, eps=1e-20)
    per_head = call.projection.float().unflatten(1, (call.query.shape[1], -1)).permute(1, 2, 0)
    values = torch.linalg.matrix_norm(call.value.float() @ per_head, ord=2).unsqueeze(-1)
    raw = {
        "dot_product": dots,
        "dot_product_clamped": dots.clamp(min=0),
        "l2_norm": norms,
        "cosine": cosines,
        "cosine_vw": cosines * values,
        "dot_product_vw": dots.clamp(min=0) * values,
    }[method]
    return raw / raw.sum(1, keepdim=True)


def resized_self_attention(maps: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Head-mean map (B, S, S) on another grid: keys bilinear, queries nearest."""
    batch, queries, _ = maps.shape
    keys = F.interpolate(maps.reshape(batch, queries, *grid), target, mode="bilinear", align_corners=False).flatten(2)
    by_query = keys.transpose(1, 2).reshape(batch, -1, *grid)
    return F.interpolate(by_query, target, mode="nearest").flatten(2).transpose(1, 2)


def layer_weight(method: str, reference: Tensor, attention: Tensor) -> Tensor:
    """(B,) before normalisation."""
    if method == "dot_product":
        return (reference * attention).sum((1, 2))
    if method == "mse":
        return 1 / (reference - attention).norm(dim=-1).sum(-1)
    smaller, larger = torch.minimum(reference, attention), torch.maximum(reference, attention)
    return smaller.sum((1, 2)) / (larger.sum((1, 2)) + 1e-4)


def aggregate(
    aggregation: Aggregation,
    cross: dict[str, AttentionCall],
    own: dict[str, AttentionCall],
    reference: Tensor | None,
    size: tuple[int, int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token maps (B, n, *size) and layer weights by layer.

    Args:
        cross: cross-attention layer -> its call.
        own: the same key -> the paired self-attention call.
        reference: dense feature (B, C, h, w).
        size: grid of the maps; None is a square of the feature size.
    """
    size = size or (aggregation.feature_size,) * 2
    weights, total = {}, 0
    for name, call in cross.items():
        weight = torch.ones(call.query.shape[0])
        if aggregation.layers not in ("average", "manual"):
            flat = reference.flatten(2)
            affinity = torch.softmax(flat.transpose(1, 2) @ flat / flat.shape[1] ** 0.5, -1)
            attention = attention_maps(own[name])[..., own[name].image].mean(1)
            attention = resized_self_attention(attention, own[name].grid, tuple(reference.shape[2:]))
            if aggregation.renormalize:
                attention = attention / attention.sum(-1, keepdim=True)
            rows = sampled_rows(
                tuple(reference.shape[2:]), aggregation.rows
            )  # which rows is a choice; what is made of them is checked
            weight = layer_weight(aggregation.layers, affinity[:, rows], attention[:, rows]).clamp(min=0)
        weights[name] = weight
    normaliser = sum(weights.values())
    for name, call in cross.items():
        per_head = attention_maps(call)[..., call.text]
        layer = (per_head * head_weights(aggregation.heads, call)[..., None]).sum(1)  # (B, S, n)
        grids = layer.transpose(1, 2).unflatten(2, call.grid)
        grids = F.interpolate(grids, size, mode="bilinear", align_corners=False)
        total = total + grids * (weights[name] / normaliser)[:, None, None, None]
    total = total.clamp(min=0)
    return total / total.sum(1, keepdim=True), {name: weight / normaliser for name, weight in weights.items()}
