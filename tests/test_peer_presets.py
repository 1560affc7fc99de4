"""Presets of other papers run on every bundled architecture, or are refused before the first image with the reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from goca import config
from goca.data.base import Sample
from goca.errors import ConfigError, ModelError
from goca.figures.example import Example
from goca.method.passes import Passes
from goca.runs.evaluation import evaluate
from goca.runs.evaluator import Evaluator
from goca.runs.folder import RunFolder
from goca.runs.kinds import Kind, regime
from goca.segmentor import Segmentor

PRESETS = [
    *("daam", "ovam", "diffsegmenter", "iseg", "elbo", "faseg", "seg4diff"),
    *("concept_attention", "diffseg", "diffcut", "maskdiffusion", "refam", "nerve", "cliper"),
]
PICTURED = ["cliper", "daam", "diffcut", "diffseg", "faseg", "maskdiffusion", "ovam", "released", "seg4diff"]
MODELS = ("scenes_unet", "scenes_dit", "scenes_mmdit")
REFUSED = {
    ("ovam", "scenes_dit"): "down_blocks",
    ("ovam", "scenes_mmdit"): "down_blocks",
    ("concept_attention", "scenes_unet"): "text branch",
    ("concept_attention", "scenes_dit"): "text branch",
}


@pytest.fixture(scope="module")
def backbones():
    return {}


def _evaluated(backbones: dict, model: str, preset: str, *overrides: str):
    cfg = config.compose([f"model={model}", f"preset={preset}", "dataset.count=2", *overrides])
    data = config.build(cfg, "data")
    segmentor = Segmentor.build(cfg)
    if model not in backbones:
        backbones[model] = segmentor.backbone
        segmentor.backbone.load()
    segmentor.backbone = backbones[model]
    segmentor.plan()
    evaluator = Evaluator(segmentor, config.build(cfg, "prompts"), data.dataset.classes, data.dataset.has_background)
    data.setup()
    data.size = segmentor.backbone.size
    return evaluator.predict_step(next(iter(data.predict_dataloader())))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_preset(backbones: dict, model: str, preset: str):
    few = ["calibration.exponents.timesteps=[100]"] if preset == "elbo" else []
    if (preset, model) in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[preset, model]):
            _evaluated(backbones, model, preset, *few)
        return
    for prediction in _evaluated(backbones, model, preset, *few):
        assert not hasattr(prediction, "reason"), prediction
        assert prediction.labels.shape[1:] == (64, 64)
        assert prediction.maps.scores.isfinite().all()
        if preset not in ("diffseg", "maskdiffusion"):  # constants that make one segment or class of a small model's picture
            assert len(prediction.labels[0].unique()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("preset", PICTURED)
def test_a_whole_run_ends_with_pictures(preset: str, tmp_path: Path):
    _run(tmp_path / "run", f"preset={preset}")
    assert list((tmp_path / "run" / "figures").glob("attention_*.png"))


@pytest.mark.slow
def test_segments_without_names_are_not_taken_for_classes(tmp_path: Path):
    """Of a picture of sand, sky and a cross, DiffCut's segments have numbers, which are no class ids."""
    _run(tmp_path / "nothing asked", "preset=diffcut")
    _run(tmp_path / "words", "preset=diffcut", "prompts=classes")
    asked = {}
    for folder in tmp_path.iterdir():
        record = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
        example = Example.load(next((folder / "drawn").glob("*.npz")))
        assert example.segments == len(example.refined) > 1
        assert len(example.class_ids) == len(example.raw) == len(example.calibrated)
        assert record["classes"] == list(example.class_ids)
        asked[folder.name] = len(example.class_ids)
    assert asked == {"nothing asked": 0, "words": 3}


