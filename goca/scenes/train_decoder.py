"""Train the decoder of a bundled pipeline further while its encoder stays: `python -m goca.scenes.train_decoder`.

Denoisers learn on the encoder's latents and segmentation reads nothing else: a better decoder changes generated pictures alone.
The pipeline's folder is updated in place.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.scenes.train_decoder", "train_decoder")

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from goca import config
from goca.errors import ModelError
from goca.scenes.datasets import ScenePixels, to_pixels
from goca.scenes.generator import TEST_SEEDS, scene


class DecoderTraining(pl.LightningModule):
    """Reconstruction (L1 + L2) of scenes from the latents of a frozen encoder."""

    def __init__(self, vae: Any, steps: int, learning_rate: float) -> None:
        super().__init__()
        self.vae, self.steps, self.learning_rate = vae, steps, learning_rate
        self.vae.requires_grad_(False)
        self.decoder_parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        for parameter in self.decoder_parameters:
            parameter.requires_grad_(True)

    def training_step(self, images: Tensor, _: int) -> Tensor:
        with torch.no_grad():
            latents = self.vae.encode(images).latent_dist.sample()
        decoded = self.vae.decode(latents).sample
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.decoder_parameters, lr=self.learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.learning_rate, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.inference_mode()
def reconstruction_error(vae: Any, pixels: Tensor) -> float:
    """Mean absolute error of encoding and decoding pictures in [-1, 1]."""
    return (vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1) - pixels).abs().mean().item()


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train and save; returns the error on test scenes before and after.

    Raises:
        ModelError: the pipeline has no autoencoder.
    """
    pl.seed_everything(cfg.seed)
    torch.set_num_threads(cfg.threads)
    folder = Path(cfg.pipeline) / "vae"
    try:
        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    except OSError as error:
        raise ModelError(f"pipeline: {cfg.pipeline} has no autoencoder in its folder vae; give a diffusers pipeline") from error
    held_out = torch.stack([to_pixels(scene(seed, cfg.size).image) for seed in TEST_SEEDS[:64]])
    before = reconstruction_error(vae.eval(), held_out)
    training = DecoderTraining(vae, cfg.steps, cfg.learning_rate)
    trainer = pl.Trainer(
        max_steps=cfg.steps, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=1.0
    )
    trainer.fit(training, DataLoader(ScenePixels(cfg.scenes, cfg.size), cfg.batch_size, shuffle=True, drop_last=True))
    after = reconstruction_error(vae.eval(), held_out)
    vae.to(torch.float16).save_pretrained(Path(cfg.output) / "vae", safe_serialization=True)
    report = {"steps": cfg.steps, "error_before": round(before, 4), "error_after": round(after, 4)}
    (Path(cfg.output) / "decoder.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "train_decoder"):
        print(train(cfg))
