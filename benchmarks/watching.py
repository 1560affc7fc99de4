"""Time and memory of drawing while being watched, beside plain drawing: `python -m benchmarks.watching --model sd15`.

Both draw by turns in one process, so that the ratio of times is taken within the run; a step is the processor time from one
denoiser call to the next, its forward with both halves of guidance and the scheduler, and the median counts, without the first
step of each drawing. Memory is the peak of two processes of their own; several numbers of `--steps` show how it grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import torch

import goca
from benchmarks import machine
from benchmarks.random_pipelines import PIPELINES
from goca.timing import peak_memory_bytes

TEXT = "a circle and a star on grass, water"


def draw(pipeline: Any, size: int, steps: int, marks: list[float]) -> None:
    """One picture's latents; the processor time at every call of the denoiser, and at the end, goes to `marks`."""
    handle = pipeline.unet.register_forward_pre_hook(lambda *_: marks.append(time.process_time()))
    pipeline(
        TEXT,
        height=size,
        width=size,
        num_inference_steps=steps,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    handle.remove()
    marks.append(time.process_time())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What one variant took in this process: seconds of every step, and the peak of memory."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pipeline: Any = PIPELINES[options.model]()
    pipeline.set_progress_bar_config(disable=True)
    seconds: dict[str, list[float]] = {"plain": [], "watched": []}
    turns = {"plain": ["plain"], "watched": ["watched"], "turns": ["plain", "watched"] * options.rounds}[options.variant]
    for turn in turns:
        marks: list[float] = []
        if turn == "plain":
            draw(pipeline, options.size, options.steps[0], marks)
        else:
            with goca.watch(pipeline, *options.overrides) as seen:
                draw(pipeline, options.size, options.steps[0], marks)
            seen.words["circle"].values.max()
        seconds[turn] += [after - before for before, after in pairwise(marks[1:])]
    return {"seconds": seconds, "peak": peak_memory_bytes()}


def child(options: argparse.Namespace, variant: str, steps: int) -> dict[str, Any]:
    arguments = [f"--model={options.model}", f"--size={options.size}", f"--threads={options.threads}", f"--steps={steps}"]
    command = [sys.executable, "-m", "benchmarks.watching", *arguments, f"--rounds={options.rounds}", f"--variant={variant}"]
    output = subprocess.run([*command, *options.overrides], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, nargs="+", default=[3])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", choices=["plain", "watched", "turns"], help="set in the child processes")
    parser.add_argument("overrides", nargs="*", help="of goca.watch, such as preset=goca")
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    turns = child(options, "turns", options.steps[0])["seconds"]
    medians = {name: statistics.median(values) for name, values in turns.items()}
    peaks = {
        f"{variant}, {steps} steps": child(options, variant, steps)["peak"]
        for steps in options.steps
        for variant in ("plain", "watched")
    }
    first = options.steps[0]
    result = {
        "seconds": turns,
        "time_ratio": medians["watched"] / medians["plain"],
        "peak_bytes": peaks,
        "memory_ratio": peaks[f"watched, {first} steps"] / peaks[f"plain, {first} steps"],
        "machine": machine.context(options.threads),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
