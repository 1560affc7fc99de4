"""Train a bundled backbone from scratch: `python -m goca.scenes.train backbone=scenes_unet`.

First a VAE, then the denoiser together with its text encoder on cached latents. The result is an ordinary diffusers pipeline
folder in float16. Interrupted training continues from its last checkpoint when the same command is run again.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take seconds
    from goca.config.start import start

    start("goca.scenes.train", "train")

import copy
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import hydra
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL
from omegaconf import DictConfig
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import WandbLogger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from goca import config
from goca.errors import ConfigError
from goca.ops import SLOW_HALF, slow_half
from goca.scenes.architectures import denoiser_of, text_encoders_of
from goca.scenes.continued import REPORT, identity, keep_others, settle
from goca.scenes.datasets import CachedLatents, Look, ScenePixels, encode_latents
from goca.scenes.objectives import Objective

log = logging.getLogger(__name__)


class _Training(pl.LightningModule):
    """What both trainings share: AdamW with a linear warm-up and a cosine decay to zero over the whole run."""

    def __init__(self, learning_rate: float, weight_decay: float, steps: int) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay, self.steps = learning_rate, weight_decay, steps

    def on_train_start(self) -> None:
        if self.global_rank:  # all processes start from one seed; each draws its own noise
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, (0.9, 0.99), weight_decay=self.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.learning_rate, total_steps=self.steps, pct_start=0.03, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """By torch itself: Lightning refuses fused optimizers here, for the sake of float16's scaled gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


class VaeTraining(_Training):
    """Reconstruction (L1 + L2) with a light pull of the posterior towards the normal distribution."""

    def __init__(self, vae: nn.Module, kl_weight: float, **optimization: Any) -> None:
        super().__init__(**optimization)
        self.vae: Any = vae
        self.kl_weight = kl_weight

    def training_step(self, images: Tensor, _: int) -> Tensor:
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample
        reconstruction = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
        self.log("vae_loss", reconstruction, prog_bar=True)
        return reconstruction + self.kl_weight * posterior.kl().mean() / images[0].numel()


