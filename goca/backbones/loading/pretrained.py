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
from goca.backbones.loading.checkpoints import INDEX, Checkpoint, Source, open_checkpoint
from goca.backbones.loading.embeddings import Conditioning, PromptEmbeddings
from goca.backbones.loading.lora import Lora, find_lora
from goca.backbones.loading.quantization import Quantization, check_quantization
from goca.backbones.loading.weight_files import is_text
from goca.errors import ModelError
from goca.hub.digests import file_digest


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class Pretrained(ABC):
    """Where a pipeline comes from and how it is held; `conf/model/base/loading.yaml` has the defaults.

    Constructing one reads nothing; `inspect()` reads configurations and tokenizers, `load()` the weights.

    Args:
        checkpoint: hub id or local folder of a diffusers pipeline.
        revision, variant: as in `DiffusionPipeline.from_pretrained`.
        allow_pickle: read pickled weights (.bin) where there are no safetensors; tensors alone, no other object.
        lora: LoRA weights, fused after loading: a file, a folder that holds one, or owner/name on the hub, with @revision
            and /file.safetensors where they are needed.
        file: weights in one .safetensors or .gguf file: the denoiser's, or a whole checkpoint's. Configurations, tokenizers and
            what the file lacks come from `checkpoint`.
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
    file: str | None = None
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
            if self.file and self.file.endswith(".gguf"):
                raise ModelError("model.quantization: a .gguf file is quantised already; leave it null")
            check_quantization(self.quantization, self.torch_device)
        self.adopt(pipelines.load_skeleton(self.opened), encoders_left_out=True)
        return self

    def load(self, pipeline: DiffusionPipeline | None = None) -> Self:
        """Read the weights, or take a pipeline in memory, onto the chosen device and dtype; raises as `inspect` does."""
        self._choose()
        if pipeline is not None:
            self._refuse_changes()
        without_encoders = pipeline is None and self.text_encoders == "first"
        if pipeline is None:
            self.inspect()  # configuration errors are raised before weights are read
            lora = self.found_lora
            pipeline, unexpected = pipelines.load_pipeline(
                self.opened, self.torch_dtype, self.quantization, without_encoders, lora
            )
            self.unexpected_keys |= unexpected
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
        self.adopt(architectures.skeleton(self.checkpoint) if published else pipelines.load_skeleton(self.opened), True)
        return self

    def adopt(self, pipeline: Any, encoders_left_out: bool) -> None:
        """Make a pipeline this object's own."""
        self.pipeline: Any = pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self._encoders_left_out = encoders_left_out

    def borrow(self, pipeline: Any) -> Self:
        """Look at a pipeline in memory as it is: nothing of it is changed, moved or freed."""
        self._refuse_changes()
        self.pipeline = pipeline
        self._encoders_left_out = False
        denoiser = getattr(pipeline, self.denoiser_name)
        self.torch_device, self.torch_dtype = denoiser.device, denoiser.dtype
        return self

    def _refuse_changes(self) -> None:
        """Raises ModelError for settings that say what to load, which a pipeline in memory has behind it."""
        for name in ("lora", "file", "quantization"):
            if getattr(self, name):
                raise ModelError(f"model.{name}: a pipeline in memory is taken as it is; load this into it before")

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
            file=self.file,
            denoiser=self.denoiser_name,
        )

    @cached_property
    def opened(self) -> Checkpoint:
        """The checkpoint at one commit, for as long as this object lives."""
        return open_checkpoint(self._source)

    @cached_property
    def found_lora(self) -> Lora | None:
        return find_lora(self.lora, self.allow_pickle) if self.lora else None

    @cached_property
    def unexpected_keys(self) -> dict[str, list[str]]:
        """By component, keys of the checkpoint's files that belong to no weight, as far as it has been loaded."""
        return {}

    @property
    def checkpoint_id(self) -> str:
        """The checkpoint and its revision, for results; a bundled or local folder goes by its name."""
        name = Path(self.checkpoint).name if Path(self.checkpoint).is_dir() else self.checkpoint
        return f"{name}@{self.revision}" if self.revision else name

    def file_digests(self) -> dict[str, str] | None:
        """SHA-256 of every file that a run with these settings is computed from, by path; None for a pipeline from memory.

        Text encoders need not be on this machine where their embeddings come from a cache, which notes what made them.
        """
        if "opened" not in self.__dict__:
            return None
        names = self.opened.components
        found = {INDEX: file_digest(self.opened.fetch([INDEX]) / INDEX)}
        found |= self.opened.digests([name for name in names if not is_text(name)]) or {}
        text = [name for name in names if is_text(name)]
        found |= self.opened.digests(text) or self.embeddings.made_by() or {}
        if self.opened.file is not None:
            found["file"] = self.opened.file.digest
        if self.found_lora is not None:
            found["lora"] = self.found_lora.digest
        return found

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
        return PromptEmbeddings(self.torch_device, folder, self._text_identity)

    @property
    def _text_identity(self) -> str:
        """Whatever determines an embedding."""
        if "opened" not in self.__dict__:
            return f"in memory {self.checkpoint} {self.text_options}"
        text = [name for name in self.opened.components if is_text(name)]
        where = f"{self.checkpoint}@{self.opened.commit}" if self.opened.commit else str(self.opened.digests(text))
        lora = self.found_lora.digest if self.found_lora else None
        options: tuple[Any, ...] = (self.variant, self.allow_pickle, lora, self.quantization, self.torch_dtype)
        if self.opened.file is not None and any(map(self.opened.from_file, text)):
            options += (self.opened.file.digest,)
        return f"{where} {options} {self.text_options}"

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
                if "opened" in self.__dict__ and self.embeddings.on_disk:
                    self.embeddings.note(self.opened.digests([name for name in self.opened.components if is_text(name)]) or {})
                for text in new:  # one at a time, so that a batch never changes an embedding
                    self.embeddings[text] = self.encode_text([text])

    @contextmanager
    def _encoders(self) -> Iterator[None]:
        """The pipeline with its text encoders, which leave again if they were not resident."""
        if not self._encoders_left_out:
            yield
            return
        encoders, unexpected = pipelines.load_text_encoders(self.opened, self.torch_dtype, self.quantization)
        self.unexpected_keys |= unexpected
        for name in encoders:
            pipelines.place(encoders[name], self.torch_device, self.torch_dtype, self.placement)
        self.pipeline.register_modules(**encoders)
        try:
            yield
        finally:
            self.pipeline.register_modules(**dict.fromkeys(encoders))
            encoders.clear()
            pipelines.free_memory()
