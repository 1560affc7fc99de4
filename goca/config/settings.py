"""What the keys of the root configurations may hold: those that belong to no section with a class of its own.

Sections such as `model` or `decision` check themselves when they are built; the keys beside them are checked here, by one model
per root configuration of `conf/`, before anything is read or loaded. A key that is added there is added here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Hydra reads `group=3` as a number, and a folder may have that name.
Name = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value), Field(min_length=1)]
Pixel = Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


class Section(BaseModel):
    """Keys of one section: of these types exactly, so that "maybe" is not a switch and 1.5 is not a seed."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Paths(Section):
    output: Name = "outputs"


class Attention(Section):
    max_bytes: PositiveInt = 2**28
    precision: Literal["auto", "float32", "model"] = "auto"


class Figures(Section):
    count: NonNegativeInt = 0
    gallery: NonNegativeInt = 0
    worst: NonNegativeInt = 0


class Progress(Section):
    enable_progress_bar: bool = True


class RunSection(Section):
    max_failed: NonNegativeInt | None = None


class Run(Section):
    seed: Seed
    split: Name | None
    limit: PositiveInt | None
    indices: list[NonNegativeInt] | None
    shard: Name | None
    batch_size: PositiveInt
    group: Name
    resume: bool
    run: RunSection
    paths: Paths
    attention: Attention
    save_predictions: bool
    figures: Figures
    trainer: Progress


def film_name(value: object) -> object:
    """`true` and `false` were what a film could be before it could be MP4."""
    return ("gif" if value else "none") if isinstance(value, (bool, type(None))) else value


def a_background(value: object) -> object:
    """As `Segmentor.segment` takes it."""
    if value is None or (isinstance(value, (bool, float, int)) and math.isfinite(value)):
        return value
    raise ValueError("should be a finite number such as 0.7, true for the usual one, or null for none")


Background = Annotated[Any, BeforeValidator(a_background)]


class Observe(Section):
    image: Name | None
    prompt: Name
    words: list[Name]
    reads: Name | None
    negative_prompt: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
    steps: PositiveInt
    guidance_scale: FiniteFloat | None
    size: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None
    film: Annotated[Literal["gif", "mp4", "none"], BeforeValidator(film_name)]
    group: Name
    pixels: list[Pixel]
    heads: list[Name]
    background: Background
    save: Literal["figures", "tensors"]
    seed: Seed
    output: Name
    paths: Paths
    attention: Attention


class App(Section):
    models: Annotated[list[Name], Field(min_length=1)]
    overrides: list[Name]
    host: Name
    port: Annotated[int, Field(ge=0, le=65535)]


class Caption(Section):
    inspect: NonNegativeInt
    limit: PositiveInt | None
    split: Name | None
    text_axis: Annotated[list[dict[str, Any]], Field(min_length=1)]
    paths: Paths


class Compare(Section):
    runs: list[Name]
    title: Name
    output: Name
    markdown: Name | None
    paths: Paths


class Labels(Section):
    classes: Annotated[list[Name], Field(min_length=1)] | None
    background: Background


class Generate(Section):
    limit: PositiveInt | None
    negative_prompt: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]
    steps: PositiveInt
    guidance_every: PositiveInt
    size: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None
    scheduler: Name
    scheduler_options: dict[str, Any]
    pipeline_options: dict[str, Any]
    batch_size: PositiveInt
    seed: Seed
    seeds: Literal["same", "by_id"]
    shard: Name | None
    save_maps: list[NonNegativeInt]
    save_labels: bool
    labels: Labels
    progress: bool
    group: Name
    attention: Attention
    figures: Figures
    paths: Paths


class EvaluateGeneration(Section):
    reference: Name | None
    clip: Name | None
    resize: Literal["crop", "squash"]
    min_images: PositiveInt | None
    bootstrap: NonNegativeInt
    save_statistics: Name | None
    batch_size: PositiveInt
    chunk: PositiveInt
    cache: Name
    progress: bool
    figures: Figures
    paths: Paths


class Train(Section):
    look: Literal["plain", "camouflage"]
    start: Name | None
    save_every: PositiveInt
    size: PositiveInt
    scenes: PositiveInt
    held_out: PositiveInt
    seed: Seed
    accelerator: Name
    devices: PositiveInt
    threads: PositiveInt
    precision: Name
    compile: bool
    vae: Name | None
    work: Name
    latents: Name
    output: Name
    wandb: bool
    paths: Paths


class TrainClassifier(Section):
    seed: Seed
    threads: PositiveInt
    scenes: PositiveInt
    test_scenes: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[FiniteFloat, Field(gt=0)]
    output: Name
    paths: Paths


class TrainDecoder(Section):
    pipeline: Name
    output: Name
    seed: Seed
    threads: PositiveInt
    size: PositiveInt
    scenes: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[FiniteFloat, Field(gt=0)]
    paths: Paths


class Fetch(Section):
    dry_run: bool


class Dashboard(Section):
    offline: bool


class Verify(Section):
    weights: Literal["real", "random"]
    image: Name | None
    words: Annotated[list[Name], Field(min_length=1)]
    output: Name
    table: Name | None
    records: Name
    paths: Paths


SETTINGS: Mapping[str, type[Section]] = {
    "config": Run,
    "observe": Observe,
    "app": App,
    "caption": Caption,
    "compare": Compare,
    "generate": Generate,
    "evaluate_generation": EvaluateGeneration,
    "layers": Section,
    "fetch": Fetch,
    "train": Train,
    "train_classifier": TrainClassifier,
    "train_decoder": TrainDecoder,
    "dashboard": Dashboard,
    "verify": Verify,
}


def keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys of a section.

    >>> list(keys(TrainDecoder))[:2], [key for key in keys(Run) if "." in key][:1]
    (['pipeline', 'output'], ['run.max_failed'])
    """
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def problems(values: Mapping[str, Any], config_name: str) -> list[str]:
    """What is wrong with the given keys (dotted name -> plain value), one line each.

    >>> problems({"limit": 0, "resume": "maybe"}, "config")
    ['limit: should be greater than 0 (got 0)', "resume: should be true or false (got 'maybe')"]
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    try:
        SETTINGS[config_name].model_validate(nested)
    except ValidationError as error:
        return [line for issue in error.errors() if (line := _line(issue)) is not None]
    return []


_WORDING = {
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
    "list_type": "should be a list, such as [a,b]",
    "dict_type": "should be a section of keys, such as {key: value}",
    "string_type": "should be text",
    "string_too_short": "should not be empty",
    "model_type": "should be a section of keys",
}


def _line(issue: Any) -> str | None:
    """One issue in words; None for a key that was not given: only those that were are judged."""
    if issue["type"] == "missing":
        return None
    name = ".".join(str(part) for part in issue["loc"])
    wording = _WORDING.get(issue["type"], issue["msg"].removeprefix("Input ").removeprefix("Value error, "))
    return f"{name}: {wording} (got {issue['input']!r})"
