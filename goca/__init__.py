"""GoCA: semantic segmentation from the attention of a text-to-image diffusion model, without training.

`goca.Segmentor` segments images from Python, `goca.observe` looks at the attention of one image, `goca.watch` at that of a
pipeline while it draws. They are imported when they are first used, so that `import goca` takes no time.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Segmentor", "__version__", "observe", "watch"]


def __getattr__(name: str) -> Any:
    if name == "Segmentor":
        return import_module("goca.segmentor").Segmentor
    if name == "observe":  # the module; it can be called like the function in it
        return import_module("goca.observe")
    if name == "watch":
        return import_module("goca.watching").watch
    raise AttributeError(f"module 'goca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
