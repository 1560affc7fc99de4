"""What every backbone offers: one noisy forward of a diffusers pipeline, observed, with the family's differences kept in adapters."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from pydantic import ConfigDict, Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from goca.aggregation import Aggregation
from goca.attention.call import AttentionCall
from goca.attention.statistics import AttentionStatistics, Observation, Plan
from goca.attention.tap import AttentionTap, RawCall
from goca.backbones.layers import LayerNames, resolve
from goca.backbones.loading import choose_device, choose_dtype, load_pipeline
from goca.errors import ModelError
from goca.prompts.prompt import TextSegment
from goca.timing import StageTimer

Conditioning = Mapping[str, Tensor]  # arguments of the denoiser that come from the prompt; the batch is axis 0

_CACHED_PROMPTS = 256


@dataclass(config=ConfigDict(extra="forbid"))
class Backbone(ABC):
    """A pretrained text-to-image pipeline as a source of attention.

    Constructing one reads nothing; `load()` reads the weights. A family implements what differs: how text and images are encoded,
    how the denoiser is called, where text tokens sit in attention and which self-attention layer goes with a cross-attention layer.

    Args:
        name: short name, used in results.
        checkpoint: hub id or local folder of a diffusers pipeline, safetensors only.
        size: side of the square the image is resized to, in pixels.
        timestep: noise level of the one forward, 0 ... 999.
        layers: names of layers and their parts.
        affinity_order: how often the affinity refinement is applied for this family.
        heads: head method that suits this family with GoCA.
        feature_size: side of the grid on which maps are added up.
        revision, variant: as in `DiffusionPipeline.from_pretrained`.
        lora: hub id or path of LoRA weights (safetensors), fused after loading.
        dtype: `auto` is float32 on CPU and bfloat16 (else float16) on an accelerator.
        device: `auto` takes the first accelerator, else the CPU.
    """

    name: str
    checkpoint: str
    size: PositiveInt
    timestep: Annotated[int, Field(ge=0, le=999)]
    layers: LayerNames
    affinity_order: PositiveInt = 2
    heads: str = "dot_product"
    feature_size: PositiveInt = 64
    revision: str | None = None
    variant: str | None = None
    lora: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"

    pipelines: ClassVar[tuple[str, ...]] = ()  # diffusers pipeline classes that the adapter understands
    unused: ClassVar[tuple[str, ...]] = ()  # components that one forward does not need and that are not loaded

    # ------------------------------------------------------------------------------------------------------- loading
    def load(self, pipeline: DiffusionPipeline | None = None) -> Backbone:
        """Read the checkpoint, or take a pipeline that is already in memory, onto the chosen device and dtype.

        Raises:
            ModelError: no such checkpoint, not a pipeline of this family, no safetensors, a dtype the device lacks, an image
                size the model cannot take.
        """
        self.torch_device = choose_device(self.device)
        self.torch_dtype = choose_dtype(self.dtype, self.torch_device)
        self.pipeline: Any = pipeline or load_pipeline(
            self.checkpoint, self.torch_dtype, self.pipelines, self.unused, self.revision, self.variant, self.lora
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.to(self.torch_device, self.torch_dtype)
        for component in self.pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        if self.size % self.size_multiple:
            raise ModelError(f"model.size: {self.name} takes multiples of {self.size_multiple} px, got {self.size}")
        self._texts: OrderedDict[str, Conditioning] = OrderedDict()
        return self

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint and its revision, for results; a bundled or local folder goes by its name."""
        name = Path(self.checkpoint).name if Path(self.checkpoint).is_dir() else self.checkpoint
        return f"{name}@{self.revision}" if self.revision else name

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network whose attention is observed."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Image sides must be a multiple of this many pixels."""

    @property
    @abstractmethod
    def text_segments(self) -> tuple[TextSegment, ...]:
        """How text lies on the attention's text axis."""

    # -------------------------------------------------------------------------------------------------- the one forward
    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> scaled latents, the posterior's mode."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        """Prompts -> arguments of the denoiser, padded to full length, without guidance."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Latents at the configured time step."""

    @abstractmethod
    def denoise(self, noisy: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward of the denoiser, no classifier-free guidance."""

    @abstractmethod
    def canonical(self, raw: RawCall, latent_grid: tuple[int, int]) -> AttentionCall | None:
        """An observed call in canonical form; None for calls that hold no image queries."""

    @abstractmethod
    def paired_self_attention(self, layer: str) -> str:
        """The self-attention layer of the same block; for joint attention the layer itself."""

    def conditioning(self, texts: Sequence[str]) -> Conditioning:
        """`encode_text`, once per distinct prompt of the run, one at a time so that a batch never changes an embedding."""
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                self._texts[text] = self.encode_text([text])
            self._texts.move_to_end(text)
        rows = [self._texts[text] for text in texts]
        while len(self._texts) > _CACHED_PROMPTS:
            self._texts.popitem(last=False)
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    @torch.inference_mode()
    def observe(
        self,
        pixels: Tensor,
        texts: Sequence[str],
        image_ids: Sequence[str],
        seed: int,
        statistics: AttentionStatistics,
        timer: StageTimer | None = None,
    ) -> Observation:
        """Encode, add noise, and run the denoiser once under the tap.

        Args:
            pixels: (B, 3, size, size) in [-1, 1].
            texts: one prompt per image.
            image_ids: with `seed` these choose each image's noise.
            statistics: what to compute from the attention.
            timer: charged with the stages `encode`, `forward` and `aggregate`.
        """
        timer = timer or StageTimer()
        with timer("encode"):
            latents = self.encode_image(pixels.to(self.torch_device, self.torch_dtype))
            noise = image_noise(latents.shape[1:], image_ids, seed).to(latents)
            noisy = self.add_noise(latents, noise)
            conditioning = self.conditioning(texts)
        grid = (latents.shape[-2], latents.shape[-1])

        def observe(raw: RawCall) -> None:
            with timer("aggregate"):
                call = self.canonical(raw, grid)
                if call is not None:
                    statistics.observe(call)

        modules = {name: self.attention_modules[name] for name in statistics.plan.observed}
        with timer("forward"), AttentionTap(modules, observe):
            self.denoise(noisy, conditioning)
        with timer("aggregate"):
            return statistics.finish()

    # --------------------------------------------------------------------------------------------------------- layers
    @cached_property
    def attention_modules(self) -> dict[str, nn.Module]:
        """Every attention module of the denoiser by its name, in the order of the model."""
        kinds = (Attention, AttentionModuleMixin)
        return {name: module for name, module in self.denoiser.named_modules() if isinstance(module, kinds)}

    def is_text_layer(self, layer: str) -> bool:
        """Whether image queries attend to text in this layer."""
        return True

    def plan(
        self, aggregation: Aggregation, self_attention: Sequence[str] = (), features: Sequence[str] = ()
    ) -> Plan:
        """Resolve the layer names that the configured methods ask for.

        Raises:
            ModelError: a name or glob that matches no layer, or none of the right kind.
        """
        names = list(self.attention_modules)
        text = [name for name in names if self.is_text_layer(name)]
        image = list(dict.fromkeys(self.paired_self_attention(name) for name in text))
        reference = None
        if aggregation.weighs_layers and aggregation.reference is not None:
            (reference,) = resolve([aggregation.reference], names, "aggregation.reference")[:1]
        return Plan(
            cross={name: self.paired_self_attention(name) for name in resolve(aggregation.cross_layers, text, "aggregation.cross_layers")},
            reference=reference,
            self_attention=resolve(self_attention, image, "self-attention layers of the refinement"),
            features=resolve(features, names, "feature layers of the refinement"),
            feature_kind=self.layers.feature,
        )


def image_noise(shape: Sequence[int], image_ids: Sequence[str], seed: int) -> Tensor:
    """Standard normal noise (B, *shape) that depends on (seed, image id) alone, not on batch, order or device."""
    noises = []
    for image_id in image_ids:
        digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        noises.append(torch.randn(*shape, generator=generator))
    return torch.stack(noises)
