"""How a family's pipeline is called to draw: which argument its guidance reads, and what its call has no word for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from goca.backbones.base import Backbone
from goca.errors import ConfigError, ModelError

_ABSENT = object()
_EXACT = ("use_resolution_binning", "clean_caption")  # else the picture has another size, or its text is not the prompt


@dataclass(frozen=True)
class DrawingCall:
    """What the pipeline of a backbone is told beside prompt, size, steps and noise.

    Args:
        backbone: inspected or loaded.
        scale: of the guidance; None is the pipeline's own.
        options: further arguments of the call, which decide too.
        scale_name: what the setting is called where a message speaks of it.
        may_leave_out: whether the scale need not be given; where it has to be, 1 leaves a pipeline to itself that reads none.
    """

    backbone: Backbone
    scale: float | None = None
    options: Mapping[str, Any] | None = None
    scale_name: str = "guidance_scale"
    may_leave_out: bool = True

    def check(self, negatives: Sequence[str] = ()) -> None:
        """Refuse what the pipeline would ignore.

        Raises:
            ModelError: a scale that it does not read, or a negative prompt without an unconditional half.
        """
        if self.scale is not None and self._reads is None:
            guider = self._guided and "true_cfg_scale" not in self._known  # HunyuanImage's
            if self.scale != 1 or (guider and self.may_leave_out):
                instead = "leave it out" if self.may_leave_out else f"set {self.scale_name}=1"
                then = ", and its own guider decides" if guider else self._hint
                raise ModelError(f"{self.scale_name}: {self._who} reads no guidance scale; {instead}{then}")
        if not any(negatives):
            return
        if "negative_prompt" not in self._known:
            raise ModelError(f"negative_prompt: {self._who} knows none; leave it out")
        if not self._guided:
            hint = self._hint or ("" if self._reads is None or self._embedded else f", or set {self.scale_name} above 1")
            raise ModelError(f"negative_prompt: {self._who} runs without an unconditional half here; leave it out{hint}")

    def arguments(self, negative: str | list[str] | None = None) -> dict[str, Any]:
        """Of the call; a negative prompt where it knows one.

        Args:
            negative: one for all pictures, or one for each; None gives none, unless there is no guidance without it.
        """
        found: dict[str, Any] = {}
        if self.scale is not None and self._reads is not None:
            found[self._reads] = self.scale
            if self._reads == "true_cfg_scale" and negative is None:
                negative = ""
        if negative is not None and "negative_prompt" in self._known:
            found["negative_prompt"] = negative
        length = getattr(self.backbone, "text_length", None)
        if length is not None and "max_sequence_length" in self._known:
            found["max_sequence_length"] = length
        return {**found, **{name: False for name in _EXACT if name in self._known}, **(self.options or {})}

    @property
    def reads(self) -> frozenset[str]:
        """Arguments of the call that are set here."""
        return frozenset(filter(None, [self._reads]))

    @property
    def _pipeline(self) -> Any:
        return self.backbone.pipeline

    @property
    def _who(self) -> str:
        return f"{self.backbone.name} ({type(self._pipeline).__name__})"

    @property
    def _known(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._pipeline.__call__).parameters

    def _config(self, name: str) -> Any:
        return getattr(getattr(self._pipeline, self.backbone.denoiser_name, None), "config", {}).get(name)

    @property
    def _embedded(self) -> bool:
        """Whether the scale is an input of the network, which was distilled with it."""
        return bool(self._config("guidance_embeds")) or self._config("time_cond_proj_dim") is not None

    @property
    def _reads(self) -> str | None:
        """The argument that decides about the guidance; others of that kind are ignored."""
        known = self._known
        if "true_cfg_scale" in known and not self._embedded:
            # Where it is off unless asked for, the weights were made to be drawn with without any guidance (FLUX.1 schnell).
            alone = "guidance_scale" not in known
            return "true_cfg_scale" if alone or known["true_cfg_scale"].default > 1 else None
        if "guidance_scale" in known:
            return "guidance_scale" if self._embedded or self.scale is None or self.scale <= 1 or self._guided else None
        return "distilled_guidance_scale" if "distilled_guidance_scale" in known and self._embedded else None

    @property
    def _guided(self) -> bool:
        """Whether an unconditional half is run."""
        known, pipeline = self._known, self._pipeline
        if "true_cfg_scale" in known:
            own = self.scale if self._reads == "true_cfg_scale" and self.scale is not None else known["true_cfg_scale"].default
            return float((self.options or {}).get("true_cfg_scale", own)) > 1
        if "guidance_scale" not in known:  # HunyuanImage's guider
            return bool(getattr(getattr(pipeline, "guider", None), "_enabled", False))
        scale = known["guidance_scale"].default if self.scale is None else self.scale
        if not hasattr(type(pipeline), "do_classifier_free_guidance"):
            return bool(scale > 1) and not self._embedded
        before = vars(pipeline).get("_guidance_scale", _ABSENT)
        pipeline._guidance_scale = scale
        try:
            return bool(pipeline.do_classifier_free_guidance)
        finally:
            if before is _ABSENT:
                del pipeline._guidance_scale
            else:
                pipeline._guidance_scale = before

    @property
    def _hint(self) -> str:
        """What real guidance takes where it is off."""
        off = "true_cfg_scale" in self._known and self._reads != "true_cfg_scale"
        if not off or self.may_leave_out:
            return ""
        return "; or give pipeline_options.true_cfg_scale=4 for an unconditional half, which doubles the time"


def pictures(result: Any) -> list[Image.Image]:
    """Of a pipeline's result, whatever its family calls them."""
    found: list[Image.Image] = result.images if hasattr(result, "images") else result.image
    return found


def denoiser_calls(scheduler: Any, steps: int) -> int:
    """How often a scheduler asks for a prediction in so many steps: once each, but for those of second order.

    Raises:
        ConfigError: more steps than the schedule of noise has levels.
    """
    configuration = getattr(scheduler, "config", {})
    levels, trial, moved = configuration.get("num_train_timesteps"), copy.deepcopy(scheduler), {}
    if configuration.get("use_dynamic_shifting") and "mu" in inspect.signature(trial.set_timesteps).parameters:
        moved["mu"] = 1.0  # where the schedule depends on the size; the number of its levels does not
    try:
        trial.set_timesteps(steps, **moved)
        # Some take so many steps but end behind the last level.
        fits = not hasattr(trial, "alphas_cumprod") or float(max(trial.timesteps)) < len(trial.alphas_cumprod)
    except (ValueError, IndexError, AssertionError) as error:
        if levels is None or steps < levels:
            return steps * int(getattr(scheduler, "order", 1))
        raise _too_many(scheduler, steps, levels) from error
    if not fits and levels is not None and steps >= levels:
        raise _too_many(scheduler, steps, levels)
    return len(trial.timesteps)


def _too_many(scheduler: Any, steps: int, levels: int) -> ConfigError:
    kind = type(scheduler).__name__
    return ConfigError(f"steps: {kind} has {levels} levels of noise, too few for {steps} steps; give fewer than {levels}")
