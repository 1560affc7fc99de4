"""Other papers' presets choose the layers that their authors chose, on the full-size models they used (meta device)."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from goca import config
from goca.backbones.observable import observable_layers
from goca.layer_names import resolve
from goca.method.refinement.base import RefinementContext
from goca.method.refinement.levels import choose
from goca.segmentor import Segmentor


def _built(model: str, preset: str) -> tuple[Segmentor, dict[str, tuple[int, int]]]:
    """The method on the model as published, and the grid of every layer."""
    segmentor = Segmentor.build(config.compose([f"model={model}", f"preset={preset}"]))
    segmentor.backbone.sketch()
    return segmentor, {layer.name: layer.grid for layer in observable_layers(segmentor.backbone)}


def _short(name: str) -> str:
    """up_blocks.3.attentions.1.transformer_blocks.0.attn1 -> up3.a1"""
    found = re.match(r"(down|mid|up)_block(?:s\.(\d+))?\.attentions\.(\d+)", name)
    return f"{found[1]}{found[2] or ''}.a{found[3]}" if found else name


def _weighed(model: str, preset: str) -> dict[str, float]:
    """Layer -> weight of its level, without those that have none."""
    segmentor, grids = _built(model, preset)
    cross = segmentor.plan().cross
    weights: Any = segmentor.method.aggregation.level_weights([grids[name] for name in cross])
    return {_short(name): weights[grids[name]] for name in cross if weights[grids[name]]}


@pytest.mark.slow
def test_iseg():
    at_32, at_16 = ["down1.a1", "up2.a0", "up2.a1"], ["down2.a0", "down2.a1", "up1.a0", "up1.a1", "up1.a2"]
    assert _weighed("sd21", "iseg") == dict.fromkeys(at_32, 0.3) | dict.fromkeys(at_16, 0.7)
    assert _refining("sd21", "iseg") == ["up3.a1"]


@pytest.mark.slow
def test_cliper():
    assert _refining("sd21", "cliper") == ["up3.a0", "up3.a1"]  # the last one's heads stand leftmost


def _refining(model: str, preset: str) -> list[str]:
    segmentor, grids = _built(model, preset)
    (step,) = segmentor.method.refinement.steps
    layers: Any = {name: SimpleNamespace(grid=grids[name], name=name) for name in segmentor.plan().self_attention}
    chosen: Any = choose(RefinementContext((64, 64), layers), step.layers, "here", step.factors, step.part, step.places)
    return [_short(layer.name) for layer in chosen]


@pytest.mark.slow
def test_maskdiffusion_takes_what_has_at_most_16_x_16_pixels():
    coarse = ["down2.a0", "down2.a1", "mid.a0", "up1.a0", "up1.a1", "up1.a2"]
    assert sorted(_weighed("sd15", "maskdiffusion")) == sorted(coarse)


@pytest.mark.slow
def test_daam_leaves_the_middle_block_out():
    weighed = _weighed("sd15", "daam")
    assert len(weighed) == 15 and "mid.a0" not in weighed and set(weighed.values()) == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "blocks"), [("flux_schnell", [15, 16, 17, 18]), ("flux2_dev", [5, 6, 7]), ("flux2_klein", [2, 3, 4])]
)
def test_concept_attention(model: str, blocks: list[int]):
    segmentor, grids = _built(model, "concept_attention")
    aggregation: Any = segmentor.method.aggregation
    assert resolve(aggregation.layers, grids, "here") == tuple(f"transformer_blocks.{block}.attn" for block in blocks)
    assert aggregation.last is None


@pytest.mark.slow
def test_seg4diff():
    segmentor, _ = _built("sd3", "seg4diff")
    assert list(segmentor.plan().cross) == ["transformer_blocks.9.attn"]
    assert len(_built("sd35", "seg4diff")[0].plan().cross) == 8  # its authors' choice is not published
