"""What is drawn of one image of a run: plain arrays, written when its batch is done and read when the run has ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from goca.data.base import Sample
from goca.disk import replacing
from goca.prediction import Prediction

_ARRAYS = ("image", "labels", "raw", "calibrated", "refined", "token_maps")


@dataclass(frozen=True)
class Example:
    """One image through the stages of the method.

    Args:
        image_id: of the data set.
        image: (H, W, 3) uint8.
        truth: (H, W) class ids, or None without ground truth.
        labels: (T, H, W) predicted class ids, one map per threshold.
        class_ids: of the C classes that competed.
        raw, calibrated, refined: (C, h, w) class maps before and after calibration, and after refinement.
        segments: how many maps `refined` holds where the refinement found segments without names; 0 where it holds classes.
        tokens: of the first prompt's content, with their positions.
        token_maps: (n, h, w) of these tokens.
        head_weights: cross-attention layer -> mean weight of each head.
    """

    image_id: str
    image: np.ndarray
    truth: np.ndarray | None
    labels: np.ndarray
    class_ids: tuple[int, ...]
    raw: np.ndarray
    calibrated: np.ndarray
    refined: np.ndarray
    tokens: tuple[str, ...]
    token_maps: np.ndarray
    head_weights: Mapping[str, Sequence[float]]
    segments: int = 0

    @classmethod
    def of(cls, sample: Sample, prediction: Prediction) -> Example:
        """What there is to draw of a prediction."""
        before, after = prediction.calibrated, prediction.maps
        prompt = prediction.prompts[0] if prediction.prompts else None
        content = list(prompt.content) if prompt is not None and prediction.token_maps is not None else []
        maps = prediction.token_maps[content] if prediction.token_maps is not None else None
        return cls(
            image_id=sample.image_id,
            image=sample.image,
            truth=sample.label,
            labels=_array(prediction.labels),
            class_ids=prediction.class_ids,
            raw=_array(before.raw),
            calibrated=_array(before.scores),
            refined=_array(after.scores),
            tokens=tuple(f"{i}: {prompt.tokens[i]}" for i in content) if prompt is not None else (),
            token_maps=_array(maps) if maps is not None else np.zeros((0, 1, 1), np.float32),
            head_weights=prediction.head_weights,
            segments=0 if after.named else len(after.ids),
        )

    def names(self, class_name: Callable[[int], str]) -> tuple[list[str], list[str]]:
        """What the maps of `raw` and `calibrated`, and what those of `refined` show."""
        classes = [class_name(class_id) for class_id in self.class_ids]
        return classes, [f"segment {number}" for number in range(1, self.segments + 1)] or classes

    def save(self, path: Path) -> None:
        """Write one compressed .npz."""
        facts = {
            "image_id": self.image_id,
            "class_ids": self.class_ids,
            "tokens": self.tokens,
            "head_weights": dict(self.head_weights),
            "segments": self.segments,
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS} | ({} if self.truth is None else {"truth": self.truth})
        with replacing(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, facts=np.array(json.dumps(facts)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Example:
        """What `save` wrote; raises OSError or ValueError for other files."""
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            arrays = {name: stored[name] for name in _ARRAYS}
            truth = stored.get("truth")
        ids, tokens = tuple(facts.pop("class_ids")), tuple(facts.pop("tokens"))
        return cls(class_ids=ids, tokens=tokens, truth=truth, **facts, **arrays)


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().numpy()
    return array
