"""Watching a pipeline draw: hooks on its denoiser, opened with the context manager and gone after it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite
from types import TracebackType
from typing import Any

import torch
from torch import nn

from goca.attention.backends import hidden_backend
from goca.attention.linear import is_linear
from goca.attention.running import Kept, RunningStatistics
from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.base import Backbone
from goca.errors import ConfigError, ModelError
from goca.layer_names import resolve
from goca.method import Method
from goca.method.aggregation.concepts import ConceptMaps
from goca.method.decision import Hungarian
from goca.method.outside import MapFiles
from goca.method.passes import Passes
from goca.method.views import Views
from goca.segmentor import Segmentor
from goca.watching.other_words import OtherWords
from goca.watching.pipeline_call import PipelineCall, running_call
from goca.watching.reading import Reading
from goca.watching.seen import Seen

_DEFAULTS = ("aggregation=vanilla", "refinement=none")
_OFFLOADED = ("_hf_hook", "_diffusers_hook")  # what accelerate and diffusers leave on modules that they move
_watched: dict[int, str] = {}  # id of a denoiser that is watched -> the class of its pipeline
Scale = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class Options:
    """What `watch` is asked for beyond the method; see there."""

    reads: tuple[str, ...] = ()
    negative: bool = False
    steps: int | None = None
    layers: int | None = None
    scale: Scale | None = None
    prompt: tuple[str, ...] | None = None


class Watch:
    """The context manager that `goca.watch` returns; its target is a `Seen`.

    Args:
        pipeline: of a supported family; it is not changed.
        segmentor: the method, and an adapter that borrows the pipeline.
        options: what else is wanted.
        beside: further methods that see the same drawing; what they saw is in `beside`, a `Seen` for each.
    """

    def __init__(self, pipeline: Any, segmentor: Segmentor, options: Options, beside: Sequence[Segmentor] = ()) -> None:
        self.pipeline, self.segmentor, self.options = pipeline, segmentor, options
        self.backbone: Backbone = segmentor.backbone
        self.denoiser: nn.Module = self.backbone.denoiser
        self._methods = (segmentor, *beside)
        self.beside: list[Seen] = []
        self._scales = _scales(options.scale, self.backbone)
        names = dict.fromkeys([*(name for method in self._methods for name in method.plan().observed), *self._scales])
        self._modules = {name: self.backbone.attention_modules[name] for name in names}
        self._signature = inspect.signature(self.denoiser.forward)
        self._handles: list[Any] = []
        self._tap: ExitStack | None = None
        self._call: PipelineCall | None = None
        self._device: torch.device | None = None
        self._turn, self._calls_in_turn, self._rows_of_turn = -1, 0, 0
        self._pictures = 0
        self._current: list[tuple[Reading, slice]] = []
        self._met: set[str] = set()
        self._prompts: list[Reading] = []  # one for each method
        self._negative: Reading | None = None
        self._reads: dict[str, Reading] = {}
        self._words = {text: OtherWords.of(self.backbone, text, self._scales) for text in options.reads}
        self._inside = False  # a forward of our own runs

    # ------------------------------------------------------------------------------------------------- opening and closing
    def __enter__(self) -> Seen:
        key = id(self.denoiser)
        if key in _watched:
            raise ModelError(f"this {_watched[key]} is being watched already: leave the other `with goca.watch(...)` first")
        _refuse_unseen(self.denoiser, self._modules)
        _watched[key] = type(self.pipeline).__name__
        self._handles = [
            self.denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            self.denoiser.register_forward_hook(self._after, always_call=True),
        ]
        # Weights that are brought where they are needed lie elsewhere before a call.
        self._placed = not any(hasattr(module, name) for module in self.denoiser.modules() for name in _OFFLOADED)
        self._seen = Seen(self.segmentor)
        self._seen.wants_negative = self.options.negative
        self.beside = [Seen(method) for method in self._methods[1:]]
        return self._seen

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._call = None  # the frame of the pipeline's call, and all that it holds
        self._current = []
        _watched.pop(id(self.denoiser), None)

    def _close(self) -> None:
        if self._tap is not None:
            tap, self._tap = self._tap, None
            tap.close()

    # -------------------------------------------------------------------------------------------- one call of the denoiser
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find out whose rows this call holds, and open the tap for those that are wanted."""
        if self._inside:
            return
        arguments = self._signature.bind(*args, **kwargs).arguments
        call = running_call(self.pipeline)
        if call is None:
            raise ModelError(
                "the denoiser was run outside of its pipeline's call, which alone knows the prompt; call the pipeline itself"
            )
        self._begin(call, arguments)
        if self._placed:
            self._check_device(next(self.denoiser.parameters()).device)
        rows = self.backbone.drawn_rows(arguments)
        current = self._whose(call, rows, arguments)
        modules = {name: self._modules[name] for name in (self._modules if current else self._scales)}
        if not modules:
            return
        self.backbone.note_call(arguments)
        grid = self.backbone.latent_grid(arguments)
        for reading, part in current:
            reading.statistics.begin(call.time)
            if isinstance(reading.keys_of, OtherWords):
                self._prepare(reading.keys_of, arguments, part, rows, grid)
        self._current, self._met = current, set()
        every = slice(0, rows)

        def observe(raw: RawCall) -> None:
            self._met.add(raw.layer)
            self._check_device(raw.query.device)
            with torch.no_grad(), torch.autocast(raw.query.device.type, enabled=False):
                for reading, part in current:
                    found = self.backbone.canonical(raw if part == every else raw.rows(part), grid)
                    if found is not None:
                        reading.observe(found)

        self._tap = ExitStack()
        self._tap.enter_context(self.backbone.beside_the_tap())
        self._tap.enter_context(AttentionTap(modules, observe, self._scales))

    def _prepare(self, words: OtherWords, arguments: Mapping[str, Any], part: slice, rows: int, grid: tuple[int, int]) -> None:
        """Let other words find their keys for this call, where these are not the same in all."""
        self._inside = True
        try:
            words.prepare(arguments, part, rows, grid)
        finally:
            self._inside = False

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Close the tap, and add what it saw to the sums; `output` is None where the denoiser failed."""
        if self._tap is None or self._inside:
            return
        self._close()
        current, self._current = self._current, []
        if output is None or not current:
            return
        self.backbone.check_seen(self._met, self._modules)
        for reading, _ in current:
            reading.statistics.end()

    def _check_device(self, device: torch.device) -> None:
        self._device = self._device or device
        if device != self._device:
            raise ModelError(f"the pipeline was moved from {self._device} to {device} while it was watched: move it before")

    # ------------------------------------------------------------------------------------------------------- whose rows
    def _begin(self, call: PipelineCall, arguments: Mapping[str, Any]) -> None:
        """The first call of the denoiser says what is drawn; those that follow have to be of the same drawing."""
        if self._call is not None:
            if call.frame is not self._call.frame:
                raise ModelError("the pipeline is called a second time while it is watched: open a watch for each call of it")
            return
        call.check_one_text(self.backbone.prompt_names)
        self.backbone.fit_call(call.variables)
        prompts = call.texts(self.backbone.prompt_names) or self.options.prompt
        if prompts is None:
            raise ConfigError('the pipeline was given embeddings in place of a prompt: say which, by watch(pipe, prompt="...")')
        texts = [self.backbone.drawn_text(text, call.variables) for text in prompts for _ in range(call.images_per_prompt)]
        self._call, self._pictures = call, len(texts)
        self._prompts = [self._reading(texts, method) for method in self._methods]
        for text, words in self._words.items():
            self._reads[text] = Reading([text] * len(texts), self._statistics(self.segmentor), words.segments, words)
        height, width = self.backbone.latent_grid(arguments)
        self._size = (height * self.backbone.compression, width * self.backbone.compression)
        self._seen.begin(self._prompts[0], self._reads, self._size)
        for seen, reading in zip(self.beside, self._prompts[1:], strict=True):
            seen.begin(reading, {}, self._size)

    def _reading(self, texts: Sequence[str], method: Segmentor, negative: bool = False) -> Reading:
        backbone = self.backbone

        def segments(keys: int) -> Any:
            backbone.fit_text(keys)
            return backbone.drawn_segments(negative)

        return Reading(texts, self._statistics(method), segments)

    def _statistics(self, method: Segmentor) -> RunningStatistics:
        aggregation: Any = method.method.aggregation
        kept = Kept(self.options.steps, self.options.layers)
        time = self.backbone.timestep
        return RunningStatistics(aggregation, method.plan(), time, method.max_bytes, method.precision, kept)

    def _whose(self, call: PipelineCall, rows: int, arguments: Mapping[str, Any]) -> list[tuple[Reading, slice]]:
        """The readings that this call adds to, each with its rows of the batch.

        Both halves of guidance come in one batch, or the prompt's first and the negative one's after it. What a pipeline runs
        beyond that in one turn of its loop, such as a forward that skips layers, is not looked at.
        """
        if call.iteration != self._turn:
            self._turn, self._calls_in_turn, self._rows_of_turn = call.iteration, 0, rows
        number, self._calls_in_turn = self._calls_in_turn, self._calls_in_turn + 1
        count = self._pictures
        if rows not in (count, 2 * count):
            hint = "; watch(pipe, prompt=[...]) has to name a prompt for each of them" if self.options.prompt else ""
            raise ModelError(
                f"the denoiser was given {rows} pictures where {count} are drawn, which are not the halves of guidance{hint}"
            )
        first, second = slice(0, count), slice(count, 2 * count)
        found: list[tuple[Reading, slice]] = []
        positive: slice | None = None
        negative: slice | None = None
        if rows == 2 * count and number == 0:
            negative, positive = (first, second) if self.backbone.negative_first else (second, first)
        elif rows == count and number == 0:
            positive = first
        elif rows == count and number == 1 and self._rows_of_turn == count:
            negative = first
        if positive is not None:
            found += [(reading, positive) for reading in (*self._prompts, *self._reads.values())]
        if negative is not None and self.options.negative:
            found.append((self._negatives(call), negative))
        return found

    def _negatives(self, call: PipelineCall) -> Reading:
        if self._negative is None:
            names = [f"negative_{name}" for name in self.backbone.prompt_names]
            given = call.texts(names) or [""]
            prompts = given * (self._pictures // call.images_per_prompt) if len(given) == 1 else given
            texts = [self.backbone.drawn_text(text, call.variables) for text in prompts for _ in range(call.images_per_prompt)]
            self._negative = self._reading(texts, self.segmentor, negative=True)
            self._seen.add_negative(self._negative, self._size)
        return self._negative


def refuse_decided(overrides: Sequence[str], stages: Sequence[str]) -> None:
    """Refuse settings of stages that a drawing decides by itself, typed by somebody."""
    if typed := [each for each in overrides if each.lstrip("+").partition("=")[0].partition(".")[0] in stages]:
        raise ConfigError(f"{typed[0]}: the drawing itself says at which noise levels its picture is seen, and how")


def while_drawing(method: Method, segments: bool = False) -> Method:
    """The method as it is used on a drawing, which is seen as it is and at its own noise levels.

    Args:
        segments: labels are wanted of it, and not maps of words alone.

    Raises:
        ConfigError: maps that are not of the drawing's attention, or labels that need ground truth.
    """
    if isinstance(method.aggregation, ConceptMaps):
        raise ConfigError(
            "aggregation=concepts follows words through one forward; other words than the prompt's are read by reads="
        )
    if isinstance(method.calibration, MapFiles):
        raise ConfigError("calibration=files brings maps of its own; while a pipeline is watched they are its attention's")
    if segments and isinstance(method.decision, Hungarian):
        raise ConfigError(
            "decision=hungarian matches clusters to ground truth, and what is drawn has none; use decision=offset"
        )
    return replace(method, views=Views(), passes=Passes())


def _scales(scale: Scale | None, backbone: Backbone) -> dict[str, torch.Tensor]:
    """Layer -> factors, from globs of layers.

    Raises:
        ConfigError: a factor that is no number, or as many as no layer has heads. ModelError: a glob that matches no layer.
    """
    found: dict[str, torch.Tensor] = {}
    for pattern, factors in (scale or {}).items():
        for name in resolve([pattern], backbone.attention_modules, "scale"):
            module: Any = backbone.attention_modules[name]
            values = [factors] if isinstance(factors, (int, float)) else list(factors)
            heads = getattr(module, "heads", len(values))
            numbers = all(isinstance(value, (int, float)) and isfinite(value) for value in values)
            if not numbers or len(values) not in (1, heads):
                raise ConfigError(f"scale[{pattern!r}]: give one factor, or one for each of the {heads} heads of {name}")
            if is_linear(module):
                raise ModelError(f"scale[{pattern!r}]: {name} computes linear attention, which can be watched but not weighed")
            found[name] = torch.tensor([float(value) for value in values])
    return found


def refuse_compiled(denoiser: nn.Module) -> None:
    """Raise ModelError for a network, or one with a part, that `torch.compile` or `compile()` has been called on."""
    modules: list[Any] = list(denoiser.modules())
    if any(getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod") for module in modules):
        raise ModelError("the denoiser is compiled, which hides its attention: watch the pipeline before torch.compile")


def _refuse_unseen(denoiser: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Refuse what the tap would not see, or not without changing the picture.

    Raises:
        ModelError: a compiled denoiser, or attention by a kernel of its own.
    """
    refuse_compiled(denoiser)
    backend = hidden_backend(modules.values())
    if backend is not None:
        raise ModelError(
            f"the denoiser computes attention by the backend {backend}, which cannot be seen; to watch it, call "
            "set_attention_backend('native') on it first"
        )
