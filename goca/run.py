"""`python -m goca.run dataset=voc model=sd15`: compose, build, evaluate, report."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import diffusers
import hydra
import pytorch_lightning as pl
import transformers
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from goca import config
from goca.callbacks import Figures, Recorder, RunningMiou
from goca.data.datamodule import SegmentationDataModule
from goca.gallery import Gallery
from goca.loggers import Logger, Report
from goca.metrics import SegmentationMetric
from goca.paths import CONF
from goca.report import print_summary
from goca.results import RunFolder, environment, summarize
from goca.segmentor import Segmentor
from goca.timing import peak_memory_bytes


def evaluate(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Run one experiment and leave its records, summary and figures in `folder`; returns the summary.

    Everything cheap is built and checked first: the configuration, the folder, the data, the prompts; then the model loads.

    Raises:
        GocaError: whatever a person can mend, as one message.
    """
    data: SegmentationDataModule = config.build(cfg, "data")
    prompts = config.build(cfg, "prompts")
    logger: Logger = config.build(cfg, "logger")
    decision = config.build(cfg, "decision")
    dataset = data.dataset
    metric = SegmentationMetric(
        num_classes=len(dataset.classes),
        thresholds=decision.taus(dataset.has_background),
        unseen_classes=dataset.protocol.unseen_classes,
        has_background=dataset.has_background,
    )
    segmentor = Segmentor.from_components(cfg, dataset.classes, dataset.has_background, metric, prompts)
    trainer_options = config.plain(cfg.trainer)
    output = RunFolder(folder)
    data.setup()
    prompts.setup(dataset, data.image_ids)
    segmentor.backbone.load()
    segmentor.check()
    data.size = segmentor.backbone.size

    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    figures = Figures(cfg.figures.count)
    callbacks: list[pl.Callback] = [
        Recorder(output, save_predictions=cfg.save_predictions),
        Gallery(folder, cfg.figures.gallery),
        figures,
    ]
    if trainer_options.pop("enable_progress_bar", True):
        callbacks.append(RunningMiou())
    trainer = pl.Trainer(
        accelerator="cpu" if segmentor.backbone.torch_device.type == "cpu" else "auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(callback, RunningMiou) for callback in callbacks),
        callbacks=callbacks,
        **trainer_options,
    )
    trainer.predict(segmentor, data, return_predictions=False)
    output.close()

    summary: dict[str, Any] = {
        "dataset": dataset.name,
        "split": dataset.split,
        "model": segmentor.backbone.name,
        "method": method_name(cfg),
        "protocol": dataset.protocol.name,
        "prompts": prompts.describe(),
        "classes": list(dataset.classes.names),
        "unseen_classes": dataset.protocol.unseen_classes,
        "has_background": dataset.has_background,
    }
    summary |= summarize(
        output.records(), dataset.classes.names, metric.thresholds, dataset.protocol.unseen_classes, dataset.has_background
    )
    summary |= {
        "seed": cfg.seed,
        "device": str(segmentor.backbone.torch_device),
        "dtype": str(segmentor.backbone.torch_dtype).removeprefix("torch."),
        "checkpoint": segmentor.backbone.checkpoint_id,
        "peak_memory_bytes": peak_memory_bytes(),
    } | environment()
    output.write_json("summary.json", summary)
    pictures = figures.draw(output, dataset.classes, list(metric.thresholds).index(summary.get("threshold")))
    report = Report(folder, config.plain(cfg), summary, dataset.classes, pictures, figures.examples(summary, metric.thresholds))
    where = logger.log_safely(report)

    console = Console()
    print_summary(summary, console)
    console.print(
        f"numbers   {folder / 'summary.json'}\nrecords   {folder / 'records.jsonl'}\npictures  {output.figures}",
        highlight=False,
        soft_wrap=True,
    )
    if where:
        console.print(f"logged    {where}", highlight=False, soft_wrap=True)
    return summary


def method_name(cfg: DictConfig) -> str:
    """The method in one phrase: the preset, or the choices that make it up."""
    try:
        choices: Any = HydraConfig.get().runtime.choices
    except ValueError:  # composed by hand, without Hydra's own section
        return "custom"
    if choices.preset not in (None, "none"):
        return str(choices.preset)
    return ", ".join(f"{group}={choices[group]}" for group in ("aggregation", "calibration", "refinement", "decision"))


def quiet() -> None:
    """Silence what libraries say about things that are as they should be."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> float | None:
    quiet()
    with config.job():
        miou: float | None = evaluate(cfg, Path(HydraConfig.get().runtime.output_dir))["miou"]
        return miou
    return None


if __name__ == "__main__":
    config.command(main)
