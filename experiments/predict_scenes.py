"""Names of scenes' classes as the bundled classifier finds them, for prompts=predicted.

python -m experiments.predict_scenes scenes.json
python -m goca.run prompts=predicted prompts.model=null prompts.path=scenes.json prompts.share=0.5 protocol=ovss
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from goca import config
from goca.data.base import SegmentationDataset
from goca.scenes.classifier import LABELS, SceneClassifier


def predictions(dataset: SegmentationDataset) -> dict[str, dict[str, float]]:
    """Image id -> probability of each class."""
    classifier, found = SceneClassifier.load(), {}
    for position, image_id in enumerate(dataset.image_ids):
        pixels = torch.from_numpy(dataset[position].image).permute(2, 0, 1).float() / 127.5 - 1
        probabilities = classifier.describe(pixels[None])[1][0].tolist()
        found[image_id] = dict(zip(LABELS, (round(value, 6) for value in probabilities), strict=True))
    return found


def main(path: Path, *overrides: str) -> None:
    """Write the predictions for the data set of a configuration."""
    dataset = config.build(config.compose(["dataset=scenes", *overrides]), "dataset")
    dataset.setup()
    path.write_text(json.dumps(predictions(dataset), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
