"""A small classifier of scenes: which classes a picture shows, and features for comparing sets of pictures offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from goca.errors import ModelError
from goca.paths import BUNDLED
from goca.scenes.generator import CLASSES

WEIGHTS = BUNDLED / "scenes_classifier" / "model.safetensors"
LABELS = CLASSES[1:]  # index = output of the classifier
SIDE = 64  # px of the pictures it was trained on


class SceneClassifier(nn.Module):
    """Multi-label classifier of 64 px pictures with 64 features, 0.1 million parameters.

    >>> logits = SceneClassifier()(torch.zeros(2, 3, 64, 64))
    >>> tuple(logits.shape) == (2, len(LABELS))
    True
    """

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 24, 2), (24, 48, 2), (48, 64, 1), (64, 64, 2), (64, 64, 1))
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o, stride in widths
        ]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(2 * self.FEATURES, len(LABELS))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [-1, 1] -> logits (B, 14)."""
        return self.logits(self.body(pixels))

    def logits(self, maps: Tensor) -> Tensor:
        """Mean and maximum over the picture: stuff fills it, objects may be small."""
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))

    @torch.inference_mode()
    def describe(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64), the mean of the last maps, and probabilities of the classes (B, 14)."""
        maps = self.body(pixels)
        return maps.mean((2, 3)), self.logits(maps).sigmoid()

    def save(self, path: Path) -> None:
        """Write the weights."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> SceneClassifier:
        """The trained classifier, for inference.

        Raises:
            ModelError: the weights are not there or do not fit.
        """
        classifier = cls()
        try:
            classifier.load_state_dict(load_file(path))
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"the scenes classifier cannot be read from {path}: {error}") from error
        return classifier.eval()


def targets(words: Sequence[str]) -> Tensor:
    """Which classes are named: (14,) of 0 and 1; words that are no class of scenes are passed over.

    >>> targets(["grass", "moon"]).nonzero().flatten().tolist() == [LABELS.index("grass"), LABELS.index("moon")]
    True
    """
    named = set(words)
    return torch.tensor([float(label in named) for label in LABELS])
