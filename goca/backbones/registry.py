"""Which adapter takes which diffusers pipeline: those of this package, of installed packages, and of modules of one's own.

An adapter is a `Backbone` that names its pipelines and is decorated:

    @backbone
    @dataclass(config=ConfigDict(extra="forbid"))
    class MyBackbone(JointAttention):
        pipelines: ClassVar[tuple[str, ...]] = ("MyPipeline",)

A package offers one to `model=auto` by an entry point of the group `goca.backbones`, whose value is `module:Class`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TypeVar

import goca.backbones
from goca.errors import ConfigError, ModelError
from goca.registry import dotted_path, load

GROUP = "goca.backbones"
ADAPTERS: dict[str, type] = {}  # pipeline class of diffusers -> adapter

# Pipelines that no adapter could make maps of words for, and why.
REFUSED = {
    "GlmImagePipeline": "its denoiser is given the letters of quoted text alone; meaning enters as tokens of an image",
    "BriaFibo2Pipeline": "its text is compressed into tokens that stand for no words, before the denoiser",
}

C = TypeVar("C", bound=type)


def backbone(adapter: C) -> C:
    """Make an adapter known to `model=auto` for its `pipelines`.

    Raises:
        ConfigError: another adapter takes one of them.
    """
    pipelines: tuple[str, ...] = adapter.pipelines  # type: ignore[attr-defined]
    for pipeline in pipelines:
        known = ADAPTERS.setdefault(pipeline, adapter)
        if dotted_path(known) != dotted_path(adapter):
            raise ConfigError(
                f"two adapters take {pipeline}: {dotted_path(known)} and {dotted_path(adapter)}; "
                "leave it out of the `pipelines` of yours and name yours by `_target_` in a model config"
            )
        ADAPTERS[pipeline] = adapter
    return adapter


def find_adapter(pipeline: str, targets: tuple[str, ...] = ()) -> type:
    """The adapter that takes a pipeline: one that is registered, else an installed package's, else one of `targets`.

    Args:
        pipeline: class name of a diffusers pipeline.
        targets: dotted paths of further classes that may take it, such as those that a user's model configs name.

    Raises:
        ModelError: none takes it. ConfigError: a class that is named cannot be imported.
    """
    if pipeline in REFUSED:
        raise ModelError(f"{pipeline}, which cannot be observed: {REFUSED[pipeline]}")
    _import_own()
    if pipeline in ADAPTERS:
        return ADAPTERS[pipeline]
    installed = [entry.value.replace(":", ".") for entry in entry_points(group=GROUP)]
    for path in (*installed, *targets):
        adapter = load(path)
        if pipeline in getattr(adapter, "pipelines", ()):
            return adapter
    raise ModelError(
        f"{pipeline}, which no adapter takes; those there are take {', '.join(ADAPTERS)}. docs/extending.md says how to add one"
    )


@cache
def _import_own() -> None:
    """Import every module beside this one, so that its adapters are registered."""
    for module in iter_modules(goca.backbones.__path__):
        import_module(f"{goca.backbones.__name__}.{module.name}")
