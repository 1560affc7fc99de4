"""The Frechet distance between two sets of feature vectors, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from goca.errors import DataError


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, float64, and the number of pictures they come from if known."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> Gaussian:
        """From features (N, D), N at least 2."""
        features = features.astype(np.float64)
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))

    @classmethod
    def load(cls, path: Path) -> Gaussian:
        """From a .npz with `mu` and `sigma`, the form in which statistics of data sets are published.

        Raises:
            DataError: no such file, or it holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                count = int(stored["count"]) if "count" in stored else None
                return cls(stored["mu"].astype(np.float64), stored["sigma"].astype(np.float64), count)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"reference: {path} holds no statistics; a .npz with mu and sigma is wanted ({error})") from error

    def save(self, path: Path) -> None:
        """Write what `load` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, mu=self.mean, sigma=self.covariance, count=self.count or 0)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), through the symmetric S1^(1/2) S2 S1^(1/2).

    >>> round(frechet_distance(Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.ones(2), 4 * np.eye(2))), 6)
    4.0
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second.covariance @ root).clip(min=0)).sum()
    shift = ((first.mean - second.mean) ** 2).sum()
    return float(shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross)


def bootstrap(features: np.ndarray, reference: Gaussian, rounds: int, seed: int = 0) -> np.ndarray:
    """Distances of resampled sets: (rounds,). The same seed draws the same positions, so that sets can be compared in pairs."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(features), (rounds, len(features)))
    return np.array([frechet_distance(Gaussian.of(features[draw]), reference) for draw in draws])
