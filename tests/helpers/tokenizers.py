"""More small tokenizers of the real classes, beside those of `goca.scenes.tokenizer`: other text falls apart into letters."""

import string
import tempfile
from functools import cache
from pathlib import Path

import sentencepiece
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from transformers import BertTokenizer, GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer

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


def small_chat_tokenizer() -> Qwen2Tokenizer:
    """`small_qwen_tokenizer` with a chat template of Qwen3's form, which can close a thought before it begins."""
    tokenizer = small_qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    return tokenizer


def small_mistral_tokenizer() -> Qwen2Tokenizer:
    """Bytes and the words of the scenes, padded on the left, with a chat template of Mistral's form, start token included."""
    tokenizer = small_qwen_tokenizer()
    marks = ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": marks}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(sorted(set(SYSTEM_MESSAGE.split())))  # else the system message would be hundreds of letters
    tokenizer.padding_side = "left"
    tokenizer.chat_template = (
        "<s>{% for message in messages %}"
        "{% if message.role == 'system' %}[SYSTEM_PROMPT]{% for part in message.content %}{{ part.text }}{% endfor %}"
        "[/SYSTEM_PROMPT]{% else %}[INST]{% for part in message.content %}{{ part.text }}{% endfor %}[/INST]{% endif %}"
        "{% endfor %}"
    )
    return tokenizer


def small_gemma_tokenizer() -> GemmaTokenizer:
    """Byte-pair pieces with sentencepiece's mark for a space between words, letters only, and a start token."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "▁", "\n", ":", *_MARKS]
    pieces += [*_LETTERS, *_LETTERS.upper()]
    return GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])


@cache
def small_chatglm_tokenizer() -> ChatGLMTokenizer:
    """Sentencepiece pieces of the scenes' words, letters, and bytes for everything else; slow, and without offsets."""
    texts = [" ".join(WORDS)] * 20 + list(string.ascii_letters) + [" ".join(_MARKS)] * 5
    folder = Path(tempfile.mkdtemp(prefix="chatglm_"))
    options = {
        "vocab_size": 400,
        "hard_vocab_limit": False,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / "tokenizer"), num_threads=1, **options
    )
    return ChatGLMTokenizer(str(folder / "tokenizer.model"))
