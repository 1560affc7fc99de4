"""What makes two numbers of one data set comparable: the threshold that was fixed, and the names, words and prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from goca import config
from goca.data.base import SegmentationDataset
from goca.data.protocol import Protocol
from goca.errors import ConfigError
from goca.method.decision import Decision, Hungarian
from goca.method.scored import Scored
from goca.prompts.files import image_key
from goca.prompts.filters import Filters
from goca.prompts.sources import Captions, PromptSource
from goca.runs.naming import option_of

_DIGITS = 12
_READING = {"palette": "colours", "orientation": "auto"}  # of files, and the usual choice


def fixed_threshold(dataset: SegmentationDataset, decision: Decision | Hungarian | Scored) -> float | None:
    """The background's threshold under protocol `ovss`; None where the protocol fixes none, or nothing is compared with it.

    A decision with one threshold has fixed it; for a sweep the data set has one, by what thresholds are compared with.

    Raises:
        ConfigError: neither has.
    """
    if dataset.protocol.name != "ovss" or isinstance(decision, Hungarian) or not dataset.has_background:
        return None
    if len(decision.thresholds) == 1:
        return decision.thresholds[0]
    if decision.scale not in dataset.threshold:
        known = ", ".join(dataset.threshold) or "none"
        raise ConfigError(
            f"protocol=ovss wants one threshold of the background, fixed beforehand, and {dataset.name} has none for "
            f"{decision.scale!r} (it has: {known}); give decision.thresholds=[0.5], or ++dataset.threshold.{decision.scale}=0.5"
            " to have the sweep reported beside it, with a value that was not chosen on the evaluated images"
        )
    return dataset.threshold[decision.scale]


def threshold_name(dataset: SegmentationDataset, decision: Decision | Hungarian | Scored, fixed: float | None) -> str:
    """`dataset.threshold.offset=0.3` where the data set fixed another threshold than its option has; else empty."""
    if fixed is None or isinstance(decision, Hungarian) or len(decision.thresholds) == 1:
        return ""
    if dataset.name not in config.options("dataset"):
        return ""
    usual = option_of("dataset", dataset.name).get("threshold", {})
    return "" if usual.get(decision.scale) == fixed else f"dataset.threshold.{decision.scale}={fixed:g}"


def _unusual(protocol: Protocol) -> dict[str, Any]:
    """Rules of a protocol that were set by hand; its name promises others."""
    usual = option_of("protocol", protocol.name)
    return {key: getattr(protocol, key) for key in ("void", "unseen_classes") if getattr(protocol, key) != usual[key]}


def _reading(dataset: SegmentationDataset) -> dict[str, Any]:
    """How files are read, where that is not as usual."""
    return {key: getattr(dataset, key) for key, usual in _READING.items() if getattr(dataset, key) != usual}


def unusual_rules(dataset: SegmentationDataset) -> dict[str, Any]:
    """Settings by which labels, pictures or what counts are not what the data set and the protocol promise.

    `dataset.palette` and `dataset.orientation` say how files are read, which can give other labels and pictures.
    """
    return {
        **{f"dataset.{key}": value for key, value in (*dataset.label_rules.items(), *_reading(dataset).items())},
        **{f"protocol.{key}": value for key, value in _unusual(dataset.protocol).items()},
    }


def rules_hash(dataset: SegmentationDataset, prompts: PromptSource, image_ids: Sequence[str] | None = None) -> str:
    """Twelve hexadecimal digits that are equal where class names, words, the way prompts are made of them and what counts are.

    Captions count by their text and the filters on them; where they lie, and how they were asked for, does not.

    Args:
        image_ids: whose captions count; None stands for all.
    """
    options: Mapping[str, Any] = prompts.describe()
    if isinstance(prompts, Captions):
        kept = ("source", "on_missing", *Filters.__dataclass_fields__)
        wanted = None if image_ids is None else set(map(image_key, image_ids))
        captions = sorted((key, text) for key, text in prompts.captions.items() if wanted is None or key in wanted)
        options = {key: options[key] for key in kept if key in options} | {"captions": captions}
    table = dataset.classes
    asked = [table.words(class_id) for class_id in range(len(table))]
    background = [dataset.has_background, table.background_words]
    content = {"names": table.names, "words": table.synonyms, "asked": asked, "background": background, "prompts": options}
    # What is as usual under the protocol is left out, so that such runs keep the digits that they always had.
    unusual = {"labels": dataset.label_rules, "reading": _reading(dataset), "rules": _unusual(dataset.protocol)}
    content |= {key: value for key, value in unusual.items() if value}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]
