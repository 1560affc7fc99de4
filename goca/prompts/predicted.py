"""Class names that another network finds in an image, or that a file gives: between all names and those of the ground truth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass

from goca.data.base import Sample, SegmentationDataset
from goca.data.classes import ClassTable
from goca.errors import ConfigError, DataError, ModelError
from goca.hub.models import model_folder
from goca.prompts.answers import Answer
from goca.prompts.asked import Asked
from goca.prompts.caption import SEPARATOR, parse, tidy
from goca.prompts.files import image_key, read_jsonl, read_text
from goca.prompts.prompt import Prompt, TextSegment
from goca.prompts.sources import Captions, Vocabulary
from goca.prompts.vlm import VLM


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Predicted(Asked):
    """The classes that a network finds in each image; `python -m goca.caption` asks it, a run reads what it said.

    Args:
        path: the network's answers, a JSON record per image in one JSONL file; or a file of predictions from elsewhere: such
            records with `classes` (names) or `scores` (name -> score), or one JSON object of image -> either of them.
        model: hub id or folder of a model of transformers; None where the file comes from elsewhere.
        kind: `classifier` scores every class (pipeline `zero-shot-image-classification`: CLIP, SigLIP ...), `vlm` is asked by
            `instruction` (pipeline `image-text-to-text`); of what it answers, only names of classes count.
        template: the sentence in which a classifier reads a name.
        share: of scored classes those are taken that have at least this share of the image's highest score.
        least, most: how many of them are taken; `most` None takes any number.
        revision, device, dtype, max_new_tokens: of the model, as in `goca.prompts.vlm.VLM`.
    """

    model: str | None = None  # type: ignore[assignment]
    instruction: str = ""
    workers: Literal[1] = 1
    kind: Literal["classifier", "vlm"] = "classifier"
    template: str = "a photo of a {}."
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    least: PositiveInt = 1
    most: PositiveInt | None = None
    revision: str | None = None
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_new_tokens: PositiveInt = 128

    def __post_init__(self) -> None:
        if self.ground_truth or self.add_missing:
            raise ConfigError("prompts=predicted takes nothing from the ground truth; prompts=classes does, and says so")
        if self.kind == "classifier" and "{}" not in self.template:
            raise ConfigError(f"prompts.template needs a {{}} where the name of a class goes, got {self.template!r}")
        if self.most is not None and self.most < self.least:
            raise ConfigError(f"prompts.most={self.most} is less than prompts.least={self.least}")

    # ------------------------------------------------------------------------------------------------------- asking
    def request(self, dataset: SegmentationDataset) -> str:
        """What is asked about every image: the names to score, one a line, behind the template; or the instruction."""
        if self.model is None:
            raise ConfigError(f"prompts.model names no network to ask; {self.path} is read as it is")
        if self.kind == "vlm":
            return super().request(dataset)
        table = dataset.classes
        return "\n".join([self.template, *(word_of(i, table) for i in range(1, len(table)) if table.synonyms[i])])

    def load(self) -> None:
        """As `Asked.load`."""
        if self.kind == "vlm":
            self._vlm.load()
        else:
            self._classifier  # noqa: B018

    def ask(self, image: np.ndarray, request: str) -> Answer:
        """As `Asked.ask`; a classifier's answer holds the score of every class, from which any selection can be made later."""
        if self.kind == "vlm":
            return self._vlm.ask(image, request)
        template, *names = request.split("\n")
        try:
            found = self._classifier(Image.fromarray(image), candidate_labels=names, hypothesis_template=template)
        except (ValueError, RuntimeError) as error:  # an image the processor cannot take, or memory that runs out
            raise DataError(f"{self.model}: {error}") from error
        scores = {entry["label"]: round(float(entry["score"]), 6) for entry in found}
        return Answer(SEPARATOR.join(self._chosen(scores)), scores=scores)

    # ------------------------------------------------------------------------------------------------------ reading
    @cached_property
    def captions(self) -> Mapping[str, str]:
        """Image key -> names, joined as in a caption."""
        found: dict[str, str] = {}
        for where, name, said in _entries(self.path):
            key = image_key(name)
            if key in found:
                raise DataError(f"{self.path}, {where}: image {name!r} occurs twice; keep one of its predictions")
            if said is not None:
                found[key] = said if isinstance(said, str) else SEPARATOR.join(self._names(where, said))
        return found

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """As `Captions.setup`, and check that a file from elsewhere names classes of this data set.

        Raises:
            DataError: there is no such file yet, an image is missing from it, or a name is no class.
        """
        if self.model is not None and not self.path.is_file():
            raise DataError(f"{self.path}: nothing is predicted yet; run `python -m goca.caption` with the same options first")
        Captions.setup(self, dataset, image_ids)
        if self._in_own_words:
            return  # it may speak of more than it was asked for
        for key, names in self.captions.items():
            for name in filter(None, names.split(SEPARATOR)):
                if dataset.classes.class_named(name) is None:
                    known = ", ".join(dataset.classes.names[1:])
                    raise DataError(f"{self.path}: image {key} has {name!r}, which is no class of {dataset.name}: {known}")

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        """The predicted names in as few prompts as the token limit allows; none where nothing was found."""
        names = None if sample is None else self.caption_of(sample)
        if names is None:
            return Captions.__call__(self, sample, table, segments)
        if self._in_own_words:
            ids = [entity.class_id for entity in parse(tidy(names), table)]
        else:
            ids = [table.class_named(name) for name in names.split(SEPARATOR)]
        words = tuple(word_of(class_id, table) for class_id in dict.fromkeys(ids) if class_id is not None)
        return Vocabulary(words=words, background_token=self.background_token)(sample, table, segments) if words else ()

    # ------------------------------------------------------------------------------------------------------- details
    @property
    def _in_own_words(self) -> bool:
        return self.kind == "vlm" and self.model is not None

    def _names(self, where: str, said: Any) -> list[str]:
        """Names of one prediction: a list as it is, scores by the selection."""
        if isinstance(said, Mapping) and all(isinstance(score, (int, float)) for score in said.values()):
            return self._chosen(said)
        if isinstance(said, list) and all(isinstance(name, str) for name in said):
            return [name.strip().lower() for name in said]
        raise DataError(f"{self.path}, {where}: expected a list of class names, or a score for each name")

    def _chosen(self, scores: Mapping[str, float]) -> list[str]:
        """The names that are taken, highest score first."""
        ranked = sorted(scores, key=lambda name: -scores[name])
        passing = sum(scores[name] >= self.share * scores[ranked[0]] for name in ranked) if ranked else 0
        count = max(self.least, passing if self.most is None else min(self.most, passing))
        return [name.strip().lower() for name in ranked[:count]]

    @cached_property
    def _vlm(self) -> VLM:
        return VLM(
            path=self.path, model=str(self.model), instruction=self.instruction, max_words=self.max_words, dtype=self.dtype,
            revision=self.revision, device=self.device, max_new_tokens=self.max_new_tokens,
        )  # fmt: skip

    @cached_property
    def _classifier(self) -> Any:
        from transformers import AutoConfig, pipeline
        from transformers.models.auto import modeling_auto

        known = modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
        folder = model_folder(str(self.model), self.revision, "prompts.model")
        try:
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            if kind not in known:  # transformers would only log it
                raise ValueError(f"{kind} is none of {', '.join(sorted(known))}")
            return pipeline("zero-shot-image-classification", model=str(folder), device=self.device, dtype=self.dtype)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"prompts.model={self.model} is not a model for zero-shot-image-classification: {error}"
            ) from error


def word_of(class_id: int, table: ClassTable) -> str:
    """The first word of a class that stands for it before all others: some words name two classes."""
    synonyms = table.synonyms[class_id]
    return next((word for word in synonyms if table.id_of(word)[:1] == (class_id,)), synonyms[0])


def _entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Place in the file, image, and what is said of it: text, names or scores; None where the network gave no answer."""
    if path.suffix == ".jsonl":
        rows: Iterator[tuple[str, Any, Any]] = (
            (f"line {number}", row.get("image_id") if isinstance(row, dict) else None, row) for number, row in read_jsonl(path)
        )
    else:
        try:
            content = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected an object {{image: [names]}}, or JSONL with a record per image")
        rows = ((f"entry {name!r}", name, value) for name, value in content.items())
    for where, name, row in rows:
        if not isinstance(name, str):
            raise DataError(f'{path}, {where}: expected an "image_id" that is text')
        keyed = isinstance(row, dict) and any(key in row for key in ("scores", "classes", "caption"))
        yield where, name, next(row[key] for key in ("scores", "classes", "caption") if key in row) if keyed else row
