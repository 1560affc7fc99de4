"""The segmentor: batches, several prompts per image, images without words, and the Python API."""

import numpy as np
import pytest
import torch
from PIL import Image

from goca import config
from goca.backbones.unet import UNetBackbone
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.scenes import Scenes
from goca.data.sizes import to_pixels
from goca.errors import ConfigError, DataError, ModelError
from goca.method import Method
from goca.prompts import Classes, Vocabulary
from goca.runs.evaluator import Evaluator
from goca.runs.metrics import SegmentationMetric
from goca.scenes.generator import CLASSES
from goca.segmentation import background_of
from goca.segmentor import Segmentor
from tests.helpers.tiny_unet import tiny_sd, tiny_unet_backbone


def _segmentor(*overrides, **options):
    cfg = config.compose(["preset=goca", *overrides])
    return Segmentor(tiny_unet_backbone(tiny_sd(), **options), Method.from_config(cfg))


def _evaluator(prompts=None, metric=False, **options):
    table = ClassTable.load("scenes")
    counter = SegmentationMetric(len(table), (None,), has_background=False) if metric else None
    return Evaluator(_segmentor(**options), prompts or Classes(), table, has_background=False, metric=counter)


@pytest.fixture(scope="module")
def samples():
    dataset = Scenes(protocol=config.build(config.compose(), "protocol"), size=32, count=4)
    found = [dataset[i] for i in range(4)]
    for sample in found:
        sample.pixels = to_pixels(sample.image, 32)
    return found


def test_a_batch_gives_what_its_images_give_alone(samples):
    evaluator = _evaluator(metric=True)
    together = evaluator.predict_step(samples)
    for sample, joint in zip(samples, together, strict=True):
        (alone,) = evaluator.predict_step([sample])
        torch.testing.assert_close(alone.maps.scores, joint.maps.scores, atol=2e-3, rtol=0)
        assert (alone.labels != joint.labels).float().mean() < 0.01
        assert alone.prompts == joint.prompts
    assert evaluator.metric.counts.sum() == 2 * sum(sample.label.size for sample in samples)


def test_only_classes_of_the_prompt_are_predicted_at_the_size_of_the_image(samples):
    for sample, prediction in zip(samples, _evaluator().predict_step(samples), strict=True):
        assert prediction.labels.shape == (1, *sample.label.shape)
        assert set(prediction.labels.unique().tolist()) <= set(sample.present)
        assert sum(prediction.layer_weights.values()) == pytest.approx(1)


def test_a_vocabulary_in_several_prompts_covers_every_class(samples):
    (prediction,) = _evaluator(Vocabulary()).predict_step(samples[:1])
    assert len(prediction.prompts) > 1
    assert set(prediction.maps.ids) == set(range(1, len(CLASSES)))


def test_an_image_without_words_is_background_and_says_so(samples):
    empty = Sample("empty", samples[0].image, np.full((32, 32), 255, np.uint8), (), pixels=samples[0].pixels)
    first, blank = _evaluator().predict_step([samples[0], empty])
    assert first.maps.ids
    assert blank.labels.eq(0).all()
    assert any("no prompt" in warning for warning in blank.warnings)


