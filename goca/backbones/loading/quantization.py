"""Loading with fewer bits, by bitsandbytes or torchao, and reading such weights."""

from __future__ import annotations

import copy
import importlib
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from goca.errors import ModelError

Quantization = Literal["bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8"]


def check_quantization(kind: Quantization, device: torch.device) -> None:
    """Whether this machine can load weights that way.

    Raises:
        ModelError: the library is not installed, or wants an accelerator that is not there.
    """
    library = kind.partition("_")[0]
    if find_spec(library) is None:
        raise ModelError(f"model.quantization: {kind} needs {library}; pip install -e '.[quantization]' in the clone")
    if library == "bitsandbytes" and device.type == "cpu":
        raise ModelError(f"model.quantization: {kind} needs a GPU; torchao_int8 works on the cpu")


def quantization_config(kind: Quantization, library: str, dtype: torch.dtype) -> Any:
    """What `from_pretrained` of that library, diffusers or transformers, takes to quantise one network."""
    module = importlib.import_module(library)
    if kind == "bitsandbytes_4bit":
        return module.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if kind == "bitsandbytes_8bit":
        return module.BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return module.TorchAoConfig(Int8WeightOnlyConfig())


def dense_weight(linear: Any) -> Tensor:
    """The weight of a linear layer as plain numbers, whatever it is stored as: (out, in)."""
    if hasattr(linear, "get_delta_weight") and not linear.merged:  # LoRA weights that run beside the layer
        own = dense_weight(linear.base_layer)
        active = [] if linear.disable_adapters else [name for name in linear.active_adapters if name in linear.lora_A]
        return sum((linear.get_delta_weight(name).to(own) for name in active), start=own)
    weight = linear.weight
    kind = type(weight)
    if kind.__name__ == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        return dequantize_gguf_tensor(weight)
    if kind.__module__.startswith("torchao"):
        return weight.dequantize()
    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        return _unpacked(weight)
    if kind.__name__ in ("Params4bit", "Int8Params"):
        from diffusers.quantizers.bitsandbytes.utils import dequantize_bnb_weight

        return dequantize_bnb_weight(weight, getattr(linear, "state", None))
    return weight


def _unpacked(weight: Any) -> Tensor:
    """Four-bit numbers that bitsandbytes has laid out anew for a CPU at the layer's first forward, as plain ones."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit

    packed = copy.copy(weight.quant_state)  # which the inverse changes
    scales, nested = packed.absmax, packed.original_nested
    data, state = _convert_weight_packed_for_cpu_inverse(weight.data, packed)
    if not nested:
        state.absmax = scales.T.reshape(-1).float()
    return dequantize_4bit(data, state)
