"""Dense features of a layer: one vector per image token."""

from __future__ import annotations

from torch import Tensor

from goca.attention.call import AttentionCall
from goca.errors import ModelError


def dense_feature(call: AttentionCall, kind: str) -> Tensor:
    """Image queries or attention output, all heads side by side (B, H * d, h, w), or the output after W^O (B, D, h, w).

    Raises:
        ModelError: `projected`, of a layer without an output projection of its own.
    """
    if kind == "projected":
        return _projected(call)
    tensor = call.query if kind == "query" else call.output
    assert tensor is not None
    return tensor.transpose(2, 3).flatten(1, 2).unflatten(2, call.grid)


def _projected(call: AttentionCall) -> Tensor:
    assert call.output is not None
    if call.projection is None:
        raise ModelError(f"{call.layer} has no output projection of its own, which a refinement wants the feature after")
    output = call.output.transpose(1, 2).flatten(2) @ call.projection.T
    output = output if call.bias is None else output + call.bias
    return output.transpose(1, 2).unflatten(2, call.grid)
