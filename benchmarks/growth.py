"""How the cost of GoCA with affinity grows: `python -m benchmarks.growth`, and with `--peers` that of stored maps.

Image size, number of classes, number of layers and batch vary one at a time around Stable Diffusion 1.5 at 256 px with 4
classes, 16 layers and one image. What is counted is the time beyond the bare forward pass: the stages aggregate to decide.
One line per setting is appended to outputs/benchmarks/results.jsonl; arguments such as `repeats=3` go to benchmarks.forward.

`--peers` varies the size alone, with what keeps all maps until the end beside what streams: `benchmarks.paired` times them by
turns in one process, and takes each one's peak memory in a process of its own. Further arguments go there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine

STAGES = ("aggregate", "calibrate", "refine", "decide")
BASE = {"size": 256, "classes": 4, "layers": "null", "batch": 1}
SETTINGS = {
    "size": [256, 512, 768],
    "classes": [1, 40, 150],
    "layers": ["mid_block*attn2", "up_blocks*attn2"],
    "batch": [1, 4],
}


PEERS = ("bare", "daam", "daam, maps stored", "goca, maps stored", "goca+affinity")
PEER_SIZES = (256, 384, 512)


def peers(arguments: list[str]) -> None:
    """Lines of everything in `PEERS` at every size."""
    for size in PEER_SIZES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.json")
            fixed = ["--models", "sd15:1", "--dtype", "float32", "--variants", *PEERS, "--memory", "--out", str(file)]
            command = [sys.executable, "-m", "benchmarks.paired", *fixed, *arguments, f"model.size={size}"]
            subprocess.run(command, check=True)
            for row in json.loads(file.read_text()):
                machine.append(row | {"benchmark": "growth peers"})


def main(arguments: list[str]) -> None:
    if "--peers" in arguments:
        peers([argument for argument in arguments if argument != "--peers"])
        return
    table = Table(title="seconds an image beyond the bare forward: sd15, goca+affinity")
    for column in ("varied", "value", "layers", "prompts", *STAGES, "sum", "whole image", "peak GB"):
        table.add_column(column, justify="left" if column == "varied" else "right")
    for varied, values in SETTINGS.items():
        for value in values:
            setting = {**BASE, varied: value}
            options = ["variant=goca+affinity", "repeats=1", *(f"{key}={setting[key]}" for key in setting), *arguments]
            found = machine.measured_apart("benchmarks.forward", options)
            stages = [found["stages"].get(stage, 0.0) for stage in STAGES]
            line = {"benchmark": "growth", "variant": "goca+affinity", "varied": varied, "model": "sd15", **setting, **found}
            machine.append({**line, "beyond_bare": round(sum(stages), 4), **machine.context(2)})
            table.add_row(
                varied, str(value), str(found["layers"]), str(found["prompts"]), *(f"{stage:.3f}" for stage in stages),
                f"{sum(stages):.3f}", f"{found['seconds']:.2f}", f"{found['peak_bytes'] / 1e9:.2f}",
            )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
