"""What a run's method is called in tables: short where it is one of the presets, exact where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_PARTS = ("aggregation", "calibration", "refinement", "decision")
_USUAL = {"refinement": "affinity", "decision": "offset"}
# Presets that are these two choices, and the usual ones, alone.
_PRESETS = {("vanilla", "vanilla"): "vanilla", ("manual", "vanilla"): "manual", ("goca", "goca"): "goca"}
_SINGLE_VALUE = re.compile(rf"\+*((?:{'|'.join(_PARTS)})\.|model\.(?:timestep|affinity_order|heads|layers))")


def method_name(choices: Mapping[str, str | None], overrides: Iterable[str]) -> str:
    """The method in one phrase: the preset or the choices that make it up, then what was changed of them.

    Args:
        choices: configuration group -> option.
        overrides: of the command line, or of one job of a sweep.

    >>> method_name({"aggregation": "goca", "calibration": "goca", "refinement": "affinity", "decision": "offset"}, [])
    'goca'
    >>> method_name({"aggregation": "goca", "calibration": "raw", "refinement": "none", "decision": "offset"}, [])
    'aggregation=goca, calibration=raw, refinement=none'
    >>> method_name({"preset": "vanilla"}, ["preset=vanilla", "calibration=raw", "model.timestep=50", "seed=1"])
    'vanilla, calibration=raw, model.timestep=50'
    """
    given = list(overrides)
    preset = choices.get("preset")
    if preset not in (None, "none"):
        name = [str(preset), *(override for override in given if override.partition("=")[0] in _PARTS)]
    else:
        known = _PRESETS.get((str(choices["aggregation"]), str(choices["calibration"])))
        base = [known] if known else [f"{part}={choices[part]}" for part in ("aggregation", "calibration")]
        name = [*base, *(f"{part}={choices[part]}" for part, usual in _USUAL.items() if choices[part] != usual)]
    return ", ".join([*name, *(override.lstrip("+") for override in given if _SINGLE_VALUE.match(override))])
