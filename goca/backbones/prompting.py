"""What prompts ask of text embeddings beyond encoding their text: emphasis, and another text to be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from goca.errors import ModelError
from goca.prompts.prompt import Prompt

Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]
_EMBEDDINGS = "encoder_hidden_states"


def read_text(prompts: Sequence[Prompt], encode: Encode) -> Tensor | None:
    """Embeddings (B, n, C) of the texts that prompts want read, None where none does."""
    texts = [prompt.reads for prompt in prompts]
    if all(text is None for text in texts):
        return None
    return encode([prompt.text if prompt.reads is None else prompt.reads for prompt in prompts])[_EMBEDDINGS]


def emphasised(conditioning: Mapping[str, Tensor], prompts: Sequence[Prompt], encode: Encode) -> Mapping[str, Tensor]:
    """The conditioning with words louder or quieter, as prompts ask.

    Raises:
        ModelError: the family's text does not lie in one tensor of embeddings.
    """
    if not any(prompt.emphasis for prompt in prompts):
        return conditioning
    if _EMBEDDINGS not in conditioning:
        raise ModelError("prompts.emphasis changes one tensor of text embeddings, and this model has several")
    embeddings = list(conditioning[_EMBEDDINGS].split(1))
    empty = encode([""])[_EMBEDDINGS]
    for row, prompt in enumerate(prompts):
        if prompt.emphasis:
            embeddings[row] = prompt.emphasis(embeddings[row], prompt.emphasised, empty)
    return {**conditioning, _EMBEDDINGS: torch.cat(embeddings)}
