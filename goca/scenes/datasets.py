"""Training data made of scenes: pixels for the VAE, cached latents with shuffled words for the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from goca.disk import replacing
from goca.errors import ConfigError
from goca.scenes.generator import TEST_SEEDS, TRAIN_SEEDS, scene

_HELD_OUT = TEST_SEEDS[-100_000:]  # evaluation counts test seeds from the front, so a held-out loss never looks at its scenes


Look = Literal["plain", "camouflage"]


def to_pixels(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


class ScenePixels(Dataset[Tensor]):
    """The first `count` training scenes as (3, size, size) tensors in [-1, 1], drawn when asked for."""

    def __init__(self, count: int, size: int, look: Look = "plain") -> None:
        self.count, self.size, self.look = count, size, look

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return to_pixels(scene(TRAIN_SEEDS[index], self.size, look=self.look).image)


class CachedLatents(Dataset[tuple[Tensor, str]]):
    """Latents drawn from the VAE's posterior, with a prompt made of the scene's words.

    Words are shuffled on every visit, and one prompt in ten is empty, as classifier-free guidance needs.
    """

    def __init__(self, mean: Tensor, std: Tensor, words: Sequence[Sequence[str]], empty: float = 0.1) -> None:
        self.mean, self.std, self.words, self.empty = mean, std, words, empty

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        latents = self.mean[index] + self.std[index] * torch.randn_like(self.mean[index])
        words = [self.words[index][i] for i in torch.randperm(len(self.words[index])).tolist()]
        empty = torch.rand(()).item() < self.empty
        return latents, "" if empty else ", ".join(words)


@torch.no_grad()
def encode_latents(
    vae: Any, count: int, held_out: int, size: int, cache: Path, look: Look = "plain"
) -> tuple[CachedLatents, CachedLatents, float]:
    """Encode training and held-out scenes, once per cache file; both data sets and the scale that gives unit variance.

    Raises:
        ConfigError: the cache holds other scenes.
    """
    seeds = [*TRAIN_SEEDS[:count], *_HELD_OUT[:held_out]]
    if cache.exists():
        stored = torch.load(cache, weights_only=True)
        held = len(stored["words"]), stored.get("look", "plain")
        if held != (len(seeds), look):
            raise ConfigError(
                f"latents: {cache} holds {held[0]} {held[1]} scenes, this run needs {len(seeds)} {look} ones; delete it"
            )
    else:
        means, stds, words = [], [], []
        for start in range(0, len(seeds), 64):
            scenes = [scene(seed, size, look=look) for seed in seeds[start : start + 64]]
            posterior = vae.encode(torch.stack([to_pixels(s.image) for s in scenes])).latent_dist
            means.append(posterior.mean)
            stds.append(posterior.std)
            words += [list(s.words) for s in scenes]
        stored = {"mean": torch.cat(means), "std": torch.cat(stds), "words": words, "look": look}
        with replacing(cache) as part:  # several processes may make it at the same time
            torch.save(stored, part)
    scale = 1.0 / stored["mean"].std().item()
    mean, std, words = stored["mean"] * scale, stored["std"] * scale, stored["words"]
    training = CachedLatents(mean[:count], std[:count], words[:count])
    test = CachedLatents(mean[count:], std[count:], words[count:], empty=0.0)
    return training, test, scale
