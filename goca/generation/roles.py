"""Which positions of the text axis are words, which special tokens, and which one tells background from foreground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from goca.errors import ModelError
from goca.prompts.prompt import TextSegment

Half = Literal["unconditional", "conditional"]
_SPACE = "▁"  # sentencepiece's space standing alone


@dataclass(frozen=True)
class TokenRoles:
    """The text axis of one prompt as region guidance sees it.

    Args:
        tokens: one readable string per position.
        content: positions of words, punctuation included: what the per-pixel rescaling divides by.
        competing: positions that may own a region: everything up to the last word, so also a start token.
        global_token: position of the special token that holds the background.
        global_half: the half of the guidance batch whose map of that token is meant.
    """

    tokens: tuple[str, ...]
    content: tuple[int, ...]
    competing: tuple[int, ...]
    global_token: int
    global_half: Half


def token_roles(text: str, segments: Sequence[TextSegment]) -> TokenRoles:
    """Roles of every position for a prompt, as the backbone's tokenizers see it.

    A start token holds the background of the unconditional half. T5 has none: with an empty negative prompt all attention goes
    to its end token there, which says nothing, so the end token of the conditional half is taken instead (as in the authors'
    code).

    Raises:
        ModelError: a prompt without any word.
    """
    tokens: list[str] = []
    content: list[int] = []
    competing: list[int] = []
    found: list[tuple[int, Half]] = []
    for segment in segments:
        tokenizer = segment.tokenizer
        (encoding,) = tokenizer(text, padding="max_length", truncation=True, max_length=segment.length).encodings
        names = encoding.tokens
        words = content_positions(names, _special_tokens(tokenizer), encoding.attention_mask)
        content += [segment.start + i for i in words]
        competing += range(segment.start, segment.start + (words[-1] + 1 if words else 0))
        tokens += [""] * (segment.start - len(tokens)) + [name.replace("</w>", "").replace(_SPACE, "") for name in names]
        if names[0] in (tokenizer.bos_token, tokenizer.cls_token):
            found.append((segment.start, "unconditional"))
        elif tokenizer.eos_token in names:
            last = len(names) - 1 - names[::-1].index(tokenizer.eos_token)
            found.append((segment.start + last, "conditional"))
    if not content or not found:
        raise ModelError(f"the prompt {text!r} has no word that regions could belong to")
    return TokenRoles(tuple(tokens), tuple(content), tuple(competing), *found[0])


def content_positions(names: Sequence[str], special: frozenset[str], attention: Sequence[int] | None = None) -> tuple[int, ...]:
    """Positions of tokens that are neither special, nor padding, nor a lone space.

    >>> content_positions(["<s>", "red", "▁", "car", "</s>"], frozenset({"<s>", "</s>"}))
    (1, 3)
    """
    attention = attention or [1] * len(names)
    return tuple(i for i, name in enumerate(names) if attention[i] and name not in special and name != _SPACE)


def _special_tokens(tokenizer: object) -> frozenset[str]:
    kinds = ("bos_token", "eos_token", "pad_token", "cls_token", "sep_token")
    return frozenset(name for kind in kinds if (name := getattr(tokenizer, kind, None)))
