"""Pixels grouped by what they say about all tokens, so that noise within a group averages out (after iSeg, Sun et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from goca.ops import blocks

_TINY = 1e-6  # in place of exact zeros, whose logarithm has no value
_OFFSET = 1e-5
_BLOCK_BYTES = 2**18  # of differences at once; they stay in a CPU's cache


def divergence(a: Tensor, b: Tensor) -> Tensor:
    """Half the symmetric Kullback-Leibler divergence, 1e-5 added to entries: rows (k, n) and (m, n) -> (k, m), in their dtype.

    In float16 the sum is coarse and still decides; the released code computes it so, and 5 % of pixels change cluster without.
    """
    a, b = a + _OFFSET, (b + _OFFSET).T.contiguous()  # (n, m): sums over the first axis are several times as fast
    log_b = b.log()
    parts = []
    for block in blocks(len(a), b.nbytes, _BLOCK_BYTES):  # k x m x n does not stand as a whole
        rows = a[block, :, None]  # (r, n, 1)
        ratio = rows.log() - log_b
        parts.append((rows * ratio).sum(1) * 0.5 + -(b * ratio).sum(1) * 0.5)
    return torch.cat(parts)


def cluster(token_maps: Tensor, clusters: int = 32, rounds: int = 20, dtype: torch.dtype = torch.float16) -> Tensor:
    """Cluster of each pixel (h, w) by k-means over its tokens; seeds lie on a lattice, and a cluster without pixels vanishes.

    Args:
        token_maps: (n, h, w), not negative.
        clusters: nominal number; the lattice has the next whole step between its points.
        rounds: of k-means.
        dtype: of the divergence.
    """
    _, height, width = token_maps.shape
    pixels = token_maps.flatten(1).T
    pixels = pixels.masked_fill(pixels == 0, _TINY)
    step = max(1, int((height * width / clusters) ** 0.5))
    rows, columns = (torch.arange(0, side, step, device=pixels.device) for side in (height, width))
    centres = pixels[(rows[:, None] * width + columns).flatten()]
    values = pixels.to(dtype)
    member = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    for _ in range(rounds):
        before = member
        alive, member = divergence(centres.to(dtype), values).argmin(0).unique(return_inverse=True)
        if len(alive) == len(centres) and torch.equal(member, before):
            break  # the same clusters have the same centres again
        centres = cluster_means(pixels, member, len(alive))
    return member.view(height, width)


def cluster_means(pixels: Tensor, member: Tensor, count: int) -> Tensor:
    """Mean of the pixels (S, n) of each of `count` clusters: (count, n), added up in float64: their order hardly matters."""
    sums = pixels.new_zeros(count, pixels.shape[1], dtype=torch.float64).index_add_(0, member, pixels.double())
    return (sums / member.bincount(minlength=count)[:, None]).to(pixels.dtype)


def clustered(token_maps: Tensor, clusters: int = 32, rounds: int = 20, dtype: torch.dtype = torch.float16) -> Tensor:
    """Token maps (n, h, w) in which every pixel has its cluster's mean."""
    member = cluster(token_maps, clusters, rounds, dtype).flatten()
    pixels = token_maps.flatten(1).T
    pixels = pixels.masked_fill(pixels == 0, _TINY)
    means = cluster_means(pixels, member, int(member.max()) + 1)
    return means[member].T.reshape(token_maps.shape)
