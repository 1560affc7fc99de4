"""Several prompts of one image as one: their tokens side by side, so that all classes share the rescaling of every pixel.

A prompt's token maps are shares of one softmax. Of two prompts with other words the shares do not compare: a prompt whose words
are not in the picture gives all its attention to them, or to special tokens. Each way here says what is put in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from goca.errors import ConfigError
from goca.method.calibration import PlainGroups, TokenGroups

_TINY = 1e-6


class WordGroups(TokenGroups, Protocol):
    """What is read of a prompt besides its groups."""

    @property
    def special(self) -> Mapping[str, tuple[int, ...]]: ...


def side_by_side(maps: Sequence[Tensor], prompts: Sequence[WordGroups], how: str) -> tuple[Tensor, PlainGroups]:
    """Token maps (n_p, h, w) of every prompt, brought to one scale, on one axis (sum of n_p, h, w), and their groups there.

    Args:
        how: `joint` takes shares as they are; `sink` divides every prompt's by what its special tokens hold at a pixel,
            `anchor` by what its last background group holds, a word that is in all of them.

    Raises:
        ConfigError: `anchor`, and a prompt has no background word.
    """
    scaled = list(maps)
    if how in ("sink", "anchor"):
        held = [_held(own, prompt, how) for own, prompt in zip(maps, prompts, strict=True)]
        mean = torch.stack(held).mean(0)
        # A prompt whose sink holds nothing, or that has none, cannot be measured by it and stays as it is.
        scales = [torch.where(part > _TINY, mean / part, torch.ones_like(part)) for part in held]
        scaled = [own * scale for own, scale in zip(maps, scales, strict=True)]
    words: dict[int, list[tuple[int, ...]]] = {}  # a class that several prompts name has several
    background: list[tuple[int, ...]] = []
    content: list[int] = []
    first = 0
    for own, prompt in zip(maps, prompts, strict=True):
        for class_id, tokens in prompt.class_tokens.items():
            for word in prompt.alternatives.get(class_id, (tokens,)):
                words.setdefault(class_id, []).append(tuple(first + token for token in word))
        background += [tuple(first + token for token in group) for group in prompt.background_groups]
        content += [first + token for token in prompt.content]
        first += len(own)
    classes = {class_id: tuple(token for word in each for token in word) for class_id, each in words.items()}
    several = {class_id: tuple(each) for class_id, each in words.items() if len(each) > 1}
    return torch.cat(scaled), PlainGroups(classes, tuple(content), tuple(background), several)


def _held(maps: Tensor, prompt: WordGroups, how: str) -> Tensor:
    """What a prompt's special tokens, or its shared word, hold at every pixel: (h, w)."""
    groups = prompt.background_groups[-1:] if how == "anchor" else tuple(prompt.special.values())
    tokens = sorted({token for group in groups for token in group})
    if not tokens and how == "anchor":
        raise ConfigError("prompts.across=anchor needs a background word in every prompt (background_token=true)")
    return maps[tokens].sum(0)
