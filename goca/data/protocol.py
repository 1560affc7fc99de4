"""Evaluation protocols: what counts as an error. Numbers of two protocols are never comparable."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Protocol:
    """The rules that data sets, decision and metric share.

    `upstream` repeats the paper's released code; `standard` is how methods that are told the classes are evaluated; `ovss` that
    of the open-vocabulary benchmarks (docs/benchmarks.md): as `standard`, with the background's threshold fixed beforehand by
    the data set, and COCO-Object from the stuffthingmaps.

    - `void`: pixels without a class (255, "unlabelled", classes outside the evaluation set) become class 0 (`background`), or
      leave the evaluation (`ignore`). Under `background` every data set has a background class.
    - `unseen_classes`: a class that neither the predictions nor the ground truth of the data set contain counts 0 in the mean
      (`zero`), or is left out of it (`skip`).
    - `prompt`: the source of prompts that the protocol goes with; `published` captions filtered by the ground truth, the names
      of the `classes` present, or the whole `vocabulary`.
    - `version`: rises when a rule changes, so that the same settings give other numbers; versions are not comparable.
    """

    name: Literal["upstream", "standard", "ovss"]
    void: Literal["background", "ignore"]
    unseen_classes: Literal["zero", "skip"]
    prompt: Literal["published", "classes", "vocabulary"]
    version: PositiveInt = 1
