"""What is measured on pictures: features for a Frechet distance, agreement of picture and text, classes that are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from goca.backbones.loading.pipelines import choose_device
from goca.errors import ModelError
from goca.hub.models import model_folder
from goca.scenes.classifier import SIDE, SceneClassifier, targets

_CONFIG = ConfigDict(extra="forbid")


@dataclass(config=_CONFIG)
class Features:
    """A source of feature vectors. `distance` is what the Frechet distance over them may be called."""

    device: str = "auto"

    distance: ClassVar[str]
    dimensions: ClassVar[int]
    side: ClassVar[int | None] = None  # pixels that pictures are brought to; None leaves them at the size they are compared at

    def load(self) -> None:
        """Read the weights; raises ModelError where there are none."""
        raise NotImplementedError

    def __call__(self, images: Tensor, texts: list[str]) -> Mapping[str, Tensor]:
        """(B, 3, h, w) uint8 -> `features` (B, D), perhaps more."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Extractor and weights, for the report and for caches."""
        raise NotImplementedError


def no_features() -> None:
    """`extractor=none`: no Frechet distance."""
    return


@dataclass(config=_CONFIG)
class SceneFeatures(Features):
    """The bundled classifier of scenes: needs nothing, and is meaningful for pictures of scenes alone."""

    distance: ClassVar[str] = "scenes distance"
    dimensions: ClassVar[int] = SceneClassifier.FEATURES
    side: ClassVar[int | None] = SIDE

    def load(self) -> None:
        self._classifier = SceneClassifier.load()

    @property
    def identity(self) -> str:
        return f"scenes classifier, {self.dimensions} features"

    def __call__(self, images: Tensor, texts: list[str]) -> Mapping[str, Tensor]:
        """Also `right` (B, 14): whether each class is shown as the text says, and `found` (B, 2): shown of named, and named."""
        features, probabilities = self._classifier.describe(images.float() / 127.5 - 1)
        named = torch.stack([targets(re.split(r"\W+", text)) for text in texts])
        shown = probabilities > 0.5
        found = torch.stack([(shown * named).sum(1), named.sum(1)], dim=1)
        return {"features": features, "right": shown == named.bool(), "found": found}


@dataclass(config=_CONFIG)
class InceptionFeatures(Features):
    """Inception-v3 as the Frechet inception distance (FID) is defined, by torchmetrics and torch-fidelity.

    Args:
        weights: local file of torch-fidelity's weights; None lets that package fetch them.
    """

    weights: str | None = None

    distance: ClassVar[str] = "FID"
    dimensions: ClassVar[int] = 2048

    def load(self) -> None:
        if self.weights is not None and not Path(self.weights).is_file():
            raise ModelError(f"extractor.weights: there is no file {self.weights}")
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            network = NoTrainInceptionV3("inception-v3-compat", [str(self.dimensions)], self.weights)
        except ImportError as error:
            raise ModelError(
                "extractor=inception needs torch-fidelity and torchvision; take torchvision from the index that torch came from"
            ) from error
        except (OSError, RuntimeError) as error:
            raise ModelError(
                f"extractor: Inception's weights cannot be had ({error}); set extractor.weights to a file"
            ) from error
        self._device = choose_device(self.device)
        self._network: Any = network.to(self._device)

    @property
    def identity(self) -> str:
        return f"Inception-v3 (torch-fidelity), {self.dimensions} features, resized to 299 px by it"

    @torch.inference_mode()
    def __call__(self, images: Tensor, texts: list[str]) -> Mapping[str, Tensor]:
        return {"features": self._network(images.to(self._device))}


@dataclass(config=_CONFIG)
class ClipScore:
    """100 times the cosine of CLIP's image and text embedding, at least 0 (Hessel et al. 2021, as torchmetrics computes it).

    Args:
        model: hub id or local folder of a CLIP model.
        device: as for a backbone.
    """

    model: Annotated[str, Field(min_length=1)] = "openai/clip-vit-base-patch16"
    device: str = "auto"

    def load(self) -> None:
        """Read the weights; raises ModelError where there are none."""
        folder = model_folder(self.model, None, "clip.model")
        try:
            self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
            network: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"clip.model: {self.model} cannot be loaded as a CLIP model ({error}); give a local folder"
            ) from error
        self._device = choose_device(self.device)
        self._network = network.eval().to(self._device)

    @property
    def identity(self) -> str:
        return f"CLIP score, {self.model}"

    @torch.inference_mode()
    def __call__(self, images: Tensor, texts: list[str]) -> Mapping[str, Tensor]:
        """`score` (B,)."""
        inputs = self._processor(
            text=texts, images=list(images), return_tensors="pt", padding=True, truncation=True, max_length=77
        )
        output = self._network(**inputs.to(self._device))
        return {"score": 100 * F.cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0)}
