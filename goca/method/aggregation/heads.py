"""Head-wise aggregation: how much each head counts at each pixel (paper section 3.2; the weights sum to 1 over heads).

Every function maps (output z (B, H, S, d), projection W^O (D, H * d), value (B, H, n, d)) to weights (B, H, S) in float32.
With o_h = z_h W_h head h's contribution and O the sum of all, o_h . O = z_h . (O W)[h's columns]: two S x D products, and
nothing of size H x S x D ever exists. A pixel whose weights sum to 0 has no direction to follow and gets 1 / H.

A method of your own is one function with `@head_method`, or one named by its dotted path: docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goca.ops import slow_half
from goca.registry import Registry, dotted_path

HeadMethod = Callable[[Tensor, Tensor, Tensor], Tensor]
METHODS: Registry[HeadMethod] = Registry("aggregation.heads", "head method")


def head_method(function: HeadMethod) -> HeadMethod:
    """Make a function known to `Aggregation(heads=...)` under its own name."""
    METHODS.register(function.__name__, function, dotted_path(function))
    return function


@head_method
def average(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """1 / H: the vanilla mean over heads."""
    return torch.full((1, 1, 1), 1.0 / output.shape[1], device=output.device).expand(output.shape[:3])


@head_method
def dot_product(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """o_h[i] . O[i]: the share of head h in the layer's output, GoCA's choice; may be negative."""
    return _normalised(_dots(output, projection))


@head_method
def dot_product_clamped(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """o_h[i] . O[i] clamped at 0; where every head is clamped, every weight is 1 (as the authors' code has it)."""
    dots = _dots(output, projection).clamp(min=0)
    total = dots.sum(1, keepdim=True)
    return torch.where(total > 0, dots / total, torch.ones_like(dots))


@head_method
def l2_norm(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """|o_h[i]|, the length of head h's contribution."""
    return _normalised(_norms(output, projection))


@head_method
def cosine(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """cos(o_h[i], O[i])."""
    return _normalised(_cosines(output, projection))


@head_method
def cosine_vw(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """`cosine` times the spectral norm of V_h W_h."""
    return _normalised(_cosines(output, projection) * _value_norms(value, projection))


@head_method
def dot_product_vw(output: Tensor, projection: Tensor, value: Tensor) -> Tensor:
    """`dot_product_clamped` times the spectral norm of V_h W_h."""
    return _normalised(_dots(output, projection).clamp(min=0) * _value_norms(value, projection))


def _normalised(weights: Tensor) -> Tensor:
    """Divide by the sum over heads; a head whose weight is not a number counts as 0."""
    weights = weights.nan_to_num(0.0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total != 0, weights / total, torch.full_like(weights, 1.0 / weights.shape[1]))


def shares(output: Tensor, back: Tensor) -> Tensor:
    """The weights of `dot_product` from what `projected_back` gives."""
    return _normalised(_products(output, back))


def projected_back(output: Tensor, projection: Tensor, projected: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """O W^O of every pixel: (B, S, H * d), whose part for head h is what z_h is multiplied with to give o_h . O.

    Args:
        output, projection: as of the head methods.
        projected: O + bias (B, S, D) where it is known, which saves one of two products where channels outnumber pixels.
        bias: (D,), what is in `projected` beside O.
    """
    if slow_half(output.dtype, output.device.type):
        output, projection = output.float(), projection.float()
        projected = None if projected is None else projected.float()
    flat = output.transpose(1, 2).flatten(2)  # (B, S, H * d)
    more_pixels_than_channels = flat.shape[0] * flat.shape[1] > projection.shape[1]
    if more_pixels_than_channels:
        return flat @ (projection.T @ projection)
    if projected is None:
        return (flat @ projection.T) @ projection
    return (projected if bias is None else projected - bias) @ projection


def _dots(output: Tensor, projection: Tensor) -> Tensor:
    """o_h[i] . O[i] for every head and pixel: (B, H, S)."""
    return _products(output, projected_back(output, projection))


def _products(output: Tensor, back: Tensor) -> Tensor:
    flat = output.transpose(1, 2).flatten(2)
    return (flat.float() * back.float()).unflatten(2, (output.shape[1], -1)).sum(-1).transpose(1, 2)


def _per_head(projection: Tensor, heads: int) -> Tensor:
    """W_h^T of every head: (H, D, d)."""
    return projection.unflatten(1, (heads, -1)).transpose(0, 1)


def _grams(projection: Tensor, heads: int) -> Tensor:
    """W_h W_h^T of every head: (H, d, d)."""
    per_head = _per_head(projection, heads).float()
    return per_head.transpose(1, 2) @ per_head


def _norms(output: Tensor, projection: Tensor) -> Tensor:
    """|o_h[i]| through the head's Gram matrix: (B, H, S)."""
    z = output.float()
    return ((z @ _grams(projection, z.shape[1])) * z).sum(-1).clamp(min=0).sqrt()


def _cosines(output: Tensor, projection: Tensor) -> Tensor:
    dots = _dots(output, projection)
    norm = _norms(output, projection) * dots.sum(1, keepdim=True).clamp(min=0).sqrt()  # sum_h o_h . O = |O|^2
    return torch.where(norm > 0, dots / norm, torch.zeros_like(dots))


def _value_norms(value: Tensor, projection: Tensor) -> Tensor:
    """Largest singular value of V_h W_h (n x D), from the d x d matrix L^T V^T V L with L L^T = W_h W_h^T: (B, H, 1).

    In float64, because forming V^T V squares the condition number.
    """
    eigenvalues, vectors = torch.linalg.eigh(_grams(projection, value.shape[1]).double())
    root = vectors * eigenvalues.clamp(min=0).sqrt().unsqueeze(-2)  # (H, d, d)
    v = value.double()
    middle = root.transpose(-1, -2) @ (v.transpose(-1, -2) @ v) @ root
    return torch.linalg.eigvalsh(middle)[..., -1:].clamp(min=0).sqrt().float()
