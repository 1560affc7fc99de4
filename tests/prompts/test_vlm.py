"""Captions from a small vision-language model that is built here, through transformers' own pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.errors import ModelError
from goca.prompts.asked import ask_all
from goca.prompts.vlm import VLM

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of a few thousand parameters: 2 x 2 image patches, ten words."""
    folder = tmp_path_factory.mktemp("llava")
    words = ["<pad>", "</s>", "<unk>", "<image>", "cat", "grass", ",", "name", "the", "nouns"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=16, patch_size=8),
        text_config=LlamaConfig(**size, vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=1),
        image_token_index=3,
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def test_a_local_model_captions(model: Path, tmp_path: Path) -> None:
    dataset = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"), count=2)
    dataset.setup()
    source = VLM(path=tmp_path / "c.jsonl", model=str(model), instruction="name the nouns", device="cpu", max_new_tokens=6)
    assert ask_all(source, dataset, range(2)) == {}
    rows = [json.loads(line) for line in source.path.read_text().splitlines()]
    assert [row["image_id"] for row in rows] == dataset.image_ids
    for row in rows:
        assert row["status"] in ("ok", "empty")
        assert not (row["caption"] or "").startswith("name the nouns")  # the answer alone, without the request
    assert ask_all(source, dataset, range(2)) == {}


def test_no_such_model(tmp_path: Path) -> None:
    source = VLM(path=tmp_path / "c.jsonl", model=str(tmp_path / "nowhere"), instruction="x", device="cpu")
    with pytest.raises(ModelError, match=r"prompts\.model: .*nowhere"):
        source.load()
