"""Tokenizers as the text encoders use them, so that character offsets point at what was encoded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from goca.prompts.segments import TemplateSegment


def lower_cased(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with lower-casing in front, for encoders that were trained on lower-cased text."""
    changed: Any = copy.deepcopy(tokenizer)
    before = [normalizers.Lowercase()]
    if changed.backend_tokenizer.normalizer is not None:
        before.append(changed.backend_tokenizer.normalizer)
    changed.backend_tokenizer.normalizer = normalizers.Sequence(before)
    return changed


def chat_segment(
    processor: Any, length: int, messages: Callable[[str], list[dict[str, Any]]], bare: bool = False, **options: Any
) -> TemplateSegment:
    """A prompt as a message of a chat, template and padding kept on the text axis.

    Args:
        processor: a tokenizer, or a processor around one, with a chat template.
        length: padded length in tokens.
        messages: prompt -> the chat as the pipeline writes it.
        bare: the pipeline lets `apply_chat_template` tokenize, which adds no special tokens to those that the template writes.
        options: as the pipeline gives them to `apply_chat_template`.
    """

    def render(text: str) -> str:
        rendered: str = processor.apply_chat_template(messages(text), tokenize=False, **options)
        return rendered

    tokenizer = getattr(processor, "tokenizer", processor)
    if bare and tokenizer is not processor:  # a processor does add them, unless the template begins with a start token
        bare = bool(tokenizer.bos_token) and render("").startswith(tokenizer.bos_token)
    return TemplateSegment(tokenizer, length, render=render, bare=bare)


def user_message(text: str) -> list[dict[str, Any]]:
    """A chat of one message."""
    return [{"role": "user", "content": text}]


def after_prefix(
    tokenizer: Any, template: str, length: int, dropped: int, side: Literal["left", "right"] | None = None
) -> TemplateSegment:
    """A prompt in a template of the form `... {} ...`, whose first `dropped` tokens the pipeline takes away once encoded.

    Args:
        side: of the padding, where the tokenizer is not asked.
    """
    return TemplateSegment(tokenizer, length, render=template.format, kept=range(dropped, dropped + length), side=side)
