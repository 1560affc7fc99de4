"""Images per second of the whole evaluation, split by stage: `python -m benchmarks.evaluate limit=200 data.batch_size=8`.

Arguments are those of `python -m goca.run`; the default is the default job. One line is appended to
outputs/benchmarks/results.jsonl.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from goca import config
from goca.runs.evaluation import evaluate

WARM_UP = 16  # images


def main() -> None:
    config.quiet()
    cfg = config.compose(["logger=none", "figures.count=0", "dataset.count=2000", "limit=200", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        warm = cfg.copy()
        warm.limit = WARM_UP
        evaluate(warm, Path(folder) / "warm")
        started = time.perf_counter()
        summary = evaluate(cfg, Path(folder) / "measured")
        wall = time.perf_counter() - started
    stages = summary["seconds_by_stage"]
    per_second = 1 / summary["seconds_per_image"]
    table = Table(title=f"{summary['model']} on {summary['dataset']}: {per_second:.1f} images per second")
    for column in ("stage", "ms / image", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        table.add_row(stage, f"{1000 * seconds:.2f}", f"{100 * seconds / summary['seconds_per_image']:.0f} %")
    Console().print(table)
    machine.append(
        {
            "variant": "evaluate",
            "model": summary["model"],
            "size": cfg.model.size,
            "dtype": summary["dtype"],
            "device": summary["device"],
            "batch": cfg.data.batch_size,
            "images": summary["images"],
            "images_per_second": round(per_second, 2),
            "seconds_with_loading_the_model": round(wall, 1),
            "stages": stages,
            "peak_bytes": summary["peak_memory_bytes"],
            **machine.context(torch.get_num_threads()),
        }
    )


if __name__ == "__main__":
    main()