def test_segments_without_names_go_with_matching_alone():
    with pytest.raises(ConfigError, match=r"CutFeatures with names=none .* decision=hungarian .* names=attention"):
        Segmentor.build(config.compose(["preset=diffcut", "decision=offset"]))
    named = ["preset=diffcut", "decision=offset", "prompts=classes", "refinement.steps.0.names=attention"]
    assert Segmentor.build(config.compose(named)).method.refinement.without_names is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts=concepts"], "goes with aggregation=concepts alone"),
        (["model=scenes_mmdit", "aggregation=concepts"], "which prompts=concepts gives"),
        (["prompts=unprompted"], "names no class to look for"),
        (["preset=diffcut", "views=shifted"], "other segments in every view"),
        (["calibration=files", "calibration.path=maps", "views=mirrored"], "as it stands, and views moves it"),
        (["preset=iseg", "sizing=window"], "divides each window's maps by their own sum"),
        (["preset=daam", "aggregation.heads=max"], "clamp averages all heads"),
        (["preset=elbo", "aggregation.coarsest=2"], "weigh=depth does not weigh levels"),
        (["preset=elbo", "aggregation.weights={1:1.0}"], "weights goes with weigh=level; weigh=depth does not read it"),
        (["preset=daam", "aggregation.sigma=3"], "sigma goes with weigh=depth"),
        (["preset=diffsegmenter", "aggregation.share_out=true"], "of which share_out knows nothing"),
        (["preset=diffsegmenter", "calibration=clustered"], "takes each level's"),
        (["preset=daam", "decision.stretch=false", "decision.eight_bits=true"], "set stretch=true as well"),
    ],
)
def test_prompts_and_views_that_a_method_can_do_nothing_with_are_refused(overrides: list[str], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        _run(tmp_path / "run", *overrides)


@pytest.mark.parametrize("preset", ["goca", "vanilla", "manual", "refam", "nerve", *PRESETS])
def test_thresholds_are_of_maps_on_their_scale(preset: str):
    """Raw attention reaches 0.2 and products of features 0.6: a sweep from 0.3 to 0.8 would say background, or chance."""
    method = Segmentor.build(config.compose([f"preset={preset}"])).method
    if preset not in ("seg4diff", "maskdiffusion"):
        method.check_background()
        return
    with pytest.raises(ConfigError, match=r"thresholds are of maps between 0 and 1.* decision=stretched"):
        method.check_background()
    Segmentor.build(config.compose([f"preset={preset}", "decision=stretched"])).method.check_background()


@pytest.mark.parametrize(
    ("decision", "refused"),
    [
        (["decision=offset"], False),  # 0 is in the sweep: class against background, on any scale
        (["decision=offset", "decision.thresholds=[0.3]"], True),
        (["decision=scored"], True),
        (["decision=exact"], False),
        (["decision=constant", "refinement=affinity"], False),  # which brings its maps between 0 and 1
    ],
)
def test_thresholds_of_raw_attention(decision: list[str], refused: bool):
    method = Segmentor.build(config.compose(["calibration=raw", "refinement=none", *decision])).method
    if refused:
        with pytest.raises(ConfigError, match="have another scale"):
            method.check_background()
    else:
        method.check_background()


def test_data_with_background_are_refused_before_the_model_is_loaded():
    cfg = config.compose(["preset=seg4diff", "model.checkpoint=nowhere"])
    segmentor = Segmentor.build(cfg)
    dataset = config.build(cfg, "data").dataset
    with pytest.raises(ConfigError, match="use data without background"):
        Evaluator(segmentor, config.build(cfg, "prompts"), dataset.classes, has_background=True).prepare(())
    sample, prompts = Sample("cat", np.zeros((64, 64, 3), np.uint8), None, ()), ()
    with pytest.raises(ConfigError, match="use data without background"):
        segmentor.predict([(sample, prompts)], 3, has_background=True)


@pytest.mark.slow
def test_maps_from_files_with_an_empty_prompt_are_another_regime_than_no_names(tmp_path: Path):
    """CLIPer as in its paper: the maps know the names, the model is told nothing."""
    dataset = config.build(config.compose(["dataset.count=1"]), "dataset")
    dataset.setup()
    sample = dataset[0]
    ids = torch.from_numpy(np.unique(sample.label)).long()
    ids = ids[(ids > 0) & (ids < 255)]
    label = torch.from_numpy(sample.label)
    scores = torch.stack([(label == i).float() for i in ids])
    save_file({"ids": ids, "scores": scores}, tmp_path / f"{sample.image_id}.safetensors")
    files = ["calibration=files", f"calibration.path={tmp_path}", "prompts=unprompted"]
    _run(tmp_path / "run", "preset=cliper", "refinement=none", "dataset.count=1", *files)
    summary = RunFolder(tmp_path / "run").summary()
    assert regime(summary.prompts) == "predicted names"
    assert "class maps from files" in Kind.of(summary).prompts
    assert summary.miou > 95  # the maps are the truth


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["vocabulary", "unprompted"])
def test_segments_matched_with_ground_truth_are_a_regime_of_their_own(tmp_path: Path, prompts: str):
    _run(tmp_path / "run", "preset=diffcut", "decision=hungarian", f"prompts={prompts}", "dataset.count=1")
    summary = RunFolder(tmp_path / "run").summary()
    assert regime(summary.prompts) == "matched with ground truth"
    assert Kind.of(summary).prompts.endswith("(matched with ground truth)")


