"""Train the scenes classifier: `python -m goca.scenes.train_classifier`. Takes about a quarter of an hour on a CPU core."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.scenes.train_classifier", "train_classifier")

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from goca import config
from goca.ops import gaussian_blur
from goca.scenes.classifier import SIDE, SceneClassifier, targets
from goca.scenes.generator import TEST_SEEDS, TRAIN_SEEDS, scene


def drawn(seeds: range) -> TensorDataset:
    """Scenes as (3, 64, 64) uint8 with their classes."""
    scenes = [scene(seed, SIDE) for seed in seeds]
    images = torch.from_numpy(np.stack([one.image for one in scenes])).permute(0, 3, 1, 2).contiguous()
    return TensorDataset(images, torch.stack([targets(one.words) for one in scenes]))


class ClassifierTraining(pl.LightningModule):
    """Cross-entropy per class, on pictures that are blurred, recoloured and noised a little: decoders do that too."""

    def __init__(self, steps: int, learning_rate: float) -> None:
        super().__init__()
        self.classifier, self.steps, self.learning_rate = SceneClassifier(), steps, learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, wanted = batch
        return F.binary_cross_entropy_with_logits(self.classifier(self.augmented(to_unit(images))), wanted)

    def augmented(self, pixels: Tensor) -> Tensor:
        """One blur for the batch; tone, noise and mirroring for each picture."""
        if torch.rand(()) < 0.5:
            pixels = gaussian_blur(pixels, 5, float(0.3 + 0.7 * torch.rand(())))
        count = len(pixels)
        gain, shift = 1 + 0.1 * torch.randn(count, 3, 1, 1), 0.08 * torch.randn(count, 3, 1, 1)
        pixels = pixels * gain + shift + 0.06 * torch.rand(count, 1, 1, 1) * torch.randn_like(pixels)
        mirrored = torch.rand(count, 1, 1, 1) < 0.5
        return torch.where(mirrored, pixels.flip(3), pixels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.learning_rate, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def to_unit(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.inference_mode()
def accuracy(classifier: SceneClassifier, dataset: TensorDataset) -> dict[str, float]:
    """Share of right yes-or-no answers, and of pictures with all answers right."""
    right = []
    for images, wanted in DataLoader(dataset, batch_size=256):
        right.append((classifier(to_unit(images)) > 0) == wanted.bool())
    answers = torch.cat(right)
    return {"answers": round(answers.float().mean().item(), 5), "pictures": round(answers.all(1).float().mean().item(), 5)}


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, check on scenes of the test range, and write weights and report to `cfg.output`."""
    pl.seed_everything(cfg.seed)
    torch.set_num_threads(cfg.threads)
    dataset = drawn(TRAIN_SEEDS[: cfg.scenes])
    training = ClassifierTraining(cfg.steps, cfg.learning_rate)
    trainer = pl.Trainer(max_steps=cfg.steps, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(training, DataLoader(dataset, cfg.batch_size, shuffle=True, drop_last=True))
    classifier = training.classifier.eval()
    report = {"scenes": cfg.scenes, "steps": cfg.steps, "test": accuracy(classifier, drawn(TEST_SEEDS[: cfg.test_scenes]))}
    classifier.save(Path(cfg.output) / "model.safetensors")
    (Path(cfg.output) / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "train_classifier"):
        print(train(cfg))
