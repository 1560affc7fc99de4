"""Run folders and reports made up for tests of what shows results: small, seeded, and without any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.figures.example import Example
from goca.method.calibration import ClassMaps
from goca.prediction import Prediction
from goca.prompts import Prompt
from goca.runs.folder import RunFolder
from goca.runs.metrics import confusion
from goca.runs.records import Facts, ImageRecord
from goca.runs.report import Report, segmentation_report
from goca.runs.summary import compact, summarize

CLASSES = ClassTable.from_names(["cat", "grass <b>", "$ky|"])
TAUS = (0.0, 0.25, 0.5)
SIZE = 12


def labels(image: int, noise: float, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """Ground truth (H, W) of one image and predictions (T, H, W) of which a share of pixels is wrong, least at tau 0.25."""
    rng = np.random.default_rng([image, seed])
    truth = np.kron(np.random.default_rng(image).integers(0, len(CLASSES), (3, 3)), np.ones((4, 4), int)).astype(np.uint8)
    wrong = [np.where(rng.random((SIZE, SIZE)) < min(1, noise * k), rng.integers(0, 4, (SIZE, SIZE)), truth) for k in (2, 1, 3)]
    return truth, torch.from_numpy(np.stack(wrong).astype(np.uint8))


def record(image: int, noise: float, seed: int = 0) -> ImageRecord:
    """A record as the Recorder writes it."""
    truth, predicted = labels(image, noise, seed)
    return ImageRecord(
        image_id=f"image {image}",
        prompts=["cat, grass <b>"],
        classes=[1, 2],
        confusion=compact(confusion(predicted, torch.from_numpy(truth), len(CLASSES))),
        near_ties=[image, 2, 3],
        layer_weights={"down.attn2": 0.25 + 0.01 * image, "up.attn2": 0.75 - 0.01 * image},
        seconds={"forward": 0.2, "decide": 0.05},
        warnings=["3 tokens were cut"] if image == 0 else [],
    )


def run_folder(path: Path, noise: float = 0.2, images: int = 6, seed: int = 0, **summary: Any) -> Path:
    """A run folder; `summary` overrides what the run says about itself, `config` adds to its configuration."""
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    for image in range(images):
        folder.append(record(image, noise, seed))
    folder.close()
    config = {"group": "made up", "seed": 0, "aggregation": {"heads": "average"}, **summary.pop("config", {})}
    OmegaConf.save(OmegaConf.create(config), path / "config.yaml")
    facts = Facts(
        dataset="made up",
        split="val",
        model="tiny",
        method="goca",
        protocol="standard",
        prompts={"source": "classes", "ground_truth": True},
        classes=list(CLASSES.names),
        thresholds=list(TAUS),
        unseen_classes="skip",
        has_background=True,
    )
    numbers = summarize(facts, folder.records()).json | {"seed": 0, "peak_memory_bytes": 2**20}
    folder.write_json("run.json", facts.json)
    folder.write_json("summary.json", numbers | summary)
    return path


def example(image: int, noise: float = 0.2) -> Example:
    """A drawn image with maps of every stage."""
    truth, predicted = labels(image, noise)
    rng = torch.Generator().manual_seed(image)
    maps = ClassMaps((1, 2), torch.rand(2, 4, 4, generator=rng), torch.zeros(4, 4), torch.rand(2, 4, 4, generator=rng))
    prompt = Prompt("cat, grass", ("<s>", "cat", ",", "gra", "ss", "</s>"), {1: (1,), 2: (3, 4)}, special={"start": (0,)})
    picture = np.random.default_rng(image).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    prediction = Prediction(
        image_id=f"image {image}",
        labels=predicted,
        maps=maps,
        calibrated=maps,
        token_maps=torch.rand(6, 4, 4, generator=rng),
        prompts=(prompt,),
        layer_weights={"down.attn2": 0.3, "up.attn2": 0.7},
        head_weights={"down.attn2": [0.4, 0.6], "up.attn2": [0.1, 0.2, 0.7]},
        warnings=(),
    )
    return Example.of(Sample(f"image {image}", picture, truth, (1, 2, 3)), prediction)


def report(folder: Path) -> Report:
    """The report of a made-up run with two drawn images."""
    output = RunFolder(run_folder(folder))
    for number in (0, 1):
        example(number).save(output.drawn / f"{number}.npz")
    config = {"group": "made up", "aggregation": {"heads": "dot_product"}, "model": {"name": "tiny", "size": 32}}
    return segmentation_report(output, config, output.summary(), CLASSES)