def test_noise_follows_the_seed_and_the_image_id(samples):
    first, second = _evaluator(), _evaluator()
    second.segmentor.seed = 1
    maps = [evaluator.predict_step(samples[:1])[0].token_maps for evaluator in (first, first, second)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_segment_by_names_and_by_caption(tmp_path):
    path = tmp_path / "odd.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)).save(path)
    segmentor = _segmentor()
    by_names = segmentor.segment(path, ["circle", "grass"])
    assert by_names.label_map.shape == (37, 53)
    assert set(by_names.class_maps) == {"circle", "grass"}
    assert set(np.unique(by_names.label_map)) <= {1, 2}
    assert by_names.token_maps["1:circle"].shape == (32, 32)
    by_caption = segmentor.segment(Image.open(path), "(circle, ring), grass", background=0.2)
    assert list(by_caption.class_maps) == ["circle", "grass"]
    assert by_caption.picture().width > 100


@pytest.mark.parametrize(
    ("image", "words", "error", "message"),
    [
        ("missing.png", ["circle"], DataError, "missing.png"),
        (np.zeros((8, 8), np.uint8), ["circle"], ConfigError, r"\(H, W, 3\) uint8"),
        (np.zeros((8, 8, 3), np.uint8), [], ConfigError, "empty"),
        (np.zeros((8, 8, 3), np.uint8), "", ConfigError, "noun|empty"),
        (np.zeros((8, 8, 3), np.uint8), "a, and", ConfigError, "noun"),
    ],
)
def test_bad_input_to_segment(image, words, error, message):
    with pytest.raises(error, match=message):
        _segmentor().segment(image, words)


def test_a_pipeline_in_memory_is_segmented_with_as_it_is(samples):
    pipeline = tiny_sd()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    segmentor = Segmentor.from_pipeline(pipeline, "preset=vanilla", "model.size=32", "model.timestep=50")
    assert segmentor.backbone.pipeline is pipeline
    assert (segmentor.backbone.timestep, segmentor.backbone.size) == (50, 32)
    layers = segmentor.backbone.layers
    by_hand = UNetBackbone(checkpoint="tiny", name="tiny", size=32, timestep=50, layers=layers, device="cpu").load(tiny_sd())
    same = Segmentor(by_hand, segmentor.method)
    results = [one.segment(samples[0].image, ["circle", "grass"]).label_map for one in (segmentor, same)]
    assert np.array_equal(*results)
    assert all(torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())


def test_a_pipeline_of_no_known_family_is_refused():
    class OtherPipeline:
        pass

    with pytest.raises(ModelError, match=r"the pipeline is a OtherPipeline, which no adapter takes; .*FluxPipeline"):
        Segmentor.from_pipeline(OtherPipeline())


def test_a_result_is_saved_as_masks_that_a_data_set_of_ones_own_can_read(tmp_path):
    from goca.data.folder import Folder

    image = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    segmentor = _segmentor()
    result = segmentor.segment(image, ["star", "cross"])
    folder = result.save(tmp_path / "result")
    assert sorted(path.name for path in folder.iterdir()) == ["classes.txt", "labels.png", "maps.npz", "picture.png"]
    with np.load(folder / "maps.npz") as maps:
        np.testing.assert_array_equal(maps["label_map"], result.label_map)
        np.testing.assert_array_equal(maps["class:star"], result.class_maps["star"])
        assert sum(key.startswith("token:") for key in maps) == len(result.token_maps)
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.png")
    result.save(tmp_path / "masks" / "a.png")
    (folder / "classes.txt").rename(tmp_path / "classes.txt")
    read = Folder(protocol=config.build(config.compose(), "protocol"), root=str(tmp_path))[0]
    np.testing.assert_array_equal(read.label, result.label_map)
    with pytest.raises(ConfigError, match=r"\.npz .all maps., not as \.gif"):
        result.save(tmp_path / "result.gif")


def test_several_images_get_what_each_gets_alone():
    images = [np.random.default_rng(seed).integers(0, 255, (40, 48 + seed, 3), dtype=np.uint8) for seed in range(3)]
    segmentor = _segmentor()
    together = segmentor.segment(images, ["star", "cross"], batch=2)
    assert [result.label_map.shape for result in together] == [image.shape[:2] for image in images]
    for image, result in zip(images, together, strict=True):
        alone = segmentor.segment(image, ["star", "cross"])
        np.testing.assert_allclose(result.class_maps["star"], alone.class_maps["star"], atol=2e-3)
    assert segmentor.segment([], ["star"]) == []
    assert isinstance(segmentor.segment((images[0],), "a star"), list)


def _method(*overrides: str) -> Method:
    return Method.from_config(config.compose(["preset=goca", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "asked", "words", "expected"),
    [
        ((), None, 1, (False, None)),
        ((), False, 1, (False, None)),
        ((), 0, 2, (True, 0.0)),
        ((), True, 1, (True, 0.5)),
        ((), True, 2, (True, 0.7)),
        (("decision=complement",), True, 2, (True, None)),  # that rule compares with no threshold
        (("decision=exact",), False, 2, (False, None)),
    ],
)
def test_the_background_that_is_asked_for(overrides, asked, words, expected) -> None:
    assert background_of(asked, words, _method(*overrides)) == expected


@pytest.mark.parametrize("decision", ["complement", "exact", "hungarian"])
def test_a_threshold_is_refused_where_the_decision_reads_none(decision: str) -> None:
    with pytest.raises(ConfigError, match=f"background=0.3: decision={decision} has no threshold"):
        background_of(0.3, 2, _method(f"decision={decision}"))


def test_a_threshold_is_refused_where_scores_have_no_scale() -> None:
    raw = _method("calibration=raw", "refinement=none")  # the sweep of offset holds 0, which is fair; 0.5 is not
    assert background_of(0, 2, raw) == (True, 0.0)
    with pytest.raises(ConfigError, match="thresholds are of maps between 0 and 1"):
        background_of(0.5, 2, raw)


def test_exponents_that_no_step_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match="the step power"):
        _method("preset=elbo", "calibration.steps=[stretch]")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("preset=diffsegmenter", "calibration=per_pixel"), "per_pixel divides shares"),
        (("preset=daam", "aggregation.clamp=false", "aggregation.score=logits", "calibration=goca"), "logits have either sign"),
        (("preset=elbo", "calibration.exponents.timesteps=[-5]"), "timesteps.0"),
        (("preset=elbo", "calibration.exponents.timesteps=[]"), "timesteps"),
        (("preset=elbo", "calibration.exponents.text=a photo"), "text has {name} once"),
    ],
)
def test_stages_that_do_not_go_together_are_refused(overrides, said) -> None:
    with pytest.raises(ConfigError, match=said):
        _method(*overrides)


def test_losses_of_texts_are_refused_where_prompts_are_concepts() -> None:
    method = _method("model=scenes_mmdit", "preset=concept_attention", "calibration=loss_power")
    with pytest.raises(ConfigError, match=r"calibration\.exponents measure a text of each class"):
        method.check_prompts(concepts=True)
