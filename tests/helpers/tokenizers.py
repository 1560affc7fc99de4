"""More small tokenizers of the real classes, beside those of `goca.scenes.tokenizer`: other text falls apart into letters."""

import string

from transformers import BertTokenizer, LlamaTokenizer, Qwen2Tokenizer

from goca.scenes.tokenizer import WORDS, small_clip_tokenizer

_LETTERS = string.ascii_lowercase
_MARKS = ",.-()"


def small_bert_tokenizer(max_length: int = 77) -> BertTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_MARKS, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    pieces += [word for word in WORDS if len(word) > 1]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=max_length)


def small_llama_tokenizer() -> LlamaTokenizer:
    """Byte-pair pieces with sentencepiece's mark for a space, letters only: every word falls apart."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *_MARKS, *_LETTERS]
    return LlamaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], pad_token="</s>", add_bos_token=False)


def small_qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes, the words of the scenes, and the marks of the chat template."""
    clip = small_clip_tokenizer()
    pieces = [piece for piece in clip.get_vocab() if not piece.endswith("</w>") and not piece.startswith("<|")]
    tokenizer = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(sorted(pieces))}, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]})
    return tokenizer
