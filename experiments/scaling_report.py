"""Tables and the plot of `scaling_scenes`: `python -m experiments.scaling_report outputs/scaling_scenes/test [PLOT.png]`.

`--trainings FOLDER ...` names measurements of other trainings of the same backbones, for the table of trainings and the plot.
Intervals: 95 %, bootstrap over images (2,000 draws), the seeds of an image kept together; differences are paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import spearmanr

from experiments.scaling_scenes import MAIN, REFERENCE, SEARCH
from goca.compare.statistics import ImageCounts, bootstrap, interval
from goca.scenes.generator import CLASSES, STUFF

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DRAWS = 2000
MASSES = ("content", "start", "end", "padding", "other")
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = {"vanilla": "#999999", "goca": "#0072B2"}
MARKERS = {"scenes_unet": "o", "scenes_dit": "s", "scenes_mmdit": "^"}


class Member:
    """One model's counts, read from its folder."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = folder.name, folder
        self.training = json.loads((folder / "training.json").read_text())

    @property
    def family(self) -> str:
        """The architecture: losses are comparable within one."""
        return next(name for name in MARKERS if self.name.startswith(name))

    @property
    def size_of_denoiser(self) -> int:
        return int(self.training["denoiser_parameters"])

    @property
    def whole(self) -> bool:
        """Whether this is the end of a training, not a state along one."""
        return bool(self.training.get("planned_steps", self.training["steps"]) == self.training["steps"])

    def has(self, method: str) -> bool:
        return (self.folder / f"{method}.npz").exists()

    def references(self) -> list[str]:
        """The methods of the set "references" that have been measured, by name."""
        return sorted(path.stem for path in self.folder.glob(f"{REFERENCE}*.npz"))

    def counts(self, method: str) -> ImageCounts:
        """Counts of every image, added up over seeds."""
        with np.load(self.folder / f"{method}.npz") as stored:
            return ImageCounts(stored["hits"].sum(0), stored["unions"].sum(0), has_background=False)

    def mass(self) -> np.ndarray:
        with np.load(self.folder / "goca.npz") as stored:
            return stored["mass"].mean(0)

    def size(self) -> str:
        with np.load(self.folder / "goca.npz") as stored:
            seeds, images, _ = stored["hits"].shape
        return f"{images} x {seeds}"


def score(counts: ImageCounts) -> str:
    low, high = interval(bootstrap(counts, DRAWS, seed=0), 0.95)
    return f"{counts.miou()[0]:.1f} [{low:.1f}, {high:.1f}]"


def difference(counts: ImageCounts, base: ImageCounts) -> str:
    low, high = interval(bootstrap(counts, DRAWS, seed=0) - bootstrap(base, DRAWS, seed=0), 0.95)
    return f"{(counts.miou() - base.miou())[0]:+.1f} [{low:+.1f}, {high:+.1f}]"


def table(head: list[str], rows: list[list[Any]]) -> None:
    for row in (head, ["---"] * len(head), *rows):
        print("|", " | ".join(map(str, row)), "|")
    print()


def iou(counts: ImageCounts) -> np.ndarray:
    """IoU of every class in per cent (K,)."""
    return 100 * counts.hits.sum(0) / counts.unions.sum(0).clip(min=1)


def main_table(members: list[Member]) -> None:
    rows, gains = [], []
    for member in members:
        vanilla, goca = member.counts("vanilla"), member.counts("goca")
        gains.append((goca.miou() - vanilla.miou())[0])
        cells = [score(member.counts(method)) for method in MAIN]
        rows.append([member.name, f"{member.training['held_out_loss']:.4f}", member.size(), *cells, difference(goca, vanilla)])
    table(["model", "held-out loss", "images x seeds", *MAIN, "GoCA - vanilla"], rows)
    print(f"mean of GoCA - vanilla over {len(gains)} members: {np.mean(gains):+.1f}\n")


def class_table(members: list[Member]) -> None:
    stuff = np.array([name in STUFF for name in CLASSES])
    things = ~stuff & (np.arange(len(CLASSES)) > 0)
    rows = []
    for member in members:
        for method in ("vanilla", "goca"):
            values = iou(member.counts(method))
            best = sorted(zip(values[1:], CLASSES[1:], strict=True))
            ends = [f"{name} {value:.0f}" for value, name in (*best[:2], *best[-2:])]
            rows.append([member.name, method, f"{values[stuff].mean():.1f}", f"{values[things].mean():.1f}", ", ".join(ends)])
    table(["model", "method", "stuff", "objects", "two worst, two best classes"], rows)


def mass_table(members: list[Member]) -> None:
    rows = []
    for member in members:
        gain = difference(member.counts("calibration_only"), member.counts("vanilla"))
        rows.append([member.name, *(f"{value:.1%}" for value in member.mass()), gain])
    table(["model", *MASSES, "calibration_only - vanilla"], rows)


def search_table(members: list[Member]) -> None:
    members = [member for member in members if any(member.has(method) for method in SEARCH)]
    rows = []
    for method in SEARCH:
        cells = [difference(m.counts(method), m.counts("goca")) if m.has(method) else "-" for m in members]
        rows.append([method, *cells])
    if members:
        table(["change", *(member.name for member in members)], [["goca", *(score(m.counts("goca")) for m in members)], *rows])


