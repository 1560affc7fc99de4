"""Text axes of each backbone family."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from goca.prompts import TextSegment
from goca.scenes.tokenizer import small_clip_tokenizer
from tests.conftest import ROOT
from tests.helpers.tiny_vlm import tiny_vlm
from tests.helpers.vocabularies import bert_tokenizer, clip_tokenizer, letter_t5_tokenizer, t5_tokenizer

WORDS = """and background bear bird bus car cat clothes dog dogs grass hat horse hot house ice person polar sign skateboard sky
sofa stop the toy"""


@pytest.fixture(scope="session")
def clip(shared: Path) -> CLIPTokenizer:
    """CLIP's own tokenizer."""
    return clip_tokenizer(shared / "clip" / "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="session")
def text_axes() -> dict[str, tuple[TextSegment, ...]]:
    """CLIP (Stable Diffusion), T5 (PixArt), BERT, and BERT followed by T5 (HunyuanDiT), with the best vocabularies here."""
    folder = Path(os.environ.get("GOCA_SHARED", ROOT.parent / "shared"))
    merges, pieces = (
        folder / "clip" / "bpe_simple_vocab_16e6.txt.gz",
        folder / "sentencepiece" / "hf_fixture_test_sentencepiece.model",
    )
    clip = clip_tokenizer(merges) if merges.is_file() else small_clip_tokenizer(WORDS.split())
    t5 = t5_tokenizer(pieces) if pieces.is_file() else letter_t5_tokenizer()
    bert = bert_tokenizer()
    return {
        "clip": (TextSegment(clip, 77),),
        "t5": (TextSegment(t5, 120),),
        "bert": (TextSegment(bert, 77),),
        "bert+t5": (TextSegment(bert, 77), TextSegment(t5, 256, start=77)),
    }


@pytest.fixture(scope="session")
def vlm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm(tmp_path_factory.mktemp("llava"))
