"""Pictures of every shape through every rule: backbones, refinements, presets, batches, and the commands that look and draw."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from goca import config
from goca.data.base import Sample, present_classes
from goca.data.classes import ClassTable
from goca.data.sizes import KeepAspect, Square, Windows
from goca.errors import ConfigError
from goca.method import Method
from goca.observe import observe
from goca.prompts import Classes
from goca.runs.evaluator import Evaluator
from goca.scenes.generator import TEST_SEEDS, scene
from goca.segmentor import Segmentor

RULES = {
    "square": Square(),
    "shorter": KeepAspect(),
    "longer": KeepAspect(side="longer"),
    "window": Windows(),
    "class_maps": Windows(merge="class_maps"),
}
MODELS = ("scenes_unet_tiny", "scenes_unet_small", "scenes_unet", "scenes_dit", "scenes_mmdit")
WORDS = ["circle", "grass", "sky"]
REFINEMENTS = ["none", "affinity", "activation", "prototype", "pamr", "random_walk", "space_merge", "crf"]
PRESETS = [
    *(("scenes_unet_tiny", preset) for preset in ("daam", "iseg", "faseg", "diffseg", "diffcut", "nerve", "cliper")),
    *(("scenes_mmdit", preset) for preset in ("seg4diff", "concept_attention")),
]


@cache
def _backbone(model: str):
    return Segmentor.from_config(model).backbone


@cache
def _cfg(*overrides: str):
    return config.compose(list(overrides))


@cache
def _table():
    return ClassTable.load("scenes")


def _segmentor(model: str, rule: str, *overrides: str) -> Segmentor:
    """The bundled backbone, loaded once, with a method and a rule."""
    method = Method.from_config(_cfg(f"model={model}", *overrides))
    return Segmentor(_backbone(model), replace(method, sizing=RULES[rule]))


def _picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)


def _wide(number: int = 0, count: int = 2) -> Sample:
    """Scenes side by side."""
    each = [scene(TEST_SEEDS[number + i]) for i in range(count)]
    label = np.concatenate([part.label for part in each], 1)
    return Sample(f"wide{number}", np.concatenate([part.image for part in each], 1), label, present_classes(label))


@pytest.mark.parametrize("rule", ["square", "shorter", "longer", "window"])
@pytest.mark.parametrize("model", MODELS)
def test_labels_have_the_size_of_any_picture(model, rule):
    segmentor = _segmentor(model, rule)
    if rule == "window":
        segmentor.method = replace(segmentor.method, sizing=Windows(stride=64))  # a strip is 25 windows, not 49
    for height, width in [(375, 500), (20, 500), (1, 1)]:
        image = _picture(height, width)
        seen = segmentor.segment(image, WORDS)
        shown = segmentor.pixels(image)
        assert seen.label_map.shape == (height, width)
        assert set(np.unique(seen.label_map)) <= {1, 2, 3}
        assert seen.prediction.maps.size == seen.prediction.token_maps.shape[1:] == segmentor.map_grid(shown)
        if rule == "square" or height == width:
            assert shown.shape[1:] == (64, 64)
        else:
            assert shown.shape[2] > shown.shape[1]
        if rule == "window":
            assert {(window.height, window.width) for window in segmentor.windows(shown)} == {(64, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["square", "shorter", "window"])
@pytest.mark.parametrize("model", MODELS)
def test_pictures_of_a_street_and_of_a_camera(model, rule):
    for size in [(1024, 2048), (3000, 4000)]:
        seen = _segmentor(model, rule).segment(np.broadcast_to(np.uint8(90), (*size, 3)), WORDS[:1])
        assert seen.label_map.shape == size


@pytest.mark.parametrize("model", ["scenes_unet", "scenes_dit", "scenes_mmdit"])
def test_on_square_pictures_every_rule_gives_the_same_bits(model):
    image = scene(TEST_SEEDS[3], 96).image
    usual = _segmentor(model, "square").segment(image, WORDS, background=True).prediction
    for rule in RULES:
        found = _segmentor(model, rule).segment(image, WORDS, background=True).prediction
        assert torch.equal(found.labels, usual.labels)
        for name in ("raw", "scores", "supporting"):
            assert torch.equal(getattr(found.maps, name), getattr(usual.maps, name)), (rule, name)


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_refinements_on_pictures_that_are_not_square(refinement):
    if refinement == "crf":
        pytest.importorskip("pydensecrf.densecrf")
    sample = _wide()
    for rule in ("shorter", "window", "class_maps"):
        segmentor = _segmentor("scenes_unet_tiny", rule, f"refinement={refinement}")
        sample.pixels = segmentor.pixels(sample.image)
        (prediction,) = Evaluator(segmentor, Classes(), _table(), False).predict_step([sample])
        assert prediction.labels.shape[1:] == (64, 128)
        assert prediction.maps.scores.isfinite().all()
        assert prediction.maps.size in ((32, 64), (64, 128))
        assert set(prediction.labels.unique().tolist()) <= {0, *sample.present}


@pytest.mark.parametrize("rule", ["shorter", "class_maps"])
def test_views_and_clusters_on_pictures_that_are_not_square(rule):
    segmentor = _segmentor("scenes_unet_tiny", rule, "calibration=clustered", "views=shifted", "refinement=random_walk")
    assert segmentor.segment(_wide().image, WORDS).class_maps["sky"].shape == (32, 64)


@pytest.mark.parametrize(("model", "preset"), PRESETS)
def test_presets_on_pictures_that_are_not_square(model, preset):
    prompts, sample = config.build(_cfg(f"model={model}", f"preset={preset}"), "prompts"), _wide(2)
    for rule in ("shorter", "window"):
        if (preset, rule) == ("iseg", "window"):  # its maps are divided by their sum over the picture
            with pytest.raises(ConfigError, match="merge=class_maps"):
                _segmentor(model, rule, f"preset={preset}")
            continue
        segmentor = _segmentor(model, rule, f"preset={preset}")
        sample.pixels = segmentor.pixels(sample.image)
        asked = prompts(sample, _table(), segmentor.backbone.text_segments)
        (prediction,) = segmentor.predict([(sample, asked)], len(_table()), False)
        assert prediction.labels.shape[1:] == (64, 128)
        assert prediction.maps.scores.isfinite().all()


def test_words_are_weighed_by_the_windows_that_the_model_sees():
    segmentor = _segmentor("scenes_dit", "window", "preset=elbo", "calibration.exponents.timesteps=[100]")
    assert segmentor.segment(_wide().image, WORDS).label_map.shape == (64, 128)


def test_a_batch_of_mixed_shapes_gives_what_its_pictures_give_alone():
    segmentor = _segmentor("scenes_unet_tiny", "shorter")
    samples = [_wide(0), _wide(1, 1), _wide(4), _wide(2, 3)]
    for sample in samples:
        sample.pixels = segmentor.pixels(sample.image)
    evaluator = Evaluator(segmentor, Classes(), _table(), has_background=False)
    together = evaluator.predict_step(samples)
    assert [prediction.image_id for prediction in together] == [sample.image_id for sample in samples]
    for sample, joint in zip(samples, together, strict=True):
        (alone,) = evaluator.predict_step([sample])
        assert joint.labels.shape == (1, *sample.label.shape)
        torch.testing.assert_close(alone.maps.scores, joint.maps.scores, atol=2e-3, rtol=0)


def test_what_windows_show_is_what_they_show_as_pictures_of_their_own():
    segmentor = _segmentor("scenes_dit", "window")
    segmentor.method = replace(segmentor.method, sizing=Windows(stride=64))
    sample = _wide()
    sample.pixels = segmentor.pixels(sample.image)
    prompts = Classes()(sample, _table(), segmentor.backbone.text_segments)
    seen = segmentor.observe(segmentor.rows([(sample, prompts)]))
    for number, window in enumerate(segmentor.windows(sample.pixels)):
        name = f"{sample.image_id}/window{number}" if number else sample.image_id
        part = Sample(name, sample.image, None, (), pixels=window.cut(sample.pixels))
        alone = segmentor.observe(segmentor.rows([(part, prompts)]))
        rows, columns = window.cells((64, 128), (32, 64))
        torch.testing.assert_close(seen.token_maps[..., rows, columns], alone.token_maps)
        for layer, attention in seen.self_attention(0).items():
            own = alone.self_attention(0)[layer]
            cells = torch.arange(8 * 16).view(8, 16)[window.cells((64, 128), (8, 16))].flatten()
            torch.testing.assert_close(attention.rows(cells)[:, cells], own.rows(torch.arange(64)))


def test_rules_come_from_the_configuration_and_wrong_lengths_are_refused_before_the_first_picture():
    assert Method.from_config(_cfg("sizing=window", "sizing.stride=16")).sizing == Windows(stride=16)
    assert Method.from_config(_cfg("sizing=keep_aspect", "sizing.length=65")).sizing == KeepAspect(length=65)
    segmentor = _segmentor("scenes_unet_tiny", "square")
    segmentor.method = replace(segmentor.method, sizing=KeepAspect(length=65))
    with pytest.raises(ConfigError, match=r"sizing\.length: this model takes multiples of 8 px, got 65; 64 is nearest"):
        _ = segmentor.fit


@pytest.mark.parametrize("rule", ["shorter", "window"])
def test_observe_shows_pictures_of_any_shape(rule):
    view = observe(_segmentor("scenes_unet_tiny", rule), _wide().image, "circle, grass")
    assert view.token_maps.shape[1:] == (32, 64)
    assert {maps.shape[-1] / maps.shape[-2] for maps in view.head_maps.values()} == {2.0}
    assert {maps.shape[-1] / maps.shape[-2] for maps in view.observation.layer_maps.values()} == {2.0}
    assert sum(view.scores(127, 5).values()) == pytest.approx(1, abs=1e-4)
    assert view.scores(127, 5) != view.scores(0, 5)
    assert set(view.figures([(3, 60)])) >= {"segmentation", "stages", "layers", "pixel_3_60"}
