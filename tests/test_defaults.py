"""A default stands in a class, for Python, and in a configuration, for the command line: the two say the same."""

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from goca.backbones.loading.pretrained import Pretrained
from goca.data.base import SegmentationDataset
from goca.method.calibration import Calibration
from goca.method.decision import Decision
from goca.paths import CONF
from goca.prompts.sources import Captions

# What every option of a group shares, and the class it is given to.
SHARED = {
    "calibration/base/shared.yaml": Calibration,
    "dataset/base/shared.yaml": SegmentationDataset,
    "decision/base/shared.yaml": Decision,
    "model/base/loading.yaml": Pretrained,
    "prompts/base/shared.yaml": Captions,
}
# Groups whose options are different values of the same classes, as a preset is.
CHOICES = ("dataset", "experiment", "model", "passes", "preset", "prompts", "views")
# A value of its own is what these options are for: those of a paper, and segments that have names.
DELIBERATE = {
    ("aggregation/concepts.yaml", "last"),
    ("decision/scored.yaml", "thresholds"),
    *(("refinement/cut_features.yaml", key) for key in ("names", "size")),
    *(("refinement/entropy_affinity.yaml", key) for key in ("heads", "places")),
    ("refinement/head_chain.yaml", "places"),
    ("refinement/merged_attention.yaml", "names"),
    *(("refinement/rounds.yaml", key) for key in ("factors", "part")),
}


def _sections(node: Any) -> Iterator[dict[str, Any]]:
    """Every section that names a class."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from _sections(value)
    elif isinstance(node, list):
        for value in node:
            yield from _sections(value)


def _differences(section: dict[str, Any], kind: type) -> dict[str, tuple[Any, Any]]:
    """Keys whose value is not the default of their class: (in the configuration, in the class)."""
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if isinstance(field.default, (str, int, float, tuple, type(None)))
    }
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    fixed = {key: value for key, value in section.items() if not (isinstance(value, str) and ("${" in value or value == "???"))}
    return {key: (fixed[key], plain[key]) for key in fixed if key in plain and fixed[key] != plain[key]}


def _plain(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / name), resolve=False)


@pytest.mark.parametrize("name", SHARED)
def test_what_a_group_shares_is_what_its_class_does_by_itself(name: str) -> None:
    section = _plain(name)
    assert len(set(section) & {field.name for field in dataclasses.fields(SHARED[name])}) >= 4  # type: ignore[arg-type]
    assert _differences(section, SHARED[name]) == {}


def test_an_option_that_stands_for_a_class_has_its_defaults() -> None:
    found, compared = {}, 0
    for path in sorted(CONF.rglob("*.yaml")):
        name = path.relative_to(CONF).as_posix()
        if name.partition("/")[0] in CHOICES or name == "compare.yaml":
            continue
        for section in _sections(_plain(name)):
            module, _, attribute = str(section["_target_"]).rpartition(".")
            kind = getattr(importlib.import_module(module), attribute, None)
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                compared += 1
                found |= {(name, key): values for key, values in _differences(section, kind).items()}
    assert compared > 20
    assert {key: values for key, values in found.items() if key not in DELIBERATE} == {}
