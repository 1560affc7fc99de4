"""Tokenizers of each family, built from vocabularies: CLIP's real one, a small T5 and a small BERT."""

from __future__ import annotations

import gzip
from pathlib import Path

import sentencepiece
from transformers import BertTokenizer, CLIPTokenizer, T5Tokenizer


def clip_tokenizer(bpe: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from OpenAI's list of merges, gzipped text with one header line."""
    lines = gzip.decompress(bpe.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    pieces = [*_bytes(), *(byte + "</w>" for byte in _bytes()), *("".join(merge) for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77)


def _bytes() -> list[str]:
    """GPT-2's printable character for each byte, in the order of CLIP's vocabulary: printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def t5_tokenizer(model: Path) -> T5Tokenizer:
    """A T5 tokenizer on the pieces of a sentencepiece model."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, len(pieces))]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *vocab])


def letter_t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that spells, but keeps the "a" of the tests' words together with a neighbour: alone it is a stop token."""
    pieces = ("▁", *"abcdefghijklmnopqrstuvwxyz", *",.-'()", "ca", "ar", "ate")
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -1.0) for piece in pieces)])


def bert_tokenizer(words: tuple[str, ...] = ("car", "cat", "dog", "sk", "sky", "surf", "the")) -> BertTokenizer:
    """A BERT tokenizer with some words, all lower-case letters and their continuations."""
    letters = "abcdefghijklmnopqrstuvwxyzé"
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    continuations = ("##ate", "##board", *(f"##{letter}" for letter in letters))
    pieces = (*special, *",.-'()", *letters, *continuations, *words)
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
