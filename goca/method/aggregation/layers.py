"""Layer-wise aggregation: a weight per layer, how far its self-attention agrees with a reference affinity (paper section 3.2).

R (S_r x S_r) is the reference affinity and P (S_r x S_r) the layer's head-mean self-attention on the same grid. Each method is
a statistic that adds up over query rows, and a rule that turns the sum into a weight, so that P is visited in blocks of rows.

A method of your own is one function with `@layer_method(...)`, or one named by its dotted path: docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from goca.ops import resize, resize_adjoint
from goca.registry import Registry, dotted_path


@dataclass(frozen=True)
class LayerMethod:
    """`partial` maps rows of R and P (..., r, S_r) to statistics (..., k) that add up; `weight` maps their sum to (...).

    `linear` methods are linear in P, so that R can be brought to the layer's grid instead of P to R's (see `resize_adjoint`).
    """

    partial: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    linear: bool = False


METHODS: Registry[LayerMethod] = Registry("aggregation.layers", "layer method", LayerMethod)
UNIFORM = ("average", "manual")  # weight 1 for every listed layer: nothing has to be observed


def layer_method(
    weight: Callable[[Tensor], Tensor], linear: bool = False
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], LayerMethod]:
    """Make the decorated `partial` a `LayerMethod`, known to `Aggregation(layers=...)` under the function's name.

    Args:
        weight: from the summed statistics (..., k) to the layer's weight (...).
        linear: whether the statistic is linear in P.
    """

    def register(partial: Callable[[Tensor, Tensor], Tensor]) -> LayerMethod:
        method = LayerMethod(partial, weight, linear)
        METHODS.register(partial.__name__, method, dotted_path(partial))
        return method

    return register


def find_method(name: str) -> LayerMethod | None:
    """The method of that name or at that dotted path; None for those that weigh every layer alike.

    Raises:
        ConfigError: there is none; the message names the choices.
    """
    return None if name in UNIFORM else METHODS.find(name)


@layer_method(weight=lambda total: total[..., 0], linear=True)
def dot_product(reference: Tensor, attention: Tensor) -> Tensor:
    """sum(R * P): GoCA's choice."""
    return (reference * attention).sum((-2, -1)).unsqueeze(-1)


@layer_method(weight=lambda total: 1.0 / total[..., 0])
def mse(reference: Tensor, attention: Tensor) -> Tensor:
    """1 / sum_i |R[i] - P[i]|."""
    return (reference - attention).norm(dim=-1).sum(-1, keepdim=True)


@layer_method(weight=lambda total: total[..., 0] / (total[..., 1] + 1e-4))
def iou(reference: Tensor, attention: Tensor) -> Tensor:
    """sum min(R, P) / (sum max(R, P) + 1e-4)."""
    both = torch.minimum(reference, attention).sum((-2, -1))
    either = torch.maximum(reference, attention).sum((-2, -1))
    return torch.stack([both, either], dim=-1)


