"""Which settings make two configurations the same run: the ones that numbers depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Where things lie, what is shown and how the work is spread. `data.dataset` repeats `dataset`; a checkpoint is compared by its
# hash; the batch size moves results by less than docs/reliability.md says.
FREE = (
    "run", "resume", "logger", "trainer", "figures", "paths", "experiment", "save_predictions", "attention", "hydra",
    "data.dataset", "data.batch_size", "data.num_workers", "data.keep_unreadable", "dataset.root",
    "model.checkpoint", "model.device", "model.placement", "model.prompt_cache", "model.text_encoders",
    "model.allow_pickle",
)  # fmt: skip
SHARD = ("data.shard",)


def difference(before: Mapping[str, Any], now: Mapping[str, Any], free: tuple[str, ...] = FREE) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and matter: key -> (before, now).

    >>> difference({"seed": 0, "limit": 3, "logger": {"mode": "auto"}}, {"seed": 1, "limit": 3, "logger": {"mode": "off"}})
    {'seed': (0, 1)}
    """
    old, new = decisive(before, free), decisive(now, free)
    return {key: (old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)}


def decisive(config: Mapping[str, Any], free: tuple[str, ...] = FREE) -> dict[str, Any]:
    """Settings by dotted name, without those that are free.

    >>> decisive({"seed": 0, "logger": {"mode": "auto"}})
    {'seed': 0}
    """
    return {key: value for key, value in _flat(config) if not any(key == name or key.startswith(f"{name}.") for name in free)}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, class_name(value) if key == "_target_" else list(value) if isinstance(value, tuple) else value


def class_name(target: Any) -> Any:
    """A class is known by its name alone: a run begun before the class moved to another module can be continued.

    >>> class_name("goca.method.calibration.Calibration")
    'Calibration'
    """
    return target.rpartition(".")[2] if isinstance(target, str) else target
