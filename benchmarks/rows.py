"""How well a few rows of the reference affinity estimate GoCA's layer weights: `python -m benchmarks.rows --size 256`.

Of each scene every row's part of sum(R * P) is computed once, for every layer; any choice of rows is then a selection of them.
Prints, for each bundled backbone, number of rows and way of choosing, the largest and the mean error of a layer's weight,
relative to the mean weight 1 / L, and the standard error that the variance over rows predicts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from goca import config
from goca.attention.call import AttentionCall, blocks, probabilities
from goca.data.sizes import to_pixels
from goca.method import Plan, plan_layers
from goca.method.aggregation import layers
from goca.scenes.generator import scene

BACKBONES = ("scenes_unet", "scenes_unet_small", "scenes_unet_tiny", "scenes_dit", "scenes_mmdit")
FIRST_SCENE = 1_500_000  # none that any other experiment looks at


class Rows:
    """Collects, for every layer, each reference row's part of sum(R * P): (B, S_r)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.calls: dict[str, AttentionCall] = {}

    def observe(self, call: AttentionCall) -> None:
        self.calls[call.layer] = call

    def finish(self) -> None:
        return None

    def parts(self) -> torch.Tensor:
        """(L, B, S_r), in the order of the plan's layers."""
        assert self.plan.reference is not None
        source = self.calls[self.plan.reference]
        tensor = source.query if self.plan.feature_kind == "query" else source.output
        assert tensor is not None
        feature, grid = tensor.transpose(2, 3).flatten(1, 2).unflatten(2, source.grid), source.grid
        return torch.stack([self._of(self.calls[paired], feature, grid) for paired in self.plan.cross.values()])

    def _of(self, call: AttentionCall, feature: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        assert call.image is not None
        pixels = grid[0] * grid[1]
        near = layers.nearest_rows(call.grid, grid)
        out = torch.empty(len(feature), pixels)
        for batch, rows in blocks(call, call.image, pixels, 2**26):
            attention = probabilities(call, call.image, batch, near[rows]).mean(1)
            affinity = layers.reference_affinity(feature[batch], torch.arange(pixels)[rows])
            out[batch, rows] = (layers.resize_keys(attention, call.grid, grid) * affinity).sum(-1)
        return out


def choices(grid: tuple[int, int], count: int) -> dict[str, torch.Tensor]:
    """Ways to choose `count` rows."""
    pixels = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(count)
    return {
        "random": torch.randperm(pixels, generator=generator)[:count],
        "even": torch.linspace(0, pixels - 1, count).round().long(),
        "stratified": layers.sampled_rows(grid, count),
    }


def measure(name: str, size: int, images: int, counts: list[int]) -> list[dict[str, Any]]:
    """Errors of one backbone."""
    cfg = config.compose([f"model={name}", f"model.size={size}"])
    backbone = config.build(cfg, "model").load()
    plan = plan_layers(backbone, config.build(cfg, "aggregation"))
    parts = []
    for number in range(images):
        found = scene(FIRST_SCENE + number)
        seen = Rows(plan)
        text = ", ".join(found.words)
        backbone.observe(to_pixels(found.image, size)[None], [text], [str(number)], 0, seen)
        parts.append(seen.parts()[:, 0])
        side = seen.calls[plan.reference].grid
    values = torch.stack(parts, 1)  # (L, images, S_r)
    exact = layers.normalised(values.sum(-1).T)  # (images, L)
    rows = []
    for count in counts:
        for how, chosen in choices(side, count).items():
            found_weights = layers.normalised(values[..., chosen].sum(-1).T)
            error = (found_weights - exact).abs() * exact.shape[1]  # beside the mean weight 1 / L
            of_means = (found_weights.mean(0) - exact.mean(0)).abs().max() * exact.shape[1]
            spread = values[..., chosen].std(-1) / values[..., chosen].mean(-1) * (1 / count - 1 / values.shape[-1]) ** 0.5
            rows.append(
                {
                    "benchmark": "rows", "model": name, "grid": list(side), "rows": count, "choice": how, "images": images,
                    "largest_error": round(float(error.max()), 5), "mean_error": round(float(error.mean()), 5),
                    "error_of_mean_weights": round(float(of_means), 5),
                    "predicted_relative": round(float(spread.mean()), 5),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--counts", type=int, nargs="*", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--models", nargs="*", default=list(BACKBONES))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/rows.json"))
    options = parser.parse_args()
    where, rows = machine.context(torch.get_num_threads()), []
    with torch.inference_mode():
        for name in options.models:
            for row in measure(name, options.size, options.images, options.counts):
                rows.append(row | where)
                print({key: value for key, value in row.items() if key != "benchmark"}, flush=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
