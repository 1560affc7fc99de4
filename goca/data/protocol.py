"""Evaluation protocols: what counts as an error. Numbers of two protocols are never comparable."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Protocol:
    """The rules that data sets, decision and metric share.

    `upstream` repeats the paper's released code, `standard` is what the field reports:

    - `void`: pixels without a class (255, "unlabelled", classes outside the evaluation set) become class 0 (`background`), or
      leave the evaluation (`ignore`). Under `background` every data set has a background class.
    - `unseen_classes`: a class that neither the predictions nor the ground truth of the data set contain counts 0 in the mean
      (`zero`), or is left out of it (`skip`).
    - `prompt`: the source of prompts that the protocol goes with; `published` captions filtered by the ground truth, or the
      names of the `classes` present.
    """

    name: Literal["upstream", "standard"]
    void: Literal["background", "ignore"]
    unseen_classes: Literal["zero", "skip"]
    prompt: Literal["published", "classes"]
