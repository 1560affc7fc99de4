"""A diffusers pipeline by its configuration: inspected without weights, loaded, placed, and its prompts encoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import DiffusionPipeline
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca.backbones.loading import architectures, pipelines
from goca.backbones.loading.checkpoints import Source, resolved_revision
from goca.backbones.loading.embeddings import Conditioning, PromptEmbeddings
from goca.backbones.loading.quantization import Quantization, check_quantization


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class Pretrained(ABC):
    """Where a pipeline comes from and how it is held; `conf/model/base/loading.yaml` has the defaults.

    Constructing one reads nothing; `inspect()` reads configurations and tokenizers, `load()` the weights.

    Args:
        checkpoint: hub id or local folder of a diffusers pipeline.
        revision, variant: as in `DiffusionPipeline.from_pretrained`.
        allow_pickle: read pickled weights (.bin) where there are no safetensors; tensors alone, no other object.
        lora: hub id or path of LoRA weights, fused after loading.
        dtype: `auto` is float32 on CPU and bfloat16 (else float16) on an accelerator.
        device: `auto` takes the first accelerator, else the CPU.
        placement: `device` keeps every component there; `offload` keeps them in main memory and brings a group of blocks over
            when it runs, so that a model larger than the device fits.
        channels_last: hold convolutions in that memory format, which UNets and autoencoders run faster in; other rounding.
        quantization: load the denoiser and the large text encoders with fewer bits.
        text_encoders: `resident` keeps them beside the denoiser; `first` encodes prompts before the denoiser loads, and frees
            them.
        prompt_cache: folder that keeps prompt embeddings from run to run, by checkpoint, revision and prompt; None keeps them
            for one run.
    """

    checkpoint: str
    revision: str | None = None
    variant: str | None = None
    allow_pickle: bool = False
    lora: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    placement: Literal["device", "offload"] = "device"
    channels_last: bool = False
    quantization: Quantization | None = None
    text_encoders: Literal["resident", "first"] = "resident"
    prompt_cache: str | None = None

    pipelines: ClassVar[tuple[str, ...]] = ()  # diffusers pipeline classes that the adapter understands
    unused: ClassVar[tuple[str, ...]] = ()  # components that one forward does not need and that are not loaded
    denoiser_name: ClassVar[str]
    large_encoder: ClassVar[str | None] = "text_encoder"  # text encoder that is worth quantising, beside the denoiser

    # ------------------------------------------------------------------------------------------------------- loading
    def inspect(self) -> Self:
        """Read configurations and tokenizers, no weights: enough to name layers, align prompts and refuse what cannot work.

        Raises:
            ModelError: no such checkpoint, not a pipeline of this family, weights that may not be read, a dtype the device
                lacks, an image size the model cannot take, a quantisation extra that is not installed.
        """
        self._choose()
        if self.quantization:
            check_quantization(self.quantization, self.torch_device)
        self.adopt(pipelines.load_skeleton(self._source), encoders_left_out=True)
        return self

    def load(self, pipeline: DiffusionPipeline | None = None) -> Self:
        """Read the weights, or take a pipeline in memory, onto the chosen device and dtype; raises as `inspect` does."""
        self._choose()
        without_encoders = pipeline is None and self.text_encoders == "first"
        if pipeline is None:
            self.inspect()  # whatever configurations tell is told before any weight is read
            pipeline = pipelines.load_pipeline(self._source, self.torch_dtype, self.quantization, without_encoders)
        self.adopt(pipeline, without_encoders)
        if self.channels_last:
            for part in (self.pipeline.vae, getattr(self.pipeline, self.denoiser_name)):
                part.to(memory_format=torch.channels_last)
        pipelines.place(self.pipeline, self.torch_device, self.torch_dtype, self.placement)
        return self

    def sketch(self) -> Self:
        """As `inspect`, but from what is known of published checkpoints: no network, no tokenizers; enough to name layers."""
        self.torch_device, self.torch_dtype = torch.device("meta"), torch.float32
        published = self.checkpoint in architectures.published()
        self.adopt(architectures.skeleton(self.checkpoint) if published else pipelines.load_skeleton(self._source), True)
        return self

    def adopt(self, pipeline: Any, encoders_left_out: bool) -> None:
        """Make a pipeline this object's own."""
        self.pipeline: Any = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self._encoders_left_out = encoders_left_out

    def _choose(self) -> None:
        self.torch_device = pipelines.choose_device(self.device)
        self.torch_dtype = pipelines.choose_dtype(self.dtype, self.torch_device)

    @property
    def _source(self) -> Source:
        return Source(
            self.checkpoint,
            families=self.pipelines,
            unused=self.unused,
            quantized=tuple(name for name in (self.denoiser_name, self.large_encoder) if name),
            revision=self.revision,
            variant=self.variant,
            lora=self.lora,
            allow_pickle=self.allow_pickle,
        )

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint and its revision, for results; a bundled or local folder goes by its name."""
        name = Path(self.checkpoint).name if Path(self.checkpoint).is_dir() else self.checkpoint
        return f"{name}@{self.revision}" if self.revision else name

    # ------------------------------------------------------------------------------------------------------- prompts
    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        """Prompts -> arguments of the denoiser, padded to full length, without guidance."""

    @property
    def text_options(self) -> str:
        """Settings that change how a text is encoded, for telling cached embeddings apart."""
        return str(getattr(self, "text_length", ""))

    @cached_property
    def embeddings(self) -> PromptEmbeddings:
        """Embeddings of prompts met so far."""
        folder = self.prompt_cache
        if folder is None and self.text_encoders == "first":
            self._temporary = TemporaryDirectory(prefix="goca_prompts_")  # lives as long as the backbone
            folder = self._temporary.name
        what = (resolved_revision(self.checkpoint, self.revision), self.lora, self.quantization, self.torch_dtype)
        return PromptEmbeddings(self.torch_device, folder, f"{self.checkpoint} {what} {self.text_options}")

    @torch.inference_mode()
    def conditioning(self, texts: Sequence[str]) -> Conditioning:
        """`encode_text` of each text, from memory where it has been encoded before; the batch is axis 0."""
        self.encode_prompts(texts)
        rows = [self.embeddings[text] for text in texts]
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    def encode_prompts(self, texts: Sequence[str]) -> None:
        """Encode the prompts that have no embedding yet; text encoders that are not resident are loaded for it, then freed.

        With `text_encoders=first`, call it between `inspect()` and `load()` with all prompts of the run.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self.embeddings]
        if new:
            with self._encoders():
                for text in new:  # one at a time, so that a batch never changes an embedding
                    self.embeddings[text] = self.encode_text([text])

    @contextmanager
    def _encoders(self) -> Iterator[None]:
        """The pipeline with its text encoders, which leave again if they were not resident."""
        if not self._encoders_left_out:
            yield
            return
        encoders = pipelines.load_text_encoders(self._source, self.torch_dtype, self.quantization)
        for name in encoders:
            pipelines.place(encoders[name], self.torch_device, self.torch_dtype, self.placement)
        self.pipeline.register_modules(**encoders)
        try:
            yield
        finally:
            self.pipeline.register_modules(**dict.fromkeys(encoders))
            encoders.clear()
            pipelines.free_memory()
