"""Tables and pictures of `methods`: `python -m experiments.methods_report outputs/methods [FOLDER for the pictures]`.

Only scenes that every row of a table has are counted. Intervals: 95 %, bootstrap over scenes (2,000 draws), the seeds of a
scene kept together; differences are paired.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from scipy.stats import spearmanr

from experiments.methods import LOOKS, MATCHED, MODELS, NAMED, STATES
from experiments.scaling_report import DRAWS, score, table
from goca import config
from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.errors import ConfigError
from goca.scenes.generator import CLASSES, STUFF

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {"present": "names of the present classes", "all": "all 14 names", "none": "nothing, matched with ground truth"}


class Counts:
    """What has been measured under one look and one regime, over the scenes that all methods of a model have."""

    def __init__(self, folder: Path, models: Sequence[str], methods: Sequence[str]) -> None:
        self.counts: dict[tuple[str, str], ImageCounts] = {}
        self.sizes: dict[str, str] = {}
        for model in models:
            found = {method: _read(folder / model / method) for method in methods}
            found = {method: scenes for method, scenes in found.items() if scenes}
            if common := set.intersection(*(set(scenes) for scenes in found.values())) if found else set():
                places, seeds = sorted({scene for _, scene in common}), {seed for seed, _ in common}
                whole = len(common) == len(places) * len(seeds)
                per_scene = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}" if whole else f"1 to {len(seeds)} seeds"
                self.sizes[model] = f"{len(places)} scenes x {per_scene}"
                for method, scenes in found.items():
                    both = [sum(scenes[key] for key in common if key[1] == place) for place in places]
                    stacked = np.stack(both).astype(float)
                    self.counts[model, method] = ImageCounts(stacked[:, 0], stacked[:, 1], has_background=False)

    def get(self, model: str, method: str) -> ImageCounts | None:
        return self.counts.get((model, method))

    def miou(self, model: str, method: str) -> float:
        counts = self.get(model, method)
        return float("nan") if counts is None else counts.miou()[0]

    def things(self, model: str, method: str) -> float:
        """Mean IoU of the objects alone."""
        counts = self.get(model, method)
        if counts is None:
            return float("nan")
        iou = 100 * counts.hits.sum(0) / counts.unions.sum(0).clip(min=1)
        return float(np.mean([iou[i] for i, name in enumerate(CLASSES) if i and name not in STUFF]))


def _read(folder: Path) -> dict[tuple[int, int], np.ndarray]:
    """(seed, scene) -> hits and unions (2, K)."""
    found = {}
    for path in folder.glob("*.npz"):
        seed, first, _ = map(int, path.stem.split("_"))
        with np.load(path) as stored:
            both = np.stack([stored["hits"], stored["unions"]], 1)
        found |= {(seed, place): counts for place, counts in enumerate(both, start=first)}
    return found


def main_table(counts: Counts, models: Sequence[str], methods: Sequence[str], refused: dict[str, str], names: str) -> None:
    rows = []
    for method in methods:
        cells = []
        for model in models:
            found = counts.get(model, method)
            why = "refused" if f"{model}/{names}/{method}" in refused else "-"
            cells.append(why if found is None else f"{score(found)} ({counts.things(model, method):.0f})")
        if any(cell not in ("-", "refused") for cell in cells):
            rows.append([f"`{method}`", *cells])
    table(["", *(f"`{model}`, {counts.sizes.get(model, '-')}" for model in models)], rows)


def looks_table(both: dict[str, Counts], models: Sequence[str], base: str) -> None:
    """Differences from a method on both looks, and whether a conclusion survives."""
    rows = []
    for method in NAMED:
        cells = [f"`{method}`"]
        for model in models:
            parts = []
            for look in LOOKS:
                found, other = both[look].get(model, method), both[look].get(model, base)
                if found is None or other is None or method == base:
                    continue
                gap = bootstrap(found, DRAWS, seed=0) - bootstrap(other, DRAWS, seed=0)
                low, high = interval(gap, 0.95)
                sure = "**" if low > 0 or high < 0 else ""
                parts.append(f"{sure}{(found.miou() - other.miou())[0]:+.1f}{sure}")
            cells.append(" / ".join(parts) or "-")
        if any(cell != "-" for cell in cells[1:]):
            rows.append(cells)
    table([f"less `{base}`", *(f"`{model}`" for model in models)], rows)


def agreement(both: dict[str, Counts], models: Sequence[str]) -> None:
    """Rank correlation of methods between looks, and between backbones on each look."""
    for model in models:
        pairs = [(both["plain"].miou(model, m), both["camouflage"].miou(model, m)) for m in NAMED]
        known = np.array([pair for pair in pairs if not np.isnan(pair).any()])
        if len(known) > 3:
            print(f"- `{model}`: {len(known)} methods, rank correlation between looks {spearmanr(*known.T).statistic:+.2f}")
    print()


def heat_map(both: dict[str, Counts], models: Sequence[str], path: Path, names: str) -> None:
    """mIoU of methods and backbones, one panel per look, best mean at the top."""
    methods = [m for m in NAMED if any(both[look].get(model, m) for look in LOOKS for model in models)]
    values = {look: np.array([[both[look].miou(model, m) for model in models] for m in methods]) for look in LOOKS}
    order = np.argsort(-np.nanmean(np.concatenate([*values.values()], axis=1), axis=1))
    figure, axes = plt.subplots(1, len(LOOKS), figsize=(4.6 * len(LOOKS) + 1.5, 0.32 * len(methods) + 1.6), sharey=True)
    for axis, look in zip(axes, LOOKS, strict=True):
        shown = values[look][order]
        axis.imshow(shown, cmap="viridis", vmin=0, vmax=90, aspect="auto")
        for (row, column), value in np.ndenumerate(shown):
            text = "" if np.isnan(value) else f"{value:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if value < 55 else "black")
        axis.set_xticks(range(len(models)), [m.removeprefix("scenes_") for m in models], rotation=30, ha="right", fontsize=8)
        axis.set_yticks(range(len(methods)), [methods[i] for i in order], fontsize=8)
        axis.set_title(f"{look}, {NAMES[names]}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def cost_plot(both: dict[str, Counts], times: dict[str, dict[str, float]], path: Path, model: str, names: str) -> None:
    """Accuracy against seconds per image on one backbone; hollow marks: the camouflage look."""
    figure, axis = plt.subplots(figsize=(7, 4.6))
    places: dict[tuple[int, int], list[tuple[str, float, float]]] = {}  # what would be written over each other shares a line
    for method in NAMED:
        cost = times.get(f"{model}/{names}/{method}")
        plain, hidden = (both[look].miou(model, method) for look in LOOKS)
        if cost is None or np.isnan(plain):
            continue
        colour = "#0072B2" if method.startswith(("goca", "lift_walk")) else "#D55E00"
        spent = 1000 * cost["seconds"]
        axis.plot([spent] * 2, [plain, hidden], "-", color=colour, alpha=0.3, linewidth=1)
        axis.plot(spent, plain, "o", color=colour)
        axis.plot(spent, hidden, "o", color=colour, fillstyle="none")
        places.setdefault((round(5 * np.log(spent)), round(plain / 4)), []).append((method, spent, plain))
    for near in places.values():
        text = ", ".join(method for method, _, _ in near)
        axis.annotate(text, near[0][1:], xytext=(4, 3), textcoords="offset points", fontsize=6.5)
    axis.set(xscale="log", xlabel="ms per image, one core", ylabel="mIoU", title=f"{model}, {NAMES[names]}")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def cost_table(times: dict[str, dict[str, float]], models: Sequence[str]) -> None:
    rows = []
    for method in [*NAMED, *MATCHED]:
        cells = []
        for model in models:
            for names in ("present", "all"):
                matched = f"{model}/none/{method}" if names == "present" else ""
                cost = times.get(f"{model}/{names}/{method}") or times.get(matched)
                cells.append(f"{1000 * cost['seconds']:.0f} ms, {cost['forwards']:.0f}" if cost else "-")
        if any(cell != "-" for cell in cells):
            rows.append([f"`{method}`", *cells])
    table(["", *(f"`{model}`, {names}" for model in models for names in ("present", "all"))], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("pictures", type=Path, nargs="?", help="folder for the heat maps and the plot of cost")
    parser.add_argument("--models", nargs="+", default=[*MODELS, *STATES])
    parser.add_argument("--without", nargs="+", default=[], help="rows with fewer scenes, which would shorten all others")
    parser.add_argument("--only", nargs="+", default=[], help="these rows")
    options = parser.parse_args()
    known = {path.name for path in options.folder.glob("*/*/*")}
    models = [model for model in options.models if model in known]
    if not models:
        raise ConfigError(f"{options.folder} holds no counts of experiments.methods for any of {', '.join(options.models)}")
    refused = json.loads((options.folder / "refused.json").read_text()) if (options.folder / "refused.json").exists() else {}
    times = json.loads((options.folder / "times.json").read_text()) if (options.folder / "times.json").exists() else {}
    for names, rows in (("present", NAMED), ("all", NAMED), ("none", MATCHED)):
        methods = [name for name in options.only or rows if name in rows and name not in options.without]
        both = {look: Counts(options.folder / look / names, models, methods) for look in LOOKS}
        for look in LOOKS:
            if both[look].counts:
                print(f"### {look} look, told {NAMES[names]}\n")
                main_table(both[look], models, methods, refused, names)
        if names != "none" and all(counts.counts for counts in both.values()):
            print(f"### Both looks, told {NAMES[names]}\n")
            looks_table(both, models, "goca")
            agreement(both, models)
            if options.pictures:
                heat_map(both, models, options.pictures / f"methods_{names}.png", names)
                if times and names == "present":
                    cost_plot(both, times, options.pictures / "methods_cost.png", models[0], names)
    if times:
        print("### Cost\n")
        cost_table(times, [model for model in models if any(key.startswith(f"{model}/") for key in times)])


if __name__ == "__main__":
    config.command(main)