def test_cliper_finds_classes_where_there_is_a_background(backbones: dict):
    """Scores are of the maps that go into the chain; of raw attention, which reaches 0.2, no class would pass min_score."""
    cfg = config.compose(["preset=cliper", "dataset.count=2"])
    segmentor, data = Segmentor.build(cfg), config.build(cfg, "data")
    segmentor.backbone = backbones.setdefault("scenes_unet", segmentor.backbone)
    segmentor.backbone.load()
    data.setup()
    data.size = segmentor.backbone.size
    evaluator = Evaluator(segmentor, config.build(cfg, "prompts"), data.dataset.classes, has_background=True)
    for prediction in evaluator.predict_step(next(iter(data.predict_dataloader()))):
        assert len(prediction.labels[0].unique()) > 2


def test_no_layer_left_is_said():
    segmentor = Segmentor.build(config.compose(["preset=daam", "aggregation.leave_out=['*']"]))
    segmentor.backbone.load()
    with pytest.raises(ModelError, match="leaves no layer of this model"):
        segmentor.plan()


def test_a_method_of_concepts_refuses_words():
    segmentor = Segmentor.build(config.compose(["model=scenes_mmdit", "preset=concept_attention"]))
    segmentor.backbone.load()
    with pytest.raises(ConfigError, match="which prompts=concepts gives"):
        segmentor.segment(np.zeros((64, 64, 3), np.uint8), ["cross", "sky"])


def _run(folder: Path, *overrides: str) -> None:
    one = ["model=scenes_unet_tiny", "logger=none", "figures.count=1", "figures.gallery=0", "limit=1"]
    evaluate(config.compose([*one, "trainer.enable_progress_bar=false", *overrides]), folder)


def test_several_noise_levels_average_their_attention(backbones: dict):
    """Token maps of a layer mean over two time steps are the mean of both."""
    passes = ["[50]", "[150]", "[50,150]"]
    maps = [
        _evaluated(backbones, "scenes_unet", "elbo", f"passes.timesteps={steps}", "calibration.exponents=null")[0].token_maps
        for steps in passes
    ]
    # The second of several forwards has noise of its own, so only the first summand is known.
    assert not torch.allclose(maps[0], maps[2])
    twice = _evaluated(backbones, "scenes_unet", "elbo", "passes.timesteps=[50]", "calibration.exponents=null")[0].token_maps
    torch.testing.assert_close(maps[0], twice)
    assert len(Passes((50, 150))) == 2


def test_words_that_predict_a_picture_badly_have_larger_exponents(backbones: dict):
    cfg = config.compose(["preset=elbo"])
    exponents = config.build(cfg, "calibration").exponents
    assert exponents({1: 0.2, 2: 0.6, 3: 0.4}) == pytest.approx({1: 1.0, 2: 3.0, 3: 3.0**0.5})
