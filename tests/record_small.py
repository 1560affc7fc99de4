"""`python -m tests.record_small docs/verified/small.json`: records of every family's small pipeline."""

import json
import sys
from pathlib import Path

from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.verify import verify
from tests.helpers.saved_pipeline import goca_aggregation
from tests.helpers.tiny_pipelines import FAMILIES, tiny_backbone, tiny_pipeline


def record(family: str) -> dict:
    backbone = tiny_backbone(family).load(tiny_pipeline(family))
    scenes = Scenes(protocol=Protocol("standard", "ignore", "skip", "classes"))
    found = verify(backbone, goca_aggregation(backbone), "small", [scenes[0].image], ["circle", "grass"])
    del found["seconds"], found["peak_gib"]  # of a small pipeline they say nothing
    return {**found, "model": FAMILIES[family].model or family}


if __name__ == "__main__":
    rows = [record(family) for family, row in FAMILIES.items() if row.model in ("", "sd15")]
    Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print({row["model"]: row["passed"] for row in rows})
