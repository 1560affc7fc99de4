"""What every backbone offers: one noisy forward of a diffusers pipeline, observed; adapters fill in what differs per family."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from goca.attention.call import AttentionCall
from goca.attention.concept_maps import ConceptStatistics
from goca.attention.concepts import TextBranch
from goca.attention.mixture import Statistics
from goca.attention.statistics import Observation
from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.drawing import Drawing
from goca.backbones.loading.embeddings import Conditioning
from goca.backbones.loading.pretrained import Pretrained
from goca.backbones.loading.quantization import dense_weight
from goca.backbones.projections import OwnProjections
from goca.backbones.prompting import emphasised, read_text
from goca.data.sizes import Limits
from goca.errors import ModelError
from goca.layer_names import LayerNames, resolve
from goca.method.losses import Predicts
from goca.method.passes import Passes
from goca.prompts.prompt import Prompt, TextSegment
from goca.timing import StageTimer


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class Backbone(Drawing, Pretrained):
    """A pretrained text-to-image pipeline as a source of attention.

    A family implements what differs: how text is encoded, how the denoiser is called, where text tokens sit in attention and
    which self-attention layer goes with a cross-attention layer.

    Args beyond `Pretrained`'s:

    name: short name, used in results.
    size: side in pixels of the square that images are resized to, or of what `sizing` measures other shapes by.
    timestep: noise level of the one forward, 0 ... 999.
    layers: names of layers and their parts.
    affinity_order: how often the affinity refinement is applied for this family.
    heads: head method that suits this family with GoCA.
    feature_size: cells along that square of the grid on which maps are added up.
    """

    name: str
    size: PositiveInt
    timestep: Annotated[int, Field(ge=0, le=999)]
    layers: LayerNames
    affinity_order: PositiveInt = 2
    heads: str = "dot_product"
    feature_size: PositiveInt = 64

    denoiser_name: ClassVar[str] = "transformer"
    shifts_latents: ClassVar[bool] = True  # whether the pipeline takes the autoencoder's `shift_factor` into account
    takes_concepts: ClassVar[bool] = False  # whether `text_branch` takes words along a forward
    unobserved: ClassVar[tuple[str, ...]] = ()  # globs of attention modules in which the image meets no text, such as refiners

    def inspect(self) -> Backbone:
        """As `Pretrained.inspect`; then every layer name has to match a layer of the model."""
        super().inspect()
        for part in ("cross", "manual", "affinity"):
            resolve(getattr(self.layers, part), self.attention_modules, f"model.layers.{part}")
        resolve([self.layers.reference], self.attention_modules, "model.layers.reference")
        return self

    def adopt(self, pipeline: Any, encoders_left_out: bool) -> None:
        super().adopt(pipeline, encoders_left_out)
        for name in ("attention_modules", "text_segments", "_sigmas", "_projections"):  # derived from an earlier pipeline
            self.__dict__.pop(name, None)
        if self.size % self.size_multiple:
            unit = self.size_multiple
            near = max(1, round(self.size / unit)) * unit
            raise ModelError(f"model.size: {self.name} takes multiples of {unit} px, got {self.size}; {near} is nearest")
        sketched = self.torch_device.type == "meta"  # to name layers, before anybody has chosen a size
        if not sketched and self.longest_side is not None and self.size > self.longest_side:
            raise ModelError(f"model.size: the positions of {self.name} end at {self.longest_side} px, got {self.size}")

    # ------------------------------------------------------------------------------------------------- shapes of a family
    @property
    def denoiser(self) -> nn.Module:
        """The network whose attention is observed."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def patch(self) -> int:
        """Side in latent pixels of what one image token stands for, where the denoiser first sees it."""
        return self.pipeline.transformer.config.patch_size

    @property
    def compression(self) -> int:
        """How many pixels a latent pixel is wide."""
        factor: int = self.pipeline.vae_scale_factor
        return factor

    @property
    def size_multiple(self) -> int:
        """Image sides must be a multiple of this many pixels."""
        return self.compression * self.patch

    @property
    def longest_side(self) -> int | None:
        """Pixels at which the model's table of positions ends; None where positions are computed for any size."""
        return None

    @property
    def limits(self) -> Limits:
        """Sizes of images that the model takes."""
        return Limits(self.size, self.size_multiple, self.longest_side)

    def pixel_size(self, latents: Tensor) -> tuple[int, int]:
        """(height, width) in pixels of the images behind latents (B, C, h, w)."""
        return latents.shape[-2] * self.compression, latents.shape[-1] * self.compression

    def token_grid(self, latent_grid: tuple[int, int]) -> tuple[int, int]:
        """The grid of image tokens."""
        return latent_grid[0] // self.patch, latent_grid[1] // self.patch

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what `encode_image` makes of one image of `size`."""
        config, side = self.pipeline.vae.config, self.size // self.compression
        return config.get("latent_channels") or config.z_dim, side, side

    @property
    @abstractmethod
    def text_segments(self) -> tuple[TextSegment, ...]:
        """How text lies on the attention's text axis."""

    # -------------------------------------------------------------------------------------------------- the one forward
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] -> scaled latents, the posterior's mode."""
        vae = self.pipeline.vae
        encoded = vae.encode(pixels.to(vae.dtype))
        latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        shift = (vae.config.get("shift_factor") or 0.0) if self.shifts_latents else 0.0
        return ((latents - shift) * vae.config.scaling_factor).to(self.torch_dtype)

    @abstractmethod
    def blank_conditioning(self) -> Conditioning:
        """Zeros in the shapes that `encode_text` gives for one prompt, from the denoiser's configuration alone."""

    def blank(self, *shape: int, value: float = 0) -> Tensor:
        """A constant tensor on the backbone's device and in its dtype."""
        return torch.full(shape, value, device=self.torch_device, dtype=self.torch_dtype)

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Latents at the configured time step, with the variance of the data kept (DDPM).

        From the scheduler's noise table and not by its `add_noise`: Euler schedulers add noise to unscaled latents, and
        multistep ones look the step up in a table that is only right once a number of sampling steps has been set.
        """
        kept = float(self.pipeline.scheduler.alphas_cumprod[self.timestep])
        return kept**0.5 * latents + (1 - kept) ** 0.5 * noise

    @abstractmethod
    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward of the denoiser, no classifier-free guidance."""

    @abstractmethod
    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall | None:
        """An observed call in canonical form; None for calls that hold no image queries."""

    @abstractmethod
    def paired_self_attention(self, layer: str) -> str:
        """The self-attention layer of the same block; for joint attention the layer itself."""

    def projection(self, layer: str, like: Tensor) -> Tensor | None:
        """W^O of a layer (D, H * d), without its bias, on the device and in the dtype of `like`."""
        module: Any = self.attention_modules[layer]
        if isinstance(module.to_out, nn.Linear):  # shared with the MLP beside it: the columns that attention's output meets
            return dense_weight(module.to_out)[:, : like.shape[1] * like.shape[3]].to(like)
        return dense_weight(module.to_out[0]).to(like)

    def projection_bias(self, layer: str, like: Tensor) -> Tensor | None:
        """The bias of W^O (D,), None where there is none."""
        linear = getattr(self.attention_modules[layer], "to_out", None)
        linear = linear[0] if isinstance(linear, nn.ModuleList) else linear
        bias = getattr(linear, "bias", None)
        return None if bias is None else bias.to(like)

    @cached_property
    def _projections(self) -> OwnProjections:
        return OwnProjections(self.attention_modules)

    @torch.inference_mode()
    def observe(
        self,
        pixels: Tensor,
        texts: Sequence[str],
        image_ids: Sequence[str],
        seed: int,
        statistics: Statistics,
        timer: StageTimer | None = None,
        passes: Passes | None = None,
        prompts: Sequence[Prompt] = (),
    ) -> Observation:
        """Encode, add noise, and run the denoiser under the tap, once or at several noise levels.

        Args:
            pixels: (B, 3, height, width) in [-1, 1], sides as `limits` has them.
            texts: one prompt per image.
            image_ids: with `seed` these choose each image's noise.
            statistics: what to compute from the attention.
            timer: charged with the stages `encode`, `forward` and `aggregate`.
            passes: noise levels whose attention the statistics bring together; None is the model's own, once.
            prompts: one per image, where its class tokens are emphasised, or another text or concepts are read.
        """
        timer, passes = timer or StageTimer(), passes or Passes()
        with timer("encode"):
            latents = self.encode_image(pixels.to(self.torch_device, self.torch_dtype))
            conditioning = emphasised(self.conditioning(texts), prompts, self.conditioning)
            read = read_text(prompts, self.conditioning)
        grid = (latents.shape[-2], latents.shape[-1])
        seen: set[str] = set()

        def observe(raw: RawCall) -> None:
            seen.add(raw.layer)
            with timer("aggregate"):
                if isinstance(statistics, ConceptStatistics):
                    statistics.follow(raw, self.image_keys(raw, grid))
                call = self._projections.add(self.canonical(raw, grid), raw)
                if call is not None:
                    statistics.observe(call if read is None else self.read(call, read))

        check_finite(latents, "autoencoder", image_ids)
        for embedding in conditioning.values():
            check_finite(embedding, "text encoder", image_ids)
        modules = {name: self.attention_modules[name] for name in statistics.plan.observed}
        weights = self._projections.weights(statistics)
        for number, timestep in enumerate(passes.timesteps or (self.timestep,)):
            with timer("encode"), self.at(timestep):
                ids = [f"{image_id}/pass{number}" if number else image_id for image_id in image_ids]
                noise = image_noise(latents.shape[1:], ids, seed).to(latents)
                noisy = latents if passes.clean else self.add_noise(latents, noise)
                if isinstance(statistics, ConceptStatistics):
                    rows = [{key: value[row : row + 1] for key, value in conditioning.items()} for row in range(len(prompts))]
                    each = zip(prompts, rows, strict=True)
                    statistics.begin([self.text_branch(prompt.concepts, row, noisy) for prompt, row in each])
            with timer("forward"), self.at(timestep), AttentionTap(modules, observe, projections=weights):
                predicted = self.denoise(noisy, conditioning)
            check_finite(predicted, "denoiser", image_ids)
        self.check_seen(seen, modules)
        with timer("aggregate"):
            return statistics.finish()

    @contextmanager
    def at(self, timestep: int) -> Iterator[None]:
        """The backbone at another noise level."""
        own = self.timestep
        if timestep == own:
            yield
            return
        self.timestep = timestep
        try:
            yield
        finally:
            self.timestep = own

    def read(self, call: AttentionCall, text: Tensor) -> AttentionCall:
        """A cross-attention call with the keys of another text, whose embeddings (B, n, C) are given; others as they are.

        Raises:
            ModelError: the family's text is not keyed straight from its embeddings.
        """
        raise ModelError(f"{self.name}: another text can be read only where layers take keys straight from it, as in a UNet")

    def image_keys(self, raw: RawCall, latent_grid: tuple[int, int]) -> slice:
        """Where the image's tokens stand in a joint call.

        Raises:
            ModelError: the family has no joint attention.
        """
        raise ModelError(f"{self.name}: concepts go through the text branch of joint attention, which this model lacks")

    def text_branch(self, words: Sequence[str], conditioning: Conditioning, noisy: Tensor) -> TextBranch:
        """The text branch that takes these words along the next forward of a prompt, on noisy latents (B, C, h, w).

        Raises:
            ModelError: the family has no text branch.
        """
        raise ModelError(f"{self.name}: concepts need blocks with a text branch of their own; take SD3, FLUX.1 or FLUX.2")

    def prediction_kind(self) -> tuple[float, Predicts]:
        """The part of the data's variance that is left at this noise level, and what the model predicts."""
        return float(self.pipeline.scheduler.alphas_cumprod[self.timestep]), self.pipeline.scheduler.config.prediction_type

    def check_seen(self, seen: Collection[str], modules: Mapping[str, nn.Module]) -> None:
        """Raise ModelError where modules ran whose attention was not seen."""
        hidden = {name: module for name, module in modules.items() if name not in seen}
        if hidden:
            name, module = next(iter(hidden.items()))
            kind = type(getattr(module, "processor", module)).__name__
            usual = getattr(getattr(module, "_default_processor_cls", None), "__name__", "AttnProcessor2_0")
            raise ModelError(
                f"{len(hidden)} layers, such as {name}, computed attention that cannot be observed: their processor is {kind}. "
                f"diffusers' own are seen: call pipeline.{self.denoiser_name}.set_attn_processor({usual}()), or load "
                "the pipeline without attention slicing or xformers"
            )

    # --------------------------------------------------------------------------------------------------------- layers
    @cached_property
    def attention_modules(self) -> dict[str, nn.Module]:
        """Every attention module of the denoiser that can be observed by its name, in the order of the model."""
        kinds: Any = (Attention, AttentionModuleMixin)
        return {
            name: module
            for name, module in self.denoiser.named_modules()
            if isinstance(module, kinds) and not any(fnmatch(name, pattern) for pattern in self.unobserved)
        }

    def is_text_layer(self, layer: str) -> bool:
        """Whether image queries attend to text in this layer."""
        return True


def check_finite(tensor: Tensor, network: str, image_ids: Sequence[str]) -> None:
    """Refuse what a network gave where it holds NaN or infinity; the batch is axis 0.

    Raises:
        ModelError: naming the images.
    """
    if tensor.is_meta or not tensor.is_floating_point():
        return
    bad = [image_id for image_id, part in zip(image_ids, tensor, strict=False) if not part.isfinite().all()]
    if bad:
        raise ModelError(f"{', '.join(bad)}: the output of the {network} is not finite; try model.dtype=float32")


def image_noise(shape: Sequence[int], image_ids: Sequence[str], seed: int) -> Tensor:
    """Standard normal noise (B, *shape) that depends on (seed, image id) alone, not on batch, order or device."""
    noises = []
    for image_id in image_ids:
        digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        noises.append(torch.randn(*shape, generator=generator))
    return torch.stack(noises)