def reference_affinity(feature: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
    """R = softmax(F F^T / sqrt(C)) over keys, for all or some query rows: (B, C, h, w) -> (B, r, h * w) float32."""
    flat = feature.flatten(2).float()  # (B, C, S)
    queries = flat[:, :, rows].transpose(1, 2) * flat.shape[1] ** -0.5  # far smaller than the product
    return torch.softmax(queries @ flat, dim=-1)


EXACT_UP_TO = 1024  # rows of the reference; 512 of 4096 move weights by 0.7 % on average (docs/performance.md)
SAMPLED = 512


def sampled_rows(grid: tuple[int, int], rows: int | Literal["all", "auto"]) -> Tensor:
    """The reference's query rows that layer weights are estimated from, ascending: (r,).

    Stratified: the picture is cut into `rows` cells of equal size, and one pixel of each is taken at random. Pixels at even
    distances would all lie in a few columns of the picture. The choice depends on the grid and the number alone.

    >>> len(sampled_rows((64, 64), "auto")), len(sampled_rows((16, 16), "auto")), len(sampled_rows((64, 64), 100))
    (512, 256, 100)
    """
    pixels = grid[0] * grid[1]
    if rows == "auto":
        rows = "all" if pixels <= EXACT_UP_TO else SAMPLED
    if rows == "all" or rows >= pixels:
        return torch.arange(pixels)
    generator = torch.Generator().manual_seed(pixels)
    bands = max(1, min(grid[0], round((rows * grid[0] / grid[1]) ** 0.5)))  # cells about as wide as they are high
    chosen = []
    for band in range(bands):
        cells = rows * (band + 1) // bands - rows * band // bands
        top, bottom = grid[0] * band // bands, grid[0] * (band + 1) // bands
        edges = torch.arange(cells + 1) * ((bottom - top) * grid[1]) // cells  # along the band, column by column
        place = edges[:-1] + (torch.rand(cells, generator=generator) * (edges[1:] - edges[:-1])).long()
        chosen.append((top + place % (bottom - top)) * grid[1] + place // (bottom - top))
    return torch.cat(chosen).sort().values


@lru_cache(maxsize=64)
def nearest_rows(grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """For each position of `target` the row of `grid` it is nearest to (rounded down, as upstream): (h_t * w_t,)."""
    y = torch.arange(target[0]) * grid[0] // target[0]
    x = torch.arange(target[1]) * grid[1] // target[1]
    return (y[:, None] * grid[1] + x[None, :]).flatten()


def resize_keys(rows: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize the key axis of attention rows bilinearly (no antialiasing): (..., h * w) -> (..., h_t * w_t).

    Rows are not renormalised: those of a low-resolution layer then sum to more than 1, as in the authors' code.
    """
    return resize(rows.unflatten(-1, grid), target).flatten(-2)


def on_layer_grid(
    reference: Tensor, rows: Tensor, grid: tuple[int, int], target: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R on the grid of a layer: R' and query rows such that sum(R * resize(P)[rows]) = sum(R' * P[queries]) for any P there.

    The transpose of bringing P to R's grid: sums over queries that share a nearest row, adjoint bilinear along keys.

    Args:
        reference: (B, r, S_r), those rows of R on `grid`.
        rows: (r,) ascending.
        target: grid of the layer, of S_p pixels.

    Returns:
        R' (B, q, S_p), the layer's query rows (q,) that count, which of these each of R's rows meets (r,), and how many of R's
        rows meet each (q,).
    """
    moved = resize_adjoint(reference.unflatten(-1, grid), target).flatten(-2)  # (B, r, S_p)
    found = nearest_rows(target, grid)[rows].unique(return_inverse=True, return_counts=True)
    queries, inverse, counts = (part.to(moved.device) for part in found)
    if len(queries) < len(rows):
        moved = moved.new_zeros(len(moved), len(queries), moved.shape[-1]).index_add_(1, inverse, moved)
    return moved, queries, inverse, counts


def normalised(weights: Tensor) -> Tensor:
    """Clamp at 0 and divide by the sum over the last axis (layers); all zero becomes equal weights."""
    weights = weights.clamp(min=0)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, torch.full_like(weights, 1.0 / weights.shape[-1]))


def standard_errors(by_row: Tensor, pixels: int) -> Tensor:
    """Standard errors of `normalised` weights that are estimated from a sample of the reference's rows: (B, L).

    The error of the ratio sum_r x_l / sum_r,l x_l to first order, as of a sample drawn without replacement. One row of each
    cell of the picture (`sampled_rows`) is as good a sample or better, so that this is a bound rather than the error itself.

    Args:
        by_row: (B, L, r) what each row of the sample, of two rows or more, adds to the weight of each layer.
        pixels: how many rows the reference has.
    """
    count = by_row.shape[-1]
    by_row = by_row.double()
    total = by_row.sum((1, 2), keepdim=True)
    residuals = by_row - by_row.sum(-1, keepdim=True) / total * by_row.sum(1, keepdim=True)
    variance = residuals.square().sum(-1) * count / (count - 1) * (1 - count / pixels)
    return (variance.sqrt() / total[..., 0]).nan_to_num(0.0).float()
