"""One component of a pipeline: read with its report checked, so that no weight is left to chance."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor, nn

from goca.backbones.loading import architectures
from goca.backbones.loading.checkpoints import Checkpoint, Part
from goca.backbones.loading.processors import TextProcessor
from goca.backbones.loading.quantization import Quantization, quantization_config
from goca.backbones.loading.single_file import SingleFile
from goca.errors import ModelError
from goca.hub.network_errors import first_line
from goca.hub.progress import loading

_SHOWN = 3  # keys in a message


def component_class(part: Part) -> Any:
    """The class that an index names: of diffusers, of one of its pipelines, or of transformers; never code of a checkpoint.

    Raises:
        ModelError: these libraries have no such class.
    """
    homes = {"diffusers": diffusers, "transformers": transformers}
    home = homes.get(part.library) or getattr(diffusers.pipelines, part.library, None)
    found = getattr(home, part.kind, None)
    if found is None or not hasattr(found, "from_pretrained"):
        raise ModelError(
            f"model.checkpoint: {part.name} could not be loaded: neither diffusers nor transformers, as installed, has "
            f"{part.library}.{part.kind}, and code that a checkpoint brings is not run"
        )
    return found


def read_plain(part: Part, folder: Path) -> Any:
    """A tokenizer, a scheduler or another component without weights; `folder` is a view of the checkpoint."""
    with _explained(part):
        return _plain_class(part).from_pretrained(folder / part.name, local_files_only=True)


def _plain_class(part: Part) -> Any:
    """The class that reads it; of a processor of words and pictures the half for words."""
    try:
        kind = component_class(part)
    except ImportError:  # torchvision is missing: what transformers has in the class's place raises at every touch (FLUX.2-dev)
        if not part.kind.endswith("Processor") or part.kind.endswith("ImageProcessor"):
            raise
        return TextProcessor
    return TextProcessor if issubclass(kind, transformers.ProcessorMixin) else kind


def read_skeleton(part: Part, folder: Path) -> nn.Module:
    """A network of diffusers on the meta device, from its configuration alone."""
    kind = component_class(part)
    with _explained(part):
        return architectures.build(kind, kind.load_config(folder / part.name, local_files_only=True))


def read_network(
    part: Part, folder: Path, dtype: torch.dtype, quantization: Quantization | None = None
) -> tuple[nn.Module, list[str]]:
    """A network with its weights, and the keys of its files that belong to no weight.

    Raises:
        ModelError: a weight is missing, of another shape, or not finite; the message names component and keys.
    """
    kind, stored = component_class(part), part.weights
    assert stored is not None
    is_diffusers = issubclass(kind, diffusers.ModelMixin)
    options: dict[str, Any] = {"variant": stored.variant, "use_safetensors": not stored.pickled, "dtype": dtype}
    if quantization:
        options["quantization_config"] = quantization_config(
            quantization, "diffusers" if is_diffusers else "transformers", dtype
        )
    if not is_diffusers:
        options["ignore_mismatched_sizes"] = True  # reported instead, as what is missing is
    with loading(part.name, part.size):
        with _explained(part), _reports_are_read_here():
            network, report = kind.from_pretrained(
                folder / part.name, local_files_only=True, output_loading_info=True, **options
            )
        # A report of shards believes their index: what no file held is still without memory.
        empty = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
        _check(part, "lacks weights for", {*report["missing_keys"], *empty})
        _check(part, "has weights of another shape for", [_key(entry) for entry in report["mismatched_keys"]])
        if report["error_msgs"]:
            raise ModelError(
                f"model.checkpoint: {part.name} could not be loaded: {first_line(ValueError(report['error_msgs'][0]))}"
            )
        _check(part, "holds NaN or infinity in", not_finite(network))
    return network, sorted(report["unexpected_keys"])


def read_from_file(
    part: Part, folder: Path, file: SingleFile, dtype: torch.dtype, quantization: Quantization | None = None
) -> nn.Module:
    """A network with the weights of a single file; `folder` is a view with its configuration.

    Raises:
        ModelError: the file is of another architecture, or a weight of it is missing or not finite.
    """
    kind = component_class(part)
    if issubclass(kind, diffusers.ModelMixin):
        own = set(read_skeleton(part, folder).state_dict())
        if len(own & file.keys) > len(own) / 2:  # under diffusers' own names
            _check(part, "lacks weights for", own - file.keys, "model.file")
    wanted = quantization_config(quantization, "diffusers", dtype) if quantization else None
    with loading(part.name, file.path.stat().st_size), _explained(part, "model.file"), _reports_are_read_here():
        network = file.read(kind, folder, part.name, dtype, wanted)
    empty = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    _check(part, "lacks weights for", empty, "model.file")
    _check(part, "holds NaN or infinity in", not_finite(network), "model.file")
    return network


def not_finite(network: nn.Module) -> list[str]:
    """Names of weights that hold NaN or infinity, also where they are stored quantised."""
    return [name for name, tensor in _stored_tensors(network) if not _is_finite(tensor)]


def _stored_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        data = tensor.data
        parts = [data]
        if hasattr(data, "__tensor_flatten__"):  # torchao: numbers and scales
            parts = [getattr(data, inner) for inner in data.__tensor_flatten__()[0]]
        scales = getattr(getattr(tensor, "quant_state", None), "absmax", None)  # bitsandbytes
        for part in (*parts, scales, getattr(tensor, "SCB", None)):
            if isinstance(part, Tensor) and part.is_floating_point() and not part.is_meta and part.numel():
                yield name, part


def _is_finite(tensor: Tensor) -> bool:
    """In one pass and without a copy: NaN and infinity both show in the least and the greatest value."""
    if tensor.element_size() == 1:  # eight-bit floats know no minimum
        tensor = tensor.to(torch.bfloat16)
    least, greatest = torch.aminmax(tensor)
    return bool(torch.isfinite(least) and torch.isfinite(greatest))


def _check(part: Part, what: str, keys: Iterable[str], key: str = "model.checkpoint") -> None:
    found = sorted(keys)
    if found:
        shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        raise ModelError(f"{key}: {part.name} ({part.kind}) {what} {shown}; its files are of another architecture, or damaged")


def _key(entry: Any) -> str:
    """Libraries report a key, or a key and two shapes."""
    if isinstance(entry, str):
        return entry
    name, *shapes = entry
    return f"{name} ({' instead of '.join(str(tuple(shape)) for shape in shapes)})"


@contextmanager
def _explained(part: Part, key: str = "model.checkpoint") -> Iterator[None]:
    """Whatever a library raises while it reads a component, as one message."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        mismatch = "shape" in str(error) and "expected" in str(error)
        where = "has weights of another shape: " if mismatch else "could not be loaded: "
        raise ModelError(f"{key}: {part.name} ({part.kind}) {where}{first_line(error)}"[:399]) from error


@contextmanager
def _reports_are_read_here() -> Iterator[None]:
    """The libraries' own tables of missing keys and bars stay off the terminal."""
    loggers = [logging.getLogger("diffusers"), logging.getLogger("transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    bars = transformers.utils.logging.is_progress_bar_enabled()
    hub_bars = not transformers.utils.logging.hf_hub_utils.are_progress_bars_disabled() if bars else False
    if bars:
        transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
            if not hub_bars:
                transformers.utils.logging.hf_hub_utils.disable_progress_bars()


def describe_broken(checkpoint: Checkpoint, part: Part, error: ModelError) -> ModelError:
    """The message for a component that could not be read, with the file at fault where one is."""
    broken = checkpoint.broken(part)
    return ModelError(f"model.checkpoint: {part.name} could not be loaded: {broken}"[:399]) if broken else error
