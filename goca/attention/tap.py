"""The tap: observe every attention call of a denoiser without touching the model.

Under diffusers' native attention backend denoisers compute attention by `torch.nn.functional.scaled_dot_product_attention`. A
torch function mode sees the operands of that call after norms and rotary embeddings and before the output projection; module
hooks say which layer is running. The same kernel runs as would without the tap, so the model's output stays bit-identical.
Observed modules under a backend with kernels of its own run the native one meanwhile. Linear attention is not computed by that
call; its operands are taken from the layers around it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from goca.attention.backends import visible_backends
from goca.attention.kernels import attention_with_lse
from goca.attention.linear import is_linear, watch


@dataclass(frozen=True)
class RawCall:
    """One attention call as the model made it: query (B, H, S, d), key and value (B, H, n, d), output (B, H, S, d)."""

    layer: str
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    mask: Tensor | None
    scale: float
    lse: Tensor | None = None  # (B, H, S) log-sum-exp of the logits, where the kernel gave it
    turn: int = 0  # how many calls the module has made before, in this run of it: some make one per segment of the sequence
    linear: bool = False  # probabilities are query . key over their row sum, not a softmax; both are non-negative
    projected: Tensor | None = None  # (B, S, D), what the layer's output projection made of the output, bias included

    def rows(self, rows: slice) -> RawCall:
        """The call of some rows of the batch."""
        mask = self.mask
        if mask is not None and mask.ndim == 4 and len(mask) > 1:
            mask = mask[rows]
        parts = {name: getattr(self, name)[rows] for name in ("query", "key", "value", "output")}
        parts |= {name: found[rows] for name in ("lse", "projected") if (found := getattr(self, name)) is not None}
        return replace(self, **parts, mask=mask)


@dataclass
class _Running:
    """An observed module that is running."""

    layer: str
    calls: int = 0  # how many it has made
    waiting: RawCall | None = None  # for its output projection


class AttentionTap(TorchFunctionMode):
    """Context manager that reports the attention calls made inside the given modules.

    Args:
        modules: attention modules by layer name, as in `model.named_modules()`. Calls elsewhere pass unseen.
        observe: called with each `RawCall` right after it ran; torch calls it makes are not observed themselves.
        scales: factors on the attention output of layers, one for all heads or (H,) one for each. With any, the model's output
            changes.
        projections: weights of output projections by layer name. Calls of these layers are reported with what the projection
            made of them, once it ran; where it does not run by `torch.nn.functional.linear`, at the end and without.

    >>> import torch
    >>> from diffusers.models.attention_processor import Attention
    >>> layer, seen = Attention(8, heads=2, dim_head=4), []
    >>> with AttentionTap({"layer": layer}, seen.append):
    ...     _ = layer(torch.zeros(1, 5, 8))
    >>> seen[0].layer, tuple(seen[0].query.shape)
    ('layer', (1, 2, 5, 4))
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        observe: Callable[[RawCall], None],
        scales: Mapping[str, Tensor] | None = None,
        projections: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._modules, self._observe, self._scales = modules, observe, scales or {}
        self._projections = projections or {}
        self._running: list[_Running] = []
        self._handles: list[Any] = []

    def __enter__(self) -> AttentionTap:
        self._backends = visible_backends(self._modules.values())
        self._backends.__enter__()
        for name, module in self._modules.items():
            if is_linear(module):
                self._handles += watch(module, self._linear(name))
                continue
            self._handles.append(module.register_forward_pre_hook(self._started(name)))
            self._handles.append(module.register_forward_hook(self._ended, always_call=True))
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._backends.__exit__(None, None, None)

    def _linear(self, name: str) -> Callable[..., None]:
        def found(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
            self._observe(RawCall(name, query, key, value, output, mask=None, scale=1.0, linear=True))

        return found

    def _started(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if not self._running:
                super(AttentionTap, self).__enter__()  # only within observed modules: other calls are not slowed down
                _open().append(self)
            self._running.append(_Running(name))

        return hook

    def _ended(self, *_: Any) -> None:
        ended = self._running.pop()
        if not self._running:
            super().__exit__(None, None, None)
            _open().remove(self)
        if ended.waiting is not None:
            self._observe(ended.waiting)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taps = _open()
        if func is linear and self is taps[-1]:
            projected = func(*args, **(kwargs or {}))
            for tap in reversed(taps):
                tap._project(projected, *args, **(kwargs or {}))
            return projected
        if func is not scaled_dot_product_attention or self is not taps[-1]:
            return func(*args, **(kwargs or {}))
        output, lse = attention_with_lse(*args, **(kwargs or {}))
        for tap in reversed(taps):  # the innermost computes, and tells those around it
            output = tap._take(output, lse, args, kwargs or {})
        return output

    def _take(self, output: Tensor, lse: Tensor | None, args: Any, kwargs: Any) -> Tensor:
        running = self._running[-1]
        name = running.layer
        if name in self._scales:
            output = output * self._scales[name].to(output).reshape(1, -1, 1, 1)
        if running.waiting is not None:  # a second call before any projection: the first one has none of its own
            self._observe(running.waiting)
            running.waiting = None
        call = _raw_call(name, running.calls, output, lse, *args, **kwargs)
        running.calls += 1
        if name in self._projections:
            running.waiting = call
        else:
            self._observe(call)
        return output

    def _project(self, projected: Tensor, operand: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        """A linear layer ran: report the call that waits for it, if that layer was its output projection."""
        running = self._running[-1]
        if running.waiting is not None and weight is self._projections[running.layer]:
            call, running.waiting = running.waiting, None
            self._observe(replace(call, projected=projected))


_threads = threading.local()


def _open() -> list[AttentionTap]:
    """The taps that watch a module which is running in this thread, from the outermost in."""
    if not hasattr(_threads, "taps"):
        _threads.taps = []
    taps: list[AttentionTap] = _threads.taps
    return taps


def _raw_call(
    layer: str,
    turn: int,
    output: Tensor,
    lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> RawCall:
    """Name the operands as `scaled_dot_product_attention` does, with its defaults filled in."""
    if is_causal or dropout_p > 0:
        raise ValueError(f"{layer}: causal or dropped-out attention has no token map; observe denoisers in eval mode")
    if enable_gqa and key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return RawCall(layer, query, key, value, output, attn_mask, scale, lse, turn)
