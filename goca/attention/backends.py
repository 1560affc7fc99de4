"""Attention backends of diffusers: those that the tap sees, and the native one in place of the others for one forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import nn

# These call torch's scaled_dot_product_attention, whichever kernel it then runs; the others call kernels of their own.
VISIBLE = frozenset({"native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"})


def hidden_backend(modules: Iterable[nn.Module]) -> str | None:
    """The first backend among the modules' that the tap cannot see; None where it sees all of them."""
    active, _ = _AttentionBackendRegistry.get_active_backend()
    for module in modules:
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            name = AttentionBackendName(processor._attention_backend or active).value
            if name not in VISIBLE:
                return str(name)
    return None


@contextmanager
def visible_backends(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, the given attention modules run a backend that the tap sees; afterwards each has its own again.

    A backend is chosen by `set_attention_backend`, by diffusers' context manager, or by DIFFUSERS_ATTN_BACKEND. Modules that
    are not observed keep a fast one.
    """
    active, _ = _AttentionBackendRegistry.get_active_backend()
    chosen: dict[int, tuple[Any, dict[str, Any]]] = {}
    for module in modules:
        processor: Any = getattr(module, "processor", None)
        if not hasattr(processor, "_attention_backend") or id(processor) in chosen:
            continue
        if AttentionBackendName(processor._attention_backend or active).value not in VISIBLE:
            own = {key: value for key, value in vars(processor).items() if key == "_attention_backend"}
            chosen[id(processor)] = (processor, own)
            processor._attention_backend = AttentionBackendName.NATIVE
    try:
        yield
    finally:
        for processor, own in chosen.values():
            del processor._attention_backend
            vars(processor).update(own)
