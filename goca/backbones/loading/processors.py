"""The text half of processors of words and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from transformers import AutoTokenizer


class TextProcessor:
    """What a processor of words and pictures does with words; its half for pictures would need a package more, for nothing.

    Args:
        tokenizer: the processor's; None where a pipeline is made to name layers alone and asks its processor for lengths.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer: Any = _Blank() if tokenizer is None else tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """The tokenizer of a processor's folder."""
        return cls(AutoTokenizer.from_pretrained(folder, **options))

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the tokenizer; `from_pretrained` reads it."""
        self.tokenizer.save_pretrained(folder, **options)

    def __call__(self, text: Any = None, **options: Any) -> Any:
        """Tokenize, as the tokenizer does."""
        return self.tokenizer(text, **options)

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, **options: Any) -> Any:
        """As processors do: token ids of one conversation come as a batch of one."""
        batch = [conversation] if tokenize and conversation and isinstance(conversation[0], dict) else conversation
        return self.tokenizer.apply_chat_template(batch, tokenize=tokenize, **options)


class _Blank:
    """A tokenizer without a vocabulary."""

    def encode(self, _text: str) -> list[int]:
        return [0]

    def apply_chat_template(self, conversation: Any, **_: Any) -> list[list[int]]:
        return [[] for _ in conversation]
