"""The bundled data set: generated scenes, which need no files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from goca.data.base import CONFIG, Sample, SegmentationDataset, present_classes
from goca.scenes.generator import TEST_SEEDS, TRAIN_SEEDS, scene


@dataclass(config=CONFIG, kw_only=True)
class Scenes(SegmentationDataset):
    """`count` scenes from the front of the split's seeds; an image's id is its seed, its caption the words of what is visible.

    Args:
        size: side of the pictures in pixels.
        colours: `typical` or the harder `random`, see `goca.scenes.generator.scene`.
        look: `plain`, or `camouflage`: the same scenes painted so that colour does not give an object away.
        count: number of scenes.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("train", "test")
    UPSTREAM_SPLIT: ClassVar[str] = "test"

    name: str = "scenes"
    split: str | None = "test"
    size: Annotated[int, Field(ge=16, le=4096)] = 64
    colours: Literal["typical", "random"] = "typical"
    look: Literal["plain", "camouflage"] = "plain"
    count: Annotated[int, Field(ge=1, le=len(TEST_SEEDS))] = 100

    def __post_init__(self) -> None:
        self.split = self.split or "test"
        if self.look == "camouflage" and self.colours != "typical":
            raise ValueError("look=camouflage takes its colours from the ground; leave colours out")
        if self.look != "plain" and self.name == "scenes":
            # Other pictures: their numbers are not ranked with those of the plain ones.
            self.name, self.table = f"scenes_{self.look}", self.table or "scenes"
        super().__post_init__()

    @property
    def label_rules(self) -> Mapping[str, Any]:
        usual = {"size": 64, "colours": "typical"}
        return {key: getattr(self, key) for key, value in usual.items() if getattr(self, key) != value}

    def list_ids(self) -> list[str]:
        return [str(seed) for seed in (TEST_SEEDS if self.split == "test" else TRAIN_SEEDS)[: self.count]]

    def image_path(self, image_id: str) -> Path:
        raise NotImplementedError("scenes have no files")

    def __getitem__(self, index: int) -> Sample:
        self.setup()
        drawn = scene(int(self.image_ids[index]), self.size, self.colours, self.look)
        return Sample(self.image_ids[index], drawn.image, drawn.label, present_classes(drawn.label), ", ".join(drawn.words))
