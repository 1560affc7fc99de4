"""Linear attention, relu(q) relu(k)^T over row sums: no call of torch shows it, so that operands are taken from its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import relu


def is_linear(module: nn.Module) -> bool:
    """Whether an attention module is one that `watch` understands."""
    return isinstance(getattr(module, "processor", None), SanaLinearAttnProcessor2_0)


def watch(module: Any, found: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> list[Any]:
    """Call `found` with query, key, value and output, each (B, H, S, d), whenever the module runs; returns hooks to remove.

    Query and key are those after norms and relu: non-negative, so that their products over the row sums are a matrix whose
    rows add up to 1, and whose product with the value is the output.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    def finish(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        query, key, value, output = (
            tensor.unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for tensor in (seen.pop("query"), seen.pop("key"), seen.pop("value"), inputs[0])
        )
        found(relu(query), relu(key), value, output)

    sources = {"query": module.norm_q or module.to_q, "key": module.norm_k or module.to_k, "value": module.to_v}
    handles = [source.register_forward_hook(keep(name)) for name, source in sources.items()]
    return [*handles, module.to_out[0].register_forward_pre_hook(finish)]
