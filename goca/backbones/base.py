"""What every backbone offers: one noisy forward of a diffusers pipeline, observed; adapters fill in what differs per family."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
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
from goca.backbones import architectures, loading
from goca.backbones.embeddings import Conditioning, PromptEmbeddings
from goca.backbones.layers import LayerNames, resolve
from goca.backbones.quantization import Quantization, check_quantization, dense_weight
from goca.errors import ModelError
from goca.prompts.prompt import TextSegment
from goca.timing import StageTimer


@dataclass(config=ConfigDict(extra="forbid"))
class Backbone(ABC):
    """A pretrained text-to-image pipeline as a source of attention.

    Constructing one reads nothing; `inspect()` reads configurations and tokenizers, `load()` the weights. A family implements
    what differs: how text is encoded, how the denoiser is called, where text tokens sit in attention and which self-attention
    layer goes with a cross-attention layer.

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
        placement: `device` keeps every component there; `offload` keeps them in main memory and brings a group of blocks over
            when it runs, so that a model larger than the device fits.
        quantization: load the denoiser and the large text encoders with fewer bits.
        text_encoders: `resident` keeps them beside the denoiser; `first` encodes prompts before the denoiser loads, and frees
            them.
        prompt_cache: folder that keeps prompt embeddings from run to run, by checkpoint, revision and prompt; None keeps them
            for one run.
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
    placement: Literal["device", "offload"] = "device"
    quantization: Quantization | None = None
    text_encoders: Literal["resident", "first"] = "resident"
    prompt_cache: str | None = None

    pipelines: ClassVar[tuple[str, ...]] = ()  # diffusers pipeline classes that the adapter understands
    unused: ClassVar[tuple[str, ...]] = ()  # components that one forward does not need and that are not loaded
    denoiser_name: ClassVar[str] = "transformer"
    large_encoder: ClassVar[str | None] = "text_encoder"  # text encoder that is worth quantising, beside the denoiser

    # ------------------------------------------------------------------------------------------------------- loading
    def inspect(self) -> Backbone:
        """Read configurations and tokenizers, no weights: enough to name layers, align prompts and refuse what cannot work.

        Raises:
            ModelError: no such checkpoint, not a pipeline of this family, no safetensors, a dtype the device lacks, an image
                size the model cannot take, a layer name that matches nothing, a quantisation extra that is not installed.
        """
        self._choose()
        if self.quantization:
            check_quantization(self.quantization, self.torch_device)
        self._adopt(loading.load_skeleton(self._source), encoders_left_out=True)
        for part in ("cross", "manual", "affinity"):
            resolve(getattr(self.layers, part), self.attention_modules, f"model.layers.{part}")
        resolve([self.layers.reference], self.attention_modules, "model.layers.reference")
        return self

    def load(self, pipeline: DiffusionPipeline | None = None) -> Backbone:
        """Read the weights, or take a pipeline in memory, onto the chosen device and dtype; raises as `inspect` does."""
        self._choose()
        without_encoders = pipeline is None and self.text_encoders == "first"
        if pipeline is None:
            self.inspect()  # whatever configurations tell is told before any weight is read
            pipeline = loading.load_pipeline(self._source, self.torch_dtype, self.quantization, without_encoders)
        self._adopt(pipeline, without_encoders)
        loading.place(self.pipeline, self.torch_device, self.torch_dtype, self.placement)
        return self

    def encode_prompts(self, texts: Sequence[str]) -> None:
        """Encode the prompts that have no embedding yet; text encoders that are not resident are loaded for it, then freed.

        With `text_encoders=first`, call it between `inspect()` and `load()` with all prompts of the run.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.embeddings]
        encoders = {}
        if new and self._encoders_left_out:
            encoders = loading.load_text_encoders(self._source, self.torch_dtype, self.quantization)
            for encoder in encoders.values():
                loading.place(encoder, self.torch_device, self.torch_dtype, self.placement)
            self.pipeline.register_modules(**encoders)
        for text in new:  # one at a time, so that a batch never changes an embedding
            self.embeddings[text] = self.encode_text([text])
        if encoders:
            self.pipeline.register_modules(**dict.fromkeys(encoders))
            encoders.clear()
            loading.free_memory()

    def _choose(self) -> None:
        self.torch_device = loading.choose_device(self.device)
        self.torch_dtype = loading.choose_dtype(self.dtype, self.torch_device)

    def _adopt(self, pipeline: Any, encoders_left_out: bool) -> None:
        """Make a pipeline this backbone's own; what was derived from an earlier one is forgotten."""
        self.pipeline: Any = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self._encoders_left_out = encoders_left_out
        for name in ("attention_modules", "text_segments", "sigma"):
            self.__dict__.pop(name, None)
        if self.size % self.size_multiple:
            unit = self.size_multiple
            near = max(1, round(self.size / unit)) * unit
            raise ModelError(f"model.size: {self.name} takes multiples of {unit} px, got {self.size}; {near} is nearest")

    def sketch(self) -> Backbone:
        """As `inspect`, but from what is known of published checkpoints: no network, no tokenizers; enough to name layers."""
        self.torch_device, self.torch_dtype = torch.device("meta"), torch.float32
        published = self.checkpoint in architectures.published()
        self._adopt(architectures.skeleton(self.checkpoint) if published else loading.load_skeleton(self._source), True)
        return self

    @property
    def _source(self) -> loading.Source:
        return loading.Source(
            self.checkpoint,
            families=self.pipelines,
            unused=self.unused,
            quantized=tuple(name for name in (self.denoiser_name, self.large_encoder) if name),
            revision=self.revision,
            variant=self.variant,
            lora=self.lora,
        )

    @cached_property
    def embeddings(self) -> PromptEmbeddings:
        """Embeddings of prompts met so far."""
        folder = self.prompt_cache
        if folder is None and self.text_encoders == "first":
            self._temporary = TemporaryDirectory(prefix="goca_prompts_")  # lives as long as the backbone
            folder = self._temporary.name
        what = (loading.resolved_revision(self.checkpoint, self.revision), self.lora, self.quantization, self.torch_dtype)
        return PromptEmbeddings(self.torch_device, folder, f"{self.checkpoint} {what} {self.text_options}")

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint and its revision, for results; a bundled or local folder goes by its name."""
        name = Path(self.checkpoint).name if Path(self.checkpoint).is_dir() else self.checkpoint
        return f"{name}@{self.revision}" if self.revision else name

    @property
    def denoiser(self) -> nn.Module:
        """The network whose attention is observed."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def patch(self) -> int:
        """Side in latent pixels of what one image token stands for, where the denoiser first sees it."""
        return self.pipeline.transformer.config.patch_size

    @property
    def size_multiple(self) -> int:
        """Image sides must be a multiple of this many pixels."""
        return self.pipeline.vae_scale_factor * self.patch

    def token_grid(self, latent_grid: tuple[int, int]) -> tuple[int, int]:
        """The grid of image tokens."""
        return latent_grid[0] // self.patch, latent_grid[1] // self.patch

    @property
    def text_options(self) -> str:
        """Settings that change how a text is encoded, for telling cached embeddings apart."""
        return str(getattr(self, "text_length", ""))

    @property
    @abstractmethod
    def text_segments(self) -> tuple[TextSegment, ...]:
        """How text lies on the attention's text axis."""

    # -------------------------------------------------------------------------------------------------- the one forward
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> scaled latents, the posterior's mode."""
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        shift = vae.config.get("shift_factor") or 0.0
        return ((latents - shift) * vae.config.scaling_factor).to(self.torch_dtype)

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        """Prompts -> arguments of the denoiser, padded to full length, without guidance."""

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
        return dense_weight(module.to_out[0]).to(like)

    @torch.inference_mode()
    def conditioning(self, texts: Sequence[str]) -> Conditioning:
        """`encode_text` of each text, from memory where it has been encoded before; the batch is axis 0."""
        self.encode_prompts(texts)
        rows = [self.embeddings[text] for text in texts]
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
        kinds: Any = (Attention, AttentionModuleMixin)
        return {name: module for name, module in self.denoiser.named_modules() if isinstance(module, kinds)}

    def is_text_layer(self, layer: str) -> bool:
        """Whether image queries attend to text in this layer."""
        return True

    def plan(self, aggregation: Aggregation, self_attention: Sequence[str] = (), features: Sequence[str] = ()) -> Plan:
        """Resolve the layer names that the configured methods ask for.

        Raises:
            ModelError: a name or glob that matches no layer, or none of the right kind.
        """
        names = list(self.attention_modules)
        text = [name for name in names if self.is_text_layer(name)]
        paired = {self.paired_self_attention(name) for name in text}
        image = [name for name in names if name in paired or name not in text]
        reference = None
        if aggregation.weighs_layers and aggregation.reference is not None:
            (reference,) = resolve([aggregation.reference], names, "aggregation.reference")[:1]
        cross = resolve(aggregation.cross_layers, text, "aggregation.cross_layers")
        return Plan(
            cross={name: self.paired_self_attention(name) for name in cross},
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
