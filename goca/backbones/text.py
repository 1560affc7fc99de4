"""Tokenizers as the text encoders use them, so that character offsets point at what was encoded."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerBase


def lower_cased(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with lower-casing in front, for encoders that were trained on lower-cased text."""
    changed: Any = copy.deepcopy(tokenizer)
    before = [normalizers.Lowercase()]
    if changed.backend_tokenizer.normalizer is not None:
        before.append(changed.backend_tokenizer.normalizer)
    changed.backend_tokenizer.normalizer = normalizers.Sequence(before)
    return changed


def with_suffix(tokenizer: PreTrainedTokenizerBase, suffix: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the tokens of `suffix` after every text, marked as special: the rest of a chat template."""
    changed: Any = copy.deepcopy(tokenizer)
    ids = changed(suffix, add_special_tokens=False)["input_ids"]
    changed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A suffix",
        special_tokens=[{"id": "suffix", "ids": ids, "tokens": changed.convert_ids_to_tokens(ids)}],
    )
    return changed
