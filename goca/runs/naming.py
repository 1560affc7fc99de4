"""What a run's method is called in tables: a preset, and how the composed values differ from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from goca import config
from goca.config.identity import class_name
from goca.paths import CONF

STAGES = ("aggregation", "calibration", "refinement", "decision", "views", "passes", "sizing")
_FIRST = ("goca", "vanilla", "manual")  # named in preference to others that are as near
_MODEL = ("size", "timestep", "heads", "affinity_order", "feature_size", "layers")  # settings of a model that are the method's
_PROMPTING = ("emphasis", "each", "reads")  # settings of prompts that are the method's
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_ASKED_FOR = ("heads", "affinity_order")  # of these, what the method refers to
Values = Mapping[str, Any]  # dotted key -> value


def method_name(cfg: DictConfig) -> str:
    """The method of a composed configuration in one phrase: the nearest preset, then what differs from it.

    The name follows from the values alone: how they were chosen, by preset, by option or one by one, makes no difference.

    >>> from goca.config import compose
    >>> method_name(compose()), method_name(compose(["preset=goca", "aggregation.heads=dot_product"]))
    ('goca', 'goca')
    >>> method_name(compose(["calibration=raw", "views=shifted", "refinement.steps.0.order=3", "model.timestep=50"]))
    'goca, calibration=raw, refinement.steps.0.order=3, views=shifted, model.timestep=50'
    """
    given = {stage: _flat(OmegaConf.to_container(cfg[stage], resolve=True)) for stage in STAGES if stage in cfg}
    presets = {name: {stage: _resolved(cfg, raw) for stage, raw in _preset(name).items()} for name in _presets()}

    def distance(name: str) -> tuple[int, int, int]:
        differing = [stage for stage in given if given[stage] != presets[name][stage]]
        changed = sum(len(_changed(presets[name][stage], given[stage])) for stage in differing)
        return len(differing), changed, _wording(cfg, name)

    nearest = min(presets, key=distance)
    parts = [nearest]
    for stage, values in given.items():
        if values != presets[nearest][stage]:
            parts += _stage_name(cfg, stage, values, presets[nearest][stage])
    return ", ".join([*parts, *_prompting_name(cfg, nearest), *_model_name(cfg)])


def _prompting_name(cfg: DictConfig, preset: str) -> list[str]:
    """What a preset does with words beyond wording them, where a run does otherwise; the wording is no part of the method."""
    own = _resolved(cfg, _read_prompts(preset, config.folders()) or {})
    used = _flat(OmegaConf.to_container(cfg.prompts, resolve=True)) if "prompts" in cfg else own

    def of(values: Values) -> dict[str, Any]:
        kept = {key: value for key, value in values.items() if key.split(".")[0] in _PROMPTING and "_target_" not in key}
        return {key: value for key, value in kept.items() if value not in (None, False, "prompt")}

    return [f"prompts.{key}={_short(value)}" for key, value in _changed(of(own), of(used)).items()]


def _wording(cfg: DictConfig, preset: str) -> int:
    """How far a preset's prompts are from those used: 0 where it words prompts itself and so are they, 1 where it does not word
    them, 2 where it does so otherwise. Which names are given is said about the image, and is no part of the method."""
    own = _read_prompts(preset, config.folders())
    if own is None:
        return 1
    used = _flat(OmegaConf.to_container(cfg.prompts, resolve=True)) if "prompts" in cfg else {}
    return 0 if {**used, "names": None} == {**_resolved(cfg, own), "names": None} else 2


@cache
def _read_prompts(name: str, folders: tuple[Path, ...]) -> Mapping[str, Any] | None:
    """The section `prompts` of a preset, references unresolved; None where it leaves prompts to others."""
    preset: Any = _loaded(_find(folders, "preset", name))
    chosen = [entry["override /prompts"] for entry in preset.get("defaults", []) if "override /prompts" in entry]
    if not chosen:
        return None
    merged = OmegaConf.merge(option_of("prompts", chosen[0]), preset.get("prompts") or {})
    return dict(OmegaConf.to_container(merged, resolve=False))  # type: ignore[arg-type]


def _stage_name(cfg: DictConfig, stage: str, values: Values, usual: Values) -> list[str]:
    """`stage=option` where the values are an option's, else also the keys that differ from the nearest one."""
    options = {name: _resolved(cfg, option_of(stage, name)) for name in config.options(stage)}
    nearest = min(options, key=lambda name: (len(_changed(options[name], values)), options[name] != usual))
    chosen = [] if options[nearest] == usual else [f"{stage}={nearest}"]
    return [*chosen, *(f"{stage}.{key}={_short(value)}" for key, value in _changed(options[nearest], values).items())]


