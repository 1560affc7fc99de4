"""Captions from a local vision-language model."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from goca.errors import DataError, ModelError
from goca.hub.models import model_folder
from goca.prompts.answers import Answer
from goca.prompts.asked import Asked


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class VLM(Asked):
    """A model that transformers' `image-text-to-text` pipeline can load.

    Args:
        revision: of the model, for numbers that can be repeated.
        device: "cpu", "cuda", "cuda:1", "mps" ...; null takes an accelerator where there is one.
        dtype: of the weights; "auto" takes the checkpoint's.
        max_new_tokens: longest answer.
    """

    workers: Literal[1] = 1  # the model answers one image at a time
    revision: str | None = None
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_new_tokens: PositiveInt = 128

    def load(self) -> None:
        self._pipeline  # noqa: B018

    def ask(self, image: np.ndarray, request: str) -> Answer:
        content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": request}]
        try:
            (output,) = self._pipeline(
                text=[{"role": "user", "content": content}],
                max_new_tokens=self.max_new_tokens,
                generate_kwargs={"do_sample": False},
                return_full_text=False,
            )
        except (ValueError, RuntimeError) as error:  # an image the processor cannot take, or memory that runs out
            raise DataError(f"{self.model}: {error}") from error
        return Answer.of_text(output["generated_text"])

    @cached_property
    def _pipeline(self) -> Any:
        from transformers import pipeline

        folder = model_folder(self.model, self.revision, "prompts.model")
        try:
            return pipeline("image-text-to-text", model=str(folder), device=self.device, dtype=self.dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"prompts.model={self.model} is not a model for image-text-to-text: {error}") from error
