"""Segments by recursive normalised cuts of a feature's affinity (DiffCut, NeurIPS 2024, after Shi and Malik 2000)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from goca.ops import resize

_THRESHOLDS = 100


@dataclass
class Cuts:
    """What a recursion found: for every accepted cut the pixels on its first side, and value and size of all attempts."""

    accepted: list[Tensor] = field(default_factory=list)  # (S,) bool
    values: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def clusters(self, pixels: int) -> Tensor:
        """Cluster of each pixel (S,), numbered in the order of a running code over the cuts."""
        code, weight = torch.zeros(pixels, dtype=torch.long), 1
        for side in self.accepted:
            code += weight * side.to(code.device)
            weight = int(code.max()) + 1
        return code.unique(return_inverse=True)[1]


def affinity(unit: Tensor, alpha: float) -> Tensor:
    """((f f^T - min) / (max - min)) ^ alpha of unit features (S, D), float64, symmetric to the last bit.

    Some processors' products are not, and then the pair of pixels that are least alike has its exact 0 in one of two rows.
    """
    likeness = unit.double() @ unit.double().T
    likeness = (likeness + likeness.T) / 2
    return ((likeness - likeness.min()) / (likeness.max() - likeness.min())) ** alpha


def recursive_cuts(matrix: Tensor, tau: float, drop_zeros: bool = True) -> Cuts:
    """Cut while the normalised cut's value is below tau, the first side first.

    Args:
        matrix: affinity (S, S).
        drop_zeros: pixels with an exact 0 in their row of the matrix leave it after the first cut, as in the released code,
            where this follows from a test for zeros; they keep the segment they had.
    """
    cuts = Cuts()
    stays = ~(matrix == 0).any(1) if drop_zeros else torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    waiting = [torch.arange(len(matrix), device=matrix.device)]
    while waiting:
        pixels = waiting.pop()
        if len(pixels) < 2:
            continue
        value, side = best_cut(matrix[pixels][:, pixels])
        cuts.values.append(value)
        cuts.sizes.append(len(pixels))
        if value < tau:
            mark = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
            mark[pixels[side]] = True
            cuts.accepted.append(mark)
            waiting += [_staying(pixels[~side], stays), _staying(pixels[side], stays)]
    return cuts


def _staying(pixels: Tensor, stays: Tensor) -> Tensor:
    return pixels[stays[pixels]]


def best_cut(matrix: Tensor) -> tuple[float, Tensor]:
    """Least normalised cut among evenly spaced thresholds of the second eigenvector, and its first side (n,) bool."""
    degree = matrix.sum(1)
    vector = _eigenvectors(matrix)[1][:, 1]
    vector = vector * vector[vector.abs().argmax()].sign()
    thresholds = torch.linspace(float(vector.min()) * 0.99, float(vector.max()) * 0.99, _THRESHOLDS, dtype=matrix.dtype)
    sides = vector[None] > thresholds.to(vector.device)[:, None]  # (thresholds, n)
    first = sides.to(matrix.dtype)
    inside, outside = first @ degree, (1 - first) @ degree
    between = ((first @ matrix) * (1 - first)).sum(1)
    values = between / inside + between / outside
    least = int(values.nan_to_num(torch.inf).argmin())
    return float(values[least]), sides[least]


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the normalised Laplacian and D^(-1/2) times its eigenvectors, ascending."""
    degree = matrix.sum(1)
    scale = degree**-0.5
    values, vectors = torch.linalg.eigh(scale[:, None] * (torch.diag(degree) - matrix) * scale)
    return values, scale[:, None] * vectors


def eigengap_clusters(unit: Tensor, alphas: Sequence[float] = (1, 5, 10, 15), last_alpha: bool = False) -> Tensor:
    """Clusters (S,) without a threshold: as many as the largest relative eigengap says, by pivoted QR of the eigenvectors.

    Args:
        unit: features (S, D) of length 1.
        alphas: exponents of the affinity to choose from.
        last_alpha: take the eigenvectors of the last exponent, as the released code does, not of the one with the largest gap.
    """
    best, count, chosen = 0.0, 1, None
    for alpha in alphas:
        values, vectors = _eigenvectors(affinity(unit, 1) ** alpha)
        mean = values.cumsum(0) / torch.arange(1, len(values) + 1, device=values.device)
        gap = (values - mean) / (mean + 1e-6)
        if float(gap.max()) > best:
            best, count, chosen = float(gap.max()), int(gap.argmax()), vectors
    first = (vectors if last_alpha or chosen is None else chosen)[:, :count].cpu().numpy()
    pivots = scipy.linalg.qr(first.T, pivoting=True)[2][:count]
    left, _, right = scipy.linalg.svd(first[pivots].T)
    return torch.from_numpy(np.abs(first @ (left @ right)).argmax(1)).to(unit.device)


def assign(unit: Tensor, clusters: Tensor, size: tuple[int, int]) -> Tensor:
    """Cluster scores (K, *size): products of resized unit features with the clusters' mean features, not normalised.

    Args:
        unit: (S, D).
        clusters: (h, w) with h * w = S.
    """
    height, width = clusters.shape
    flat = clusters.flatten()
    means = torch.stack([unit[flat == number].mean(0) for number in flat.unique()])
    # Resizing the K products instead would take less memory, and decide ties between clusters by other roundings.
    large = resize(unit.T.unflatten(1, (height, width)), size)
    return torch.einsum("kd,dhw->khw", means, large)


def unit_features(feature: Tensor) -> Tensor:
    """(D, h, w) -> (h * w, D) of length 1, float64."""
    return F.normalize(feature.flatten(1).T.double(), dim=1)