def reference_table(members: list[Member]) -> None:
    """GoCA with each cross-attention layer as reference."""
    rows = [
        [member.name, name.removeprefix(REFERENCE), score(counts), difference(counts, member.counts("goca"))]
        for member in members
        for name, counts in ((name, member.counts(name)) for name in member.references())
    ]
    if rows:
        table(["model", "reference layer", "mIoU", "difference"], rows)


def correlations(members: list[Member], what: str, power: Callable[[Member], float]) -> None:
    """Spearman's rank correlation of a measure of power with mIoU, within each architecture that has three values of it."""
    for family in MARKERS:
        group = [member for member in members if member.family == family]
        values = [power(member) for member in group]
        if len(set(values)) > 2:
            for method in COLOURS:
                rank = spearmanr(values, [member.counts(method).miou()[0] for member in group])
                said = f"rank correlation with {what} {rank.statistic:+.2f}, p = {rank.pvalue:.2f}"
                print(f"{family}, {len(group)} trainings or states, {method}: {said}")
    print()


def trainings_table(members: list[Member]) -> None:
    """Every whole training (no states along one), the mean of each backbone, and rank correlations of size with mIoU."""
    times = Counter(member.name for member in members if member.whole)
    whole = [member for member in members if member.whole and times[member.name] > 1]
    whole.sort(key=lambda member: (member.family, member.size_of_denoiser, member.name))
    scores = {member: [member.counts(method).miou()[0] for method in COLOURS] for member in whole}
    rows = []
    for name, group in itertools.groupby(whole, key=lambda member: member.name):
        trainings = list(group)
        for one in trainings:
            gain = difference(one.counts("goca"), one.counts("vanilla"))
            steps, loss = one.training["steps"], one.training["held_out_loss"]
            rows.append([name, steps, f"{loss:.4f}", *(f"{value:.1f}" for value in scores[one]), gain])
        vanilla, goca = np.mean([scores[one] for one in trainings], axis=0)
        rows.append([f"mean of {len(trainings)}", "", "", f"{vanilla:.1f}", f"{goca:.1f}", f"{goca - vanilla:+.1f}"])
    if rows:
        table(["training", "steps", "held-out loss", *COLOURS, "GoCA - vanilla"], rows)
    correlations(whole, "size", lambda member: member.size_of_denoiser)


def plot(members: list[Member], path: Path, others: list[Member]) -> None:
    """mIoU over held-out loss, one panel per architecture, better generators to the right; other trainings are hollow marks."""
    groups = {family: [member for member in members if member.family == family] for family in MARKERS}
    groups = {family: group for family, group in groups.items() if group}
    widths = [max(1.0, len(group) / 2) for group in groups.values()]  # room for labels
    size = (2.2 * sum(widths) + 1, 3.6)
    figure, axes = plt.subplots(1, len(groups), figsize=size, sharey=True, squeeze=False, width_ratios=widths)
    for axis, (family, group) in zip(axes[0], groups.items(), strict=True):
        group.sort(key=lambda member: -member.training["held_out_loss"])
        loss = [member.training["held_out_loss"] for member in group]
        for method, colour in COLOURS.items():
            counts = [member.counts(method) for member in group]
            values = np.array([c.miou()[0] for c in counts])
            bounds = np.array([interval(bootstrap(c, DRAWS, seed=0), 0.95) for c in counts])
            error = np.abs(bounds.T - values)
            style = {"color": colour, "marker": MARKERS[family], "capsize": 3, "linewidth": 1.2}
            axis.errorbar(loss, values, error, label={"goca": "GoCA"}.get(method, method), **style)
        for number, (member, x) in enumerate(zip(group, loss, strict=True)):
            ends = [member.counts(method).miou()[0] for method in COLOURS]
            y, offset = (min(ends), -22) if number % 2 else (max(ends), 16)  # neighbours on either side, clear of each other
            label = member.name.removeprefix("scenes_").replace("unet_", "")
            where = {"xytext": (0, offset), "textcoords": "offset points", "ha": "center", "fontsize": 7}
            axis.annotate(label, (x, y), **where)
        for other in (other for other in others if other.family == family):
            for method, colour in COLOURS.items():
                x, y = other.training["held_out_loss"], other.counts(method).miou()[0]
                axis.plot(x, y, MARKERS[family], color=colour, fillstyle="none", alpha=0.8)
        axis.invert_xaxis()
        axis.margins(x=0.2, y=0.15)
        axis.set(title=family, xlabel="held-out denoising loss")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("mIoU on held-out scenes")
    if others:
        axes[0][0].plot([], [], "o", color="black", fillstyle="none", label="other trainings")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of one split: outputs/scaling_scenes/test")
    parser.add_argument("plot", type=Path, nargs="?", help="PNG to draw")
    parser.add_argument("--trainings", type=Path, nargs="+", default=[], help="such folders of other trainings")
    options = parser.parse_args()
    members, *others = (
        [Member(path) for path in sorted(folder.iterdir()) if (path / "goca.npz").exists()]
        for folder in (options.folder, *options.trainings)
    )
    beside = list(itertools.chain(*others))
    members.sort(key=lambda member: (member.family, -member.training["held_out_loss"]))
    if all(member.has(method) for member in members for method in MAIN):
        main_table(members)
        class_table(members)
        correlations(members, "the negative loss", lambda member: -member.training["held_out_loss"])
    mass_table([member for member in members if member.has("calibration_only")])
    search_table(members)
    reference_table(members)
    trainings_table(members + beside)
    if options.plot:
        plot(members, options.plot, [other for other in beside if other.whole])


if __name__ == "__main__":
    main()