def _model_name(cfg: DictConfig) -> list[str]:
    """Settings of the model that belong to the method and are not those of its own file."""
    name = str(cfg.model.get("name"))
    if name not in config.options("model"):
        return []
    usual, given = option_of("model", name), OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(given, dict)
    asked = str([OmegaConf.to_container(cfg[stage], resolve=False) for stage in STAGES if stage in cfg])
    read = [key for key in _MODEL if key not in _ASKED_FOR or f"model.{key}}}" in asked]
    kept = [_flat({key: section[key] for key in read if key in section}) for section in (usual, given)]
    return [f"model.{key}={_short(value)}" for key, value in _changed(*kept).items()]


def _changed(before: Values, now: Values) -> dict[str, Any]:
    """Keys whose values differ, with the new ones."""
    return {key: now.get(key) for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)}


def _presets() -> tuple[str, ...]:
    names = [name for name in config.options("preset") if name != "none"]
    return tuple(sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)))


def _preset(name: str) -> Mapping[str, Any]:
    """Stage -> section of a preset, references unresolved; read by hand, as composing it takes a second."""
    return _read_preset(name, config.folders())


@cache
def _read_preset(name: str, folders: tuple[Path, ...]) -> Mapping[str, Any]:
    chosen: dict[str, str] = {}
    for entry in _defaults(CONF / "config.yaml"):
        if isinstance(entry, Mapping | DictConfig):
            chosen |= {str(group): str(option) for group, option in entry.items()}
    preset: Any = _loaded(_find(folders, "preset", name)).copy()
    for entry in preset.pop("defaults", []):
        if isinstance(entry, Mapping | DictConfig):
            chosen |= {str(group).removeprefix("override /"): str(option) for group, option in entry.items()}
    sections = {}
    for stage in STAGES:
        option, own = option_of(stage, chosen[stage]), preset.get(stage)
        # Most stages of a preset are an option as it is: merging that with nothing would take most of the time.
        sections[stage] = OmegaConf.to_container(OmegaConf.merge(option, own), resolve=False) if own else option
    return sections


def _defaults(path: Path) -> list[Any]:
    return list(_loaded(path)["defaults"])


@cache
def _loaded(path: Path) -> DictConfig:
    """A file as it stands; parsing takes most of the time that naming a run takes. Not to be changed."""
    loaded: Any = OmegaConf.load(path)
    return cast(DictConfig, loaded)


def option_of(group: str, name: str) -> dict[str, Any]:
    """One option of a group with those it inherits from, references unresolved."""
    return _read_option(group, name, config.folders())


@cache
def _read_option(group: str, name: str, folders: tuple[Path, ...]) -> dict[str, Any]:
    return dict(OmegaConf.to_container(_read(group, name, folders), resolve=False))  # type: ignore[arg-type]


def _read(group: str, name: str, folders: tuple[Path, ...]) -> Any:
    own: Any = _loaded(_find(folders, group, name)).copy()
    parents = [str(entry).partition("@")[0] for entry in own.pop("defaults", []) if isinstance(entry, str)]
    inherited = [_read(group, parent, folders) for parent in parents if parent != "_self_"]
    return OmegaConf.merge(*inherited, own) if inherited else own


def _find(folders: tuple[Path, ...], group: str, name: str) -> Path:
    """The file of an option in the first folder that has it, as Hydra looks for it."""
    return next(file for folder in folders if (file := folder / group / f"{name}.yaml").is_file())


def _resolved(cfg: DictConfig, raw: Any) -> Values:
    """A section as it would be in this configuration: `${model.heads}` becomes the value there."""

    def value(text: Any) -> Any:
        if not isinstance(text, str) or "${" not in text:
            return text
        reference = _REFERENCE.fullmatch(text)
        if reference:
            return config.plain(OmegaConf.select(cfg, reference[1]))
        node = OmegaConf.create({"value": text})  # a resolver around a reference
        node._set_parent(cfg)
        return config.plain(node["value"])

    return {key: value(text) for key, text in _flat(raw).items()}


def _flat(section: Any) -> dict[str, Any]:
    return dict(_items(section, ""))


def _items(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Values by dotted key, also through lists of sections, as on the command line; classes by their name alone."""
    pairs = section.items() if isinstance(section, Mapping) else enumerate(section)
    for key, value in pairs:
        if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(part, Mapping) for part in value)):
            yield from _items(value, f"{prefix}{key}.")
        elif key != "_convert_":
            yield f"{prefix}{key}", class_name(value) if key == "_target_" else value


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "").replace("'", "")
