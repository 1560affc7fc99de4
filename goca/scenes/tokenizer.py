"""Small tokenizers: every word of the scenes is one token, other text falls apart into bytes (CLIP) or letters (T5)."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

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
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in merges],  # type: ignore[misc]  # the annotation says strings, pairs are meant
        model_max_length=max_length,
    )


def small_t5_tokenizer(words: Sequence[str] = WORDS, max_length: int = 512) -> T5Tokenizer:
    """A `T5Tokenizer` of unigram pieces with T5's mark for a space and its special tokens; knows lower case alone.

    >>> small_t5_tokenizer().tokenize("moon, grass")
    ['▁moon', ',', '▁grass']
    """
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(mark, -3.0) for mark in ",.-()"] + [(letter, -6.0) for letter in string.ascii_lowercase]
    pieces += [(f"▁{word}", -2.0) for word in words if len(word) > 1]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_length)


def _word_merges(words: Sequence[str]) -> list[list[str]]:
    """Byte-pair merges that join each word into one token, found by the tokenizers library."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False))
    return json.loads(bpe.to_str())["model"]["merges"]
