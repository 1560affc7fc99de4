"""A small CLIP tokenizer: every word of the scenes is one token, any other text falls apart into bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from goca.scenes.generator import CLASSES

WORDS = (*CLASSES, "a", "and", "on", "with")


def small_clip_tokenizer(words: Sequence[str] = WORDS, max_length: int = 77) -> CLIPTokenizer:
    """A `CLIPTokenizer` whose vocabulary holds all bytes, with and without the end-of-word mark, and the given words.

    >>> small_clip_tokenizer().tokenize("Moon, grass")
    ['moon</w>', ',</w>', 'grass</w>']
    """
    merges = _word_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[tuple(pair) for pair in merges], model_max_length=max_length
    )


def _word_merges(words: Sequence[str]) -> list[list[str]]:
    """Byte-pair merges that join each word into one token, found by the tokenizers library."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False))
    return json.loads(bpe.to_str())["model"]["merges"]
