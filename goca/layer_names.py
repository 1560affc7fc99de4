"""Names of attention layers: diffusers' module names, which configs may give as globs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from fnmatch import fnmatchcase

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca.errors import ModelError


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LayerNames:
    """Which layers of a backbone play which part; names or globs, as in the paper's table of constants.

    Args:
        cross: layers whose attention to text is observed.
        manual: the hand-set list that earlier methods use.
        reference: layer of the dense feature that gives the reference affinity.
        affinity: self-attention (or joint) layers that the affinity refinement averages.
        feature: what a layer's dense feature is: its image `query`, or its attention `output`.
        peers: preset of another paper -> the layers that its authors chose by hand on this model.
    """

    cross: tuple[str, ...]
    manual: tuple[str, ...]
    reference: str
    affinity: tuple[str, ...]
    feature: str = "query"
    peers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def resolve(patterns: Sequence[str], available: Iterable[str], what: str) -> tuple[str, ...]:
    """Names that match the patterns, in the model's order, each once.

    Raises:
        ModelError: a pattern matches nothing; the message names it and the nearest layers.

    >>> resolve(["mid*"], ["down.attn2", "mid.attn2"], "cross layers")
    ('mid.attn2',)
    """
    names = list(available)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=4, cutoff=0.3) or names[:4]
            known = ", ".join(near) or "none at all"
            raise ModelError(f"{what}: no layer of this model matches '{pattern}'; near it are {known}")
    return tuple(name for name in names if matches(name, patterns))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is, or a glob covers it."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
