"""Are labels that come with generated pictures good enough to train on? Scenes drawn by scenes_unet, and a small U-Net.

    python experiments/generated_labels.py draw outputs/labels      # resumable; half an hour of a CPU core
    python experiments/generated_labels.py train outputs/labels     # a U-Net for each kind of label, and for true scenes

Pictures are drawn from the words of training scenes. One drawing gives the labels of every method. The twin is trained on as
many scenes of the generator with their true labels. All are tested on scenes that neither they nor the diffusion model know.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goca.generation.guidance import PlainGuidance
from goca.generation.pipeline import Generator, Request
from goca.scenes.generator import CLASSES, TEST_SEEDS, TRAIN_SEEDS, scene
from goca.segmentor import Segmentor
from goca.watching.session import Options, Watch

METHODS = {
    "vanilla": ("preset=vanilla",),
    "goca": ("preset=goca",),
    "lift_walk": ("preset=lift_walk",),
}
BATCH, STEPS, SCALE = 20, 10, 3.0  # scale 3 draws best (RESULTS_GENERATION.md)
EPOCHS, WIDTH = 8, 16


def draw(folder: Path, count: int) -> None:
    """Pictures and the labels of every method, one file for each batch."""
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = [Segmentor.from_config("scenes_unet", *overrides) for overrides in METHODS.values()]
    for other in others:
        other.backbone = first.backbone
    generator = Generator(
        first.backbone, PlainGuidance("cfg", SCALE), first.method, STEPS, scheduler="DPMSolverMultistepScheduler"
    )
    generator.prepare()
    for start in range(0, count, BATCH):
        path = folder / f"batch_{start:05}.npz"
        if path.exists():
            continue
        seeds = TRAIN_SEEDS[start : start + BATCH]
        words = [list(scene(seed).words) for seed in seeds]
        requests = [Request(str(seed), ", ".join(names), seed) for seed, names in zip(seeds, words, strict=True)]
        watch = Watch(first.backbone.pipeline, first, Options(), others)
        with watch as seen:
            images = generator(requests)
        found = {"images": np.stack([np.asarray(image) for image in images])}
        for name, one in zip(METHODS, (seen, *watch.beside), strict=True):
            found[name] = np.stack([_label(one[i], image, words[i]) for i, image in enumerate(images)])
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **found)
        part.rename(path)
        print(path.name, flush=True)


def _label(picture, image, words) -> np.ndarray:
    """(H, W) ids of the scenes' classes."""
    result = picture.segmentation(image, words)
    ids = np.array([0, *(CLASSES.index(name) for name in result.classes.names[1:])])
    return ids[result.label_map].astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- the network
class UNet(nn.Module):
    """Three levels of two convolutions each: scores (B, classes, 64, 64) of pictures (B, 3, 64, 64)."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            [_block(before, after) for before, after in zip([3, *sizes], [*sizes, sizes[-1]], strict=False)]
        )
        self.up = nn.ModuleList([_block(2 * sizes[-1], sizes[1]), _block(sizes[1] * 2, sizes[0]), _block(2 * sizes[0], width)])
        self.last = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, pictures: Tensor) -> Tensor:
        kept, state = [], pictures
        for block in self.down[:-1]:
            state = block(state)
            kept.append(state)
            state = F.max_pool2d(state, 2)
        state = self.down[-1](state)
        for block, before in zip(self.up, reversed(kept), strict=True):
            state = block(torch.cat([F.interpolate(state, scale_factor=2, mode="bilinear"), before], 1))
        return self.last(state)


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for entering in (before, after):
        layers += [nn.Conv2d(entering, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def train(images: Tensor, labels: Tensor, seed: int) -> UNet:
    """A network trained on (N, H, W, 3) uint8 pictures and (N, H, W) ids, each mirrored half of the time."""
    torch.manual_seed(seed)
    net, batch = UNet(), 32
    steps = EPOCHS * (len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for chosen in order[: len(images) // batch * batch].split(batch):
            pictures, wanted = _unit(images[chosen]), labels[chosen].long()
            if torch.rand(()) < 0.5:
                pictures, wanted = pictures.flip(3), wanted.flip(2)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast on a CPU with AMX; all networks alike
                loss = F.cross_entropy(net(pictures), wanted)
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def _unit(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def mean_iou(net: UNet, images: Tensor, labels: Tensor) -> float:
    """Mean over classes of intersection over union, counted over all pictures, in per cent."""
    counts = torch.zeros(len(CLASSES), len(CLASSES))
    for pictures, wanted in zip(images.split(100), labels.split(100), strict=True):
        found = net(_unit(pictures)).argmax(1)
        counts += torch.bincount((wanted.long() * len(CLASSES) + found).flatten(), minlength=len(CLASSES) ** 2).view_as(counts)
    inside = counts.diag()
    union = counts.sum(0) + counts.sum(1) - inside
    present = counts.sum(1) > 0
    return float(100 * (inside[present] / union[present]).mean())


def true_scenes(seeds: range) -> tuple[Tensor, Tensor]:
    scenes = [scene(seed) for seed in seeds]
    return torch.from_numpy(np.stack([one.image for one in scenes])), torch.from_numpy(np.stack([one.label for one in scenes]))


def kinds(folder: Path, count: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, pictures and labels of every training set."""
    files = [np.load(path) for path in sorted(folder.glob("batch_?????.npz"))]
    images = torch.from_numpy(np.concatenate([file["images"] for file in files]))[:count]
    yield "true", *true_scenes(TRAIN_SEEDS[: len(images)])
    for name in METHODS:
        yield name, images, torch.from_numpy(np.concatenate([file[name] for file in files]))[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["draw", "train"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="pictures to draw, or to train on")
    parser.add_argument("--seeds", type=int, default=1, help="networks for each kind of label")
    options = parser.parse_args()
    if options.stage == "draw":
        draw(options.folder, options.count)
        return
    results_path = options.folder / "results.json"
    results = json.loads(results_path.read_text()) if results_path.exists() else {}
    test = true_scenes(TEST_SEEDS[:500])
    for seed in range(options.seeds):
        for name, images, labels in kinds(options.folder, options.count):
            key = f"{name}/{seed}/{len(images)}"
            if key not in results:
                results[key] = round(mean_iou(train(images, labels, seed), *test), 2)
                results_path.write_text(json.dumps(results, indent=2))
            print(key, results[key], flush=True)


if __name__ == "__main__":
    main()