class DenoiserTraining(_Training):
    """Denoising of latents by words; the text encoders learn along."""

    def __init__(self, pipeline: Any, objective: Objective, held_out: CachedLatents, **optimization: Any) -> None:
        super().__init__(**optimization)
        self.denoiser, self.text_encoders = denoiser_of(pipeline), nn.ModuleList(text_encoders_of(pipeline))
        self.pipeline, self.objective, self.held_out = pipeline, objective, held_out

    def training_step(self, batch: tuple[Tensor, list[str]], _: int) -> Tensor:
        latents, texts = batch
        uniform, noise = torch.rand(len(latents), device=latents.device), torch.randn_like(latents)
        loss = self.objective(self.pipeline, latents, texts, uniform, noise)
        self.log("loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss on scenes of the test range, on a fixed grid of noise levels and with fixed noise."""
        torch.manual_seed(0)  # order of the words
        latents, texts = next(iter(DataLoader(self.held_out, batch_size=len(self.held_out))))
        uniform = (torch.arange(len(latents)) + 0.5) / len(latents)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return self.objective(self.pipeline, latents, texts, uniform, noise).item()


def _fit(module: _Training, dataset: Any, settings: DictConfig, folder: Path, cfg: DictConfig) -> None:
    """Train for `module.steps` steps with an exponential moving average, resuming `folder/last.ckpt` if it is there.

    `settings.batch` is what a step sees, divided among `cfg.devices` processes whose gradients are averaged.
    With `settings.keep_every`, the state of every so many steps stays as `folder/step=N.ckpt`.
    """
    every, kept = (settings.keep_every, -1) if settings.keep_every else (cfg.save_every, 0)
    checkpoint = ModelCheckpoint(folder, "{step}", save_last=True, every_n_train_steps=every, save_top_k=kept)
    trainer = pl.Trainer(
        max_steps=module.steps,
        accelerator=cfg.accelerator,
        devices=cfg.devices,
        strategy="ddp" if cfg.devices > 1 else "auto",
        precision=cfg.precision,
        gradient_clip_val=1.0,
        callbacks=[EMAWeightAveraging(decay=settings.ema), checkpoint, TQDMProgressBar(refresh_rate=100)],
        logger=WandbLogger(project="goca-train", name=cfg.backbone.name) if cfg.wandb else False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    loader = DataLoader(dataset, settings.batch // cfg.devices, shuffle=True, drop_last=True, num_workers=0)
    trainer.fit(module, loader, ckpt_path=str(last) if last.exists() else None, weights_only=False)
    module.eval()


def _load_trained(pipeline: Any, folder: str) -> None:
    """Fill every network of the pipeline with the weights of a trained one's folder.

    Raises:
        ConfigError: no pipeline is there, or one of other networks.
    """
    index, kind = Path(folder, "model_index.json"), type(pipeline).__name__
    found = json.loads(index.read_text(encoding="utf-8")).get("_class_name") if index.is_file() else "no pipeline"
    if found != kind:  # a text encoder of another kind would load, most of it at random
        raise ConfigError(f"start: {folder} holds {found}, and this backbone is a {kind}")
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            trained: Any = type(part)
            try:
                part.load_state_dict(trained.from_pretrained(folder, subfolder=name).state_dict())
            except (OSError, RuntimeError) as error:
                raise ConfigError(f"start: {folder} holds no {name} of this backbone's shape: {error}") from error


def _trained_vae(pipeline: Any, cfg: DictConfig, work: Path) -> None:
    """Fill the pipeline's VAE: from a trained pipeline's folder if one is given, so that backbones share it."""
    if cfg.vae:
        pipeline.vae.load_state_dict(AutoencoderKL.from_pretrained(cfg.vae, subfolder="vae").state_dict())
        return
    settings = cfg.backbone.vae
    training = VaeTraining(pipeline.vae, settings.kl_weight, steps=settings.steps, **settings.optimizer)
    _fit(training, ScenePixels(cfg.scenes, cfg.size, cfg.look), settings, work / "vae", cfg)


def train(cfg: DictConfig) -> Path:
    """Run both trainings of one backbone config and save the pipeline folder; returns that folder.

    Raises:
        ConfigError: a batch that `devices` does not divide; float16; `latents` made of other scenes; a `work` or an `output`
            that holds a training of other settings; a `start` that holds other networks; an unknown look.
    """
    for part in ("vae", "denoiser"):
        batch = cfg.backbone[part].batch
        if cfg.devices < 1 or batch % cfg.devices:
            raise ConfigError(f"devices: {cfg.devices} does not divide backbone.{part}.batch, {batch}")
    if str(cfg.precision).startswith("16"):
        raise ConfigError(f"precision: {cfg.precision} scales gradients, which are clipped unscaled here; bf16-mixed or 32")
    on_cpu = cfg.accelerator == "cpu" or not torch.accelerator.is_available()
    if str(cfg.precision).startswith("bf16") and on_cpu and slow_half(torch.bfloat16, "cpu"):
        log.warning("precision: %s: precision=32", SLOW_HALF)
    if cfg.look not in get_args(Look):
        raise ConfigError(f"look: {cfg.look} is not one of {', '.join(get_args(Look))}")
    torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed)
    started = time.monotonic()
    work = Path(cfg.work) / cfg.backbone.name
    chosen = settle(cfg, work)
    folder = Path(cfg.output) / cfg.backbone.name
    kept = range(every, cfg.backbone.denoiser.steps, every) if (every := cfg.backbone.denoiser.keep_every) else ()
    for place in (folder, *(_early(folder, step) for step in kept)):
        keep_others(cfg, chosen, place)
    pipeline: Any = hydra.utils.instantiate(cfg.backbone.pipeline)
    if cfg.start:
        _load_trained(pipeline, cfg.start)
    _trained_vae(pipeline, cfg, work)
    cache = Path(cfg.latents)
    train_latents, held_out, scale = encode_latents(pipeline.vae, cfg.scenes, cfg.held_out, cfg.size, cache, cfg.look)
    pipeline.vae.register_to_config(scaling_factor=scale)

    settings = cfg.backbone.denoiser
    objective = hydra.utils.instantiate(settings.objective)
    denoiser = DenoiserTraining(pipeline, objective, held_out, steps=settings.steps, **settings.optimizer)
    if cfg.compile:
        denoiser.denoiser.compile(dynamic=False)
    # At head widths of 16 and 32 explicit attention in half precision trains faster on a CPU core than the fused kernel.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # despite its name, this setting also affects the CPU
    with sdpa_kernel(SDPBackend.MATH):
        _fit(denoiser, train_latents, settings, work / "denoiser", cfg)

    if denoiser.global_rank:  # the first process saves
        return folder
    minutes = (time.monotonic() - started) / 60
    _save(denoiser, folder, cfg, chosen, settings.steps, minutes)
    for checkpoint in (work / "denoiser").glob("step=*.ckpt"):
        step = int(checkpoint.stem.removeprefix("step="))
        if step < settings.steps:
            denoiser.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
            _save(denoiser, _early(folder, step), cfg, chosen, step, None)
    return folder


def _early(folder: Path, step: int) -> Path:
    """Where the pipeline of a step before the last one goes."""
    return folder.with_name(f"{folder.name}_{step}")


def _save(
    denoiser: DenoiserTraining, folder: Path, cfg: DictConfig, chosen: Mapping[str, Any], steps: int, minutes: float | None
) -> None:
    """Write the pipeline in float16 with `training.json` beside it."""
    report = {
        **identity(cfg),
        "steps": steps,
        "predicts": denoiser.objective.predicts,
        "held_out_loss": round(denoiser.held_out_loss(), 5),
        "minutes": None if minutes is None else round(minutes, 1),
        "devices": cfg.devices,
        "threads": cfg.threads,
        "denoiser_parameters": sum(p.numel() for p in denoiser.denoiser.parameters()),
        "text_encoder_parameters": sum(p.numel() for p in denoiser.text_encoders.parameters()),
    }
    copy.deepcopy(denoiser.pipeline).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    name_as_published(folder)
    (folder / REPORT).write_text(json.dumps({**report, "settings": chosen}, indent=2) + "\n")
    log.info("saved %s: %s", folder, report)


def name_as_published(folder: Path) -> None:
    """Give weights of CLIP text encoders in a pipeline folder the prefix `text_model.`, which published checkpoints have.

    Recent versions of transformers read both spellings and save without it; the oldest that GoCA takes reads this one alone.
    """
    for config_file in folder.glob("text_encoder*/config.json"):
        file = config_file.with_name("model.safetensors")
        if json.loads(config_file.read_text(encoding="utf-8"))["architectures"] != ["CLIPTextModel"]:
            continue
        weights = load_file(file)
        prefix = "text_model."
        save_file({prefix + name.removeprefix(prefix): value for name, value in weights.items()}, file, {"format": "pt"})


def main(cfg: DictConfig) -> None:
    """What the command does with its composed configuration."""
    with config.job(cfg, "train"):
        train(cfg)
