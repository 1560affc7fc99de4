"""Text axes of each backbone family."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from goca.prompts import TextSegment

from .vocabularies import bert_tokenizer, clip_tokenizer, t5_tokenizer


@pytest.fixture(scope="session")
def clip(shared: Path) -> CLIPTokenizer:
    return clip_tokenizer(shared / "clip" / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="session")
def text_axes(shared: Path, clip: CLIPTokenizer) -> dict[str, tuple[TextSegment, ...]]:
    """CLIP (Stable Diffusion), T5 (PixArt), BERT, and BERT followed by T5 (HunyuanDiT)."""
    t5 = t5_tokenizer(shared / "sentencepiece" / "hf_fixture_test_sentencepiece.model")
    bert = bert_tokenizer()
    return {
        "clip": (TextSegment(clip, 77),),
        "t5": (TextSegment(t5, 120),),
        "bert": (TextSegment(bert, 77),),
        "bert+t5": (TextSegment(bert, 77), TextSegment(t5, 256, start=77)),
    }
