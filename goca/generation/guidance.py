"""The kinds of guidance, and the hook that makes an unmodified diffusers pipeline compute S-CFG's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor

from goca.attention.call import Precision
from goca.attention.statistics import AttentionStatistics, Observation
from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.base import Backbone
from goca.errors import ConfigError, ModelError
from goca.generation.rate import guidance_strength, guide, rate_map
from goca.generation.regions import Regions, find_regions
from goca.generation.roles import TokenRoles
from goca.method import Method, calibration_of, weighed_layers
from goca.method.refinement import RefinementContext
from goca.ops import aspect_grid

_CONFIG = ConfigDict(extra="forbid")


@config_dataclass(frozen=True, config=_CONFIG)
class PlainGuidance:
    """Classifier-free guidance with one scale for the whole picture.

    Args:
        name: used in results and folders.
        scale: eps_uncond + scale * (eps_cond - eps_uncond); at 1 the pipeline runs without an unconditional half.
    """

    name: str
    scale: Annotated[float, Field(ge=1)] = 7.5


@config_dataclass(frozen=True, config=_CONFIG)
class RegionGuidance(PlainGuidance):
    """Classifier-free guidance whose scale is adapted to each region (S-CFG).

    Args:
        limits: range of the factor on the scale; [1, 1] gives plain guidance.
        cap: factor times scale stays at or below this.
        every: find regions again every N denoiser calls; the rate always follows the current prediction.
    """

    limits: tuple[PositiveFloat, PositiveFloat] = (0.8, 3.0)
    cap: PositiveFloat = 15.0
    every: PositiveInt = 1

    @field_validator("scale")
    @classmethod
    def _needs_both_halves(cls, scale: float) -> float:
        if scale == 1:
            raise ValueError("at 1 there is no unconditional half to compare with; use a scale above 1, or guidance=cfg")
        return scale

    def rates(self, strength: Tensor, tokens: Tensor, foreground: Tensor) -> Tensor:
        """The factor on the guidance of every latent pixel: (B, h, w). A guidance of one's own overrides this.

        Args:
            strength: (B, h, w) length of the guidance.
            tokens: (B, n, y, x) bool regions of the content tokens.
            foreground: (B, y, x) bool region of all of them.
        """
        return rate_map(strength, tokens, foreground, self.scale, self.limits, self.cap)

    @field_validator("limits")
    @classmethod
    def _ordered(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] > limits[1]:
            raise ValueError(f"the lower limit comes first; got {limits[0]} > {limits[1]}")
        return limits


def check_method(method: Method, backbone: Backbone) -> None:
    """Resolve layer names, and refuse methods that need what does not exist while a picture is being made.

    Raises:
        ConfigError: a refinement or a calibration that needs the image, or maps that are not weighed by heads and layers.
        ModelError: a layer name that matches nothing.
    """
    weighed_layers(method)
    if calibration_of(method).exponents is not None:
        raise ConfigError(
            "calibration: exponents are measured on a finished image, which there is none of while one is generated; use "
            "calibration=goca, or leave the exponents out"
        )
    if method.refinement.needs.image:
        raise ConfigError("refinement: while a picture is generated there is no image to refine with; use affinity or none")
    method.plan(backbone)


@dataclass(frozen=True)
class Step:
    """What one denoiser call showed of one picture, for looking at."""

    index: int  # denoiser calls before this one
    regions: Regions
    rate: Tensor  # (h, w) on the latent grid


class RegionGuide:
    """While open, every denoiser call is observed and its conditional half replaced.

    The pipeline goes on to compute eps_uncond + scale * (eps_cond' - eps_uncond); with eps_cond' = eps_uncond + rate *
    (eps_cond - eps_uncond) that is the wanted guidance, and the pipeline's code stays as it is.

    Args:
        backbone: loaded; its pipeline is the one that runs.
        method: how regions are found; its decision and views are not used.
        guidance: scale, limits and cadence.
        roles: one per picture of the batch.
        watch: called with (picture, step) at every call.
        max_bytes: largest block of attention probabilities held at a time.
        precision: of the products of queries and keys, as `AttentionStatistics` has it.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        guidance: RegionGuidance,
        roles: Sequence[TokenRoles],
        watch: Callable[[int, Step], None] | None = None,
        max_bytes: int = 2**28,
        precision: Precision = "auto",
    ) -> None:
        self.backbone, self.method, self.guidance = backbone, method, guidance
        self.roles, self.watch, self.max_bytes, self.precision = roles, watch, max_bytes, precision
        # T5 models take everything from the conditional half: the other one need not be observed.
        self.half: Literal["both", "conditional"] = "conditional" if roles[0].global_half == "conditional" else "both"
        self._plan = method.plan(backbone)
        self._modules = {name: backbone.attention_modules[name] for name in self._plan.observed}
        self._calls = 0
        self._regions: list[Regions] = []
        self._tap: AttentionTap | None = None
        self._handles: list[Any] = []

    def __enter__(self) -> RegionGuide:
        denoiser = self.backbone.denoiser
        self._handles = [
            denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            denoiser.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()
        if self._tap is not None:  # the denoiser failed half way
            self._tap.__exit__(*exception)
            self._tap = None

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Open the tap where this call is to give new regions."""
        latents: Tensor = args[0] if args else kwargs["hidden_states"]
        if len(latents) != 2 * len(self.roles):
            raise ModelError(
                f"{self.backbone.name}: the denoiser was given {len(latents)} pictures where two halves of {len(self.roles)} "
                "were expected; this pipeline does not run both halves of the guidance in one batch"
            )
        if self._calls % self.guidance.every:
            return
        grid = (latents.shape[-2], latents.shape[-1])
        aggregation = weighed_layers(self.method)
        size = aspect_grid(grid, aggregation.feature_size)  # regions are no finer than the latents that they guide
        statistics = AttentionStatistics(aggregation, self._plan, self.max_bytes, precision=self.precision, size=size)

        def observe(raw: RawCall) -> None:
            call = self.backbone.canonical(raw if self.half == "both" else raw.rows(slice(len(raw.query) // 2, None)), grid)
            if call is not None:
                statistics.observe(call)

        self._statistics = statistics
        self._tap = AttentionTap(self._modules, observe)
        self._tap.__enter__()

    def _after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        """Replace the conditional half of the prediction."""
        if self._tap is not None:
            self._tap.__exit__(None, None, None)
            self._tap = None
            self._regions = self._find_regions(self._statistics.finish())
            del self._statistics
        prediction: Tensor = output[0]
        unconditional, conditional = prediction.chunk(2)
        rates = self._rates(unconditional, conditional)
        self._calls += 1
        replaced = torch.cat([unconditional, guide(unconditional, conditional, rates[:, None])])
        if isinstance(output, tuple):
            return (replaced, *output[1:])
        output.sample = replaced
        return output

    def _find_regions(self, observation: Observation) -> list[Regions]:
        if not observation.token_maps.isfinite().all():
            raise ModelError(f"{self.backbone.name} gave attention that is not finite; try model.dtype=float32")
        count = len(self.roles)
        first = count if self.half == "both" else 0  # row of the first conditional map
        found = []
        for i, roles in enumerate(self.roles):
            half = i if roles.global_half == "unconditional" else first + i
            global_map = observation.token_maps[half, roles.global_token]
            found.append(self._regions_of(observation, first + i, global_map, roles))
        return found

    def _regions_of(self, observation: Observation, row: int, global_map: Tensor, roles: TokenRoles) -> Regions:
        maps = observation.token_maps[row]
        context = RefinementContext(
            size=(maps.shape[1], maps.shape[2]),
            self_attention=observation.self_attention(row),
            features={name: feature[row] for name, feature in observation.features.items()},
            max_bytes=self.max_bytes,
        )
        return find_regions(maps, global_map, roles, calibration_of(self.method), self.method.refinement, context)

    def _rates(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """The factor on the guidance of every picture: (B, h, w)."""
        tokens = torch.stack([regions.tokens for regions in self._regions])
        foreground = torch.stack([regions.foreground for regions in self._regions])
        rates = self.guidance.rates(guidance_strength(unconditional, conditional), tokens, foreground)
        if self.watch is not None:
            for picture, (regions, rate) in enumerate(zip(self._regions, rates, strict=True)):
                self.watch(picture, Step(self._calls, regions, rate))
        return rates
