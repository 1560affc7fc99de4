"""A backbone's own diffusers pipeline, run with a kind of guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from PIL import Image

from goca.attention.call import Precision
from goca.backbones.base import Backbone
from goca.backbones.calling import DrawingCall, denoiser_calls, pictures
from goca.errors import ConfigError, ModelError
from goca.generation.guidance import PlainGuidance, RegionGuidance, RegionGuide, Step, check_method
from goca.generation.roles import token_roles
from goca.method import Method

# Pipelines that run the unconditional and the conditional half in one batch, in this order.
SUPPORTED = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    *("HunyuanDiTPipeline", "StableDiffusion3Pipeline", "AuraFlowPipeline"),
)
_WITHOUT_HALVES = {
    "FluxPipeline": "guidance is distilled into its weights (dev) or absent (schnell): there is no unconditional prediction",
    "ChromaPipeline": "it runs the two halves of the guidance one after the other",
    "QwenImagePipeline": "it runs the two halves of the guidance one after the other",
}

_DDIM = "DDIMScheduler"
# What `Generator` itself hands to the pipeline, or needs to be as it is.
_OWN_ARGUMENTS = {
    *("prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "output_type"),
    *("num_images_per_prompt", "return_dict", "self", "args", "kwargs"),
}


@dataclass(frozen=True)
class Request:
    """One picture to make."""

    image_id: str
    text: str
    seed: int
    negative: str = ""


@dataclass
class Generator:
    """Makes pictures.

    Args:
        backbone: loaded, or to be loaded before the first picture.
        guidance: plain, or adapted to regions.
        method: how regions are found; unused with plain guidance.
        steps: denoising steps.
        size: (height, width) in pixels; None is the backbone's square.
        scheduler: `own` is the checkpoint's; `auto` is DDIM where that fits; or a class name of diffusers.
        scheduler_options: changes to that scheduler's configuration.
        options: further arguments of the pipeline's call, such as `eta`.
        max_bytes: largest block of attention probabilities held at a time.
        precision: of the products of queries and keys, as `AttentionStatistics` has it.
    """

    backbone: Backbone
    guidance: PlainGuidance
    method: Method
    steps: int = 50
    size: tuple[int, int] | None = None
    scheduler: str = "auto"
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = 2**28
    precision: Precision = "auto"

    def prepare(self, requests: Sequence[Request] = ()) -> None:
        """Check that pipeline, size, layers and options fit, and set the scheduler; the backbone has to be inspected or loaded.

        Raises:
            ModelError: a pipeline that has no two halves, or that would ignore the scale or a negative prompt. ConfigError: a
                size, a scheduler, a number of steps or an option that does not fit.
        """
        pipeline = self.backbone.pipeline
        kind = type(pipeline).__name__
        if kind not in SUPPORTED and isinstance(self.guidance, RegionGuidance):
            reason = _WITHOUT_HALVES.get(kind, "it is not known to run both halves of the guidance in one batch")
            raise ModelError(f"guidance={self.guidance.name} is not possible with {self.backbone.name} ({kind}): {reason}")
        unit = self.backbone.size_multiple
        height, width = self.dimensions
        if height % unit or width % unit:
            raise ConfigError(f"size: {self.backbone.name} makes multiples of {unit} px, got {height} x {width}")
        if isinstance(self.guidance, RegionGuidance):
            check_method(self.method, self.backbone)
        call = self._call
        accepted = set(inspect.signature(pipeline.__call__).parameters) - _OWN_ARGUMENTS - call.reads
        if unknown := sorted(self.options.keys() - accepted):
            raise ConfigError(
                f"pipeline_options: {', '.join(unknown)} cannot be set; {kind} takes {', '.join(sorted(accepted))} here"
            )
        call.check([request.negative for request in requests])
        if self.scheduler != "own":
            pipeline.scheduler = self._scheduler(pipeline.scheduler)
        elif self.scheduler_options:
            raise ConfigError("scheduler_options: scheduler=own stays as it is; name a scheduler to change one")
        self.count_calls()

    @property
    def calls(self) -> int:
        """Most denoiser calls that a picture takes: one a step, two with a scheduler of second order."""
        return self.steps * getattr(self.backbone.pipeline.scheduler, "order", 1)

    def count_calls(self) -> int:
        """Denoiser calls that a picture takes; raises ConfigError where the scheduler has fewer levels of noise than steps."""
        own = next((self.options[name] for name in ("timesteps", "sigmas") if self.options.get(name)), None)
        if own is not None:  # in place of the scheduler's
            return len(own) * int(getattr(self.backbone.pipeline.scheduler, "order", 1))
        return denoiser_calls(self.backbone.pipeline.scheduler, self.steps)

    @property
    def dimensions(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.size or (self.backbone.size, self.backbone.size)

    def __call__(self, requests: Sequence[Request], watch: Callable[[int, Step], None] | None = None) -> list[Image.Image]:
        """The pictures of one batch; `watch` is called with (picture, step) where regions are found.

        Each picture's noise comes from its own seed, whatever else is in the batch.
        """
        height, width = self.dimensions
        with self._guide(requests, watch):
            result = self.backbone.pipeline(
                prompt=[request.text for request in requests],
                height=height,
                width=width,
                num_inference_steps=self.steps,
                generator=[torch.Generator().manual_seed(request.seed) for request in requests],
                output_type="pil",
                **self._call.arguments([request.negative for request in requests]),
            )
        return pictures(result)

    @property
    def _call(self) -> DrawingCall:
        return DrawingCall(self.backbone, self.guidance.scale, self.options, "guidance.scale", may_leave_out=False)

    def _guide(self, requests: Sequence[Request], watch: Callable[[int, Step], None] | None) -> Any:
        if not isinstance(self.guidance, RegionGuidance):
            return nullcontext()
        roles = [token_roles(request.text, self.backbone.text_segments) for request in requests]
        return RegionGuide(self.backbone, self.method, self.guidance, roles, watch, self.max_bytes, self.precision)

    def _scheduler(self, current: Any) -> Any:
        """The wanted scheduler with the noise schedule of the present one."""
        known = sorted(scheduler.__name__ for scheduler in current.compatibles)
        if self.scheduler == "auto" and _DDIM not in known:
            return current
        kind = getattr(diffusers, _DDIM if self.scheduler == "auto" else self.scheduler, None)
        if kind is None or not hasattr(kind, "from_config") or (known and kind.__name__ not in known):
            raise ConfigError(
                f"scheduler: {self.scheduler} does not fit {self.backbone.name}; choices are auto, own, {', '.join(known)}"
            )
        accepted = set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
        if unknown := sorted(self.scheduler_options.keys() - accepted):
            takes = ", ".join(sorted(accepted))
            raise ConfigError(f"scheduler_options: {', '.join(unknown)} is unknown to {kind.__name__}; it takes {takes}")
        return kind.from_config(current.config, **self.scheduler_options)
