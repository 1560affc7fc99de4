"""Which settings make two configurations the same run: the ones that numbers depend on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Where things lie, what is shown and how the work is spread. `data` repeats keys of the root and the section `dataset`; data
# sets and checkpoints are compared by what they hold (`goca.runs.inputs`); the batch size moves results by less than
# docs/reliability.md says.
FREE = (
    "run", "output", "resume", "logger", "figures", "trainer._target_", "trainer.enable_progress_bar", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "paths", "group", "experiment", "save_predictions", "hydra",
    "attention.max_bytes", "shard", "batch_size", "data.dataset", "data.batch_size", "data.num_workers",
    "data.keep_unreadable", "dataset.root", "model.checkpoint", "model.device", "model.placement", "model.prompt_cache",
    "model.text_encoders", "model.allow_pickle", "model.layers.peers",
)  # fmt: skip
# The same where no checkpoint has been read, so that it is known by its name alone.
FREE_UNREAD = tuple(name for name in FREE if name != "model.checkpoint")
SHARD = ("data.shard",)
# Settings that were added later, and what runs begun before did: such a run and one with this value are the same. A new
# setting whose default is not null belongs here; positions in lists are left out of the names.
ADDED: Mapping[str, Any] = {
    "aggregation.leave_out": [],
    "aggregation.rows": "auto",
    "attention.precision": "auto",
    "dataset.annotation": "auto",
    "dataset.image_list": "all",
    "dataset.look": "plain",
    "dataset.merge": True,
    "dataset.names": "dataset",
    "dataset.orientation": "auto",
    "dataset.palette": "colours",
    "calibration.token_choice": "all",
    "calibration.token_steps": [],
    "decision.eight_bits": False,
    "decision.resize": "bilinear",
    "decision.stretch": False,
    "decision.ties": "background",
    "look": "plain",
    "passes._target_": "Passes",
    "passes.clean": False,
    "prompts.across": "each",
    "prompts.background_words": False,
    "prompts.names": "present",
    "sizing._target_": "Square",
    "views._target_": "Views",
    "views.views": 1,
}

_EXACT_SIZE = 512  # pixels, where references are at a sixteenth of the picture; see goca.method.aggregation.layers.EXACT_UP_TO
_EXACT_SCENES = 128  # of bundled backbones, whose references are at a quarter


def difference(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...] = FREE) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and matter: key -> (before, now).

    >>> difference({"seed": 0, "limit": 3, "logger": {"mode": "auto"}}, {"seed": 1, "limit": 3, "logger": {"mode": "off"}})
    {'seed': (0, 1)}
    >>> difference({"dataset": {}}, {"dataset": {"palette": "colours"}}), difference({}, {"dataset": {"palette": "index"}})
    ({}, {'dataset.palette': ('colours', 'index')})
    """
    old, new = decisive(before, free), decisive(now, free)
    return {
        key: (old.get(key, _added(key)), new.get(key, _added(key)))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    }


def decisive(config: Mapping[str, Any], free: tuple[str, ...] = FREE) -> dict[str, Any]:
    """Settings by dotted name, without those that are free, those that are null, and those that do what was done before them.

    >>> decisive({"seed": 0, "logger": {"mode": "auto"}, "limit": None, "dataset": {"orientation": "auto"}})
    {'seed': 0}
    """
    flat = dict(_flat(config))
    # Null stood for all rows. Of small pictures `auto`, the default since, takes all of them as well.
    if flat.get("aggregation.rows", "auto") is None and not _takes_all_rows(flat):
        flat["aggregation.rows"] = "all"
    elif flat.get("aggregation.rows") == "all" and _takes_all_rows(flat):
        flat["aggregation.rows"] = "auto"
    if flat.get("protocol.name") != "ovss":  # the only one that reads the data set's thresholds
        flat = {key: value for key, value in flat.items() if not key.startswith("dataset.threshold.")}
    return {
        key: value
        for key, value in flat.items()
        if not is_free(key, free) and value is not None and not (value == _added(key) and type(value) is type(_added(key)))
    }


def _takes_all_rows(flat: Mapping[str, Any]) -> bool:
    """Whether `aggregation.rows=auto` surely takes every row of the reference."""
    largest = _EXACT_SCENES if str(flat.get("model.name")).startswith("scenes") else _EXACT_SIZE
    return flat.get("model.size", 0) <= largest and flat.get("sizing._target_", "Square") == "Square"


def is_free(key: str, free: tuple[str, ...] = FREE) -> bool:
    """Whether no number depends on the setting of that dotted name.

    >>> is_free("logger.mode"), is_free("dataset.name")
    (True, False)
    """
    return any(key == name or key.startswith(f"{name}.") for name in free)


def group_of(config: Mapping[str, Any]) -> str:
    """The group of runs that a run belongs to; the setting was called `experiment` once."""
    return str(config.get("group", config.get("experiment", "default")))


def _added(key: str) -> Any:
    return ADDED.get(re.sub(r"\.\d+(?=\.|$)", "", key))


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted name. A list of sections, such as the steps of a refinement, gives its length and `name.0.key`..."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            yield name, len(value)
            for number, item in enumerate(value):
                yield from _flat(item, f"{name}.{number}.")
        else:
            yield name, class_name(value) if key == "_target_" else list(value) if isinstance(value, tuple) else value


def class_name(target: Any) -> Any:
    """A class is known by its name alone: a run begun before the class moved to another module can be continued.

    >>> class_name("goca.method.calibration.Calibration")
    'Calibration'
    """
    return target.rpartition(".")[2] if isinstance(target, str) else target
