"""`goca.generate save_labels=true`, and `goca.observe` without an image: folders that others read."""

import io
import runpy

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from goca import config
from goca.data.folder import Folder
from goca.data.protocol import Protocol
from goca.errors import ConfigError
from goca.generate import generate
from goca.observe import show
from tests.helpers.wandb_run import WandbRun


def made(folder, *overrides):
    cfg = config.compose(
        [
            "prompts.source=['star, grass','a circle on the sky']", "save_labels=true", "steps=2", "limit=null", "logger=none",
            "progress=false", "guidance=cfg", "calibration=goca", "refinement=none", f"output={folder}", *overrides,
        ],
        "generate",
    )  # fmt: skip
    return generate(cfg, folder)


def test_a_labelled_data_set_by_generation(tmp_path, tiny_model):
    model = [*tiny_model, "model=scenes_unet"]
    made(tmp_path, *model)
    assert (tmp_path / "classes.txt").read_text().split() == ["star", "grass", "circle", "sky"]
    data = Folder(root=tmp_path, protocol=Protocol("standard", "ignore", "skip", "classes"))
    data.setup()
    assert data.image_ids == ["0", "1"]
    labels = [data[i].label for i in range(2)]
    assert set(np.unique(labels[0])) <= {1, 2}
    assert set(np.unique(labels[1])) <= {3, 4}
    with np.load(tmp_path / "scores" / "0.npz") as stored:
        assert list(stored["words"]) == ["star", "grass"]
        assert stored["scores"].shape[0] == 2
        assert str(stored["prompt"]) == "star, grass"
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*.png")}
    (tmp_path / "masks" / "1.png").write_bytes(b"cut off")
    made(tmp_path, *model)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*.png")} == before
    for overrides, message in (
        (["labels.classes=[star]"], "lists other classes"),
        (["calibration=raw"], "another method"),
        (["labels.background=0.5"], "another method"),
        (["model.timestep=300"], "another method"),  # whose self-attention refines
    ):
        with pytest.raises(ConfigError, match=message):
            made(tmp_path, *model, *overrides)


def test_a_shard_shows_its_own_labels_where_the_other_has_none_yet(tmp_path, tiny_model):
    cut = [*tiny_model, "model=scenes_unet", "batch_size=1"]
    made(tmp_path, *cut, "save_labels=false")
    for shard, there in (("1/2", ["0"]), ("2/2", ["0", "1"])):
        made(tmp_path, *cut, f"shard={shard}")
        for pattern in ("masks/*.png", "figure_labels_*.png"):
            assert sorted(path.stem.removeprefix("figure_labels_") for path in tmp_path.glob(pattern)) == there


def test_a_word_belongs_to_one_class_and_a_background_in_a_prompt_to_none(tmp_path, tiny_model):
    model = [*tiny_model, "model=scenes_unet", "prompts.source=['red circle and grass','a circle on a white background']"]
    made(tmp_path / "named", *model, "labels.classes=[circle,red circle,grass]")
    with np.load(tmp_path / "named" / "scores" / "0.npz") as first, np.load(tmp_path / "named" / "scores" / "1.npz") as second:
        assert sorted(first["words"]) == ["grass", "red circle"]
        assert list(second["words"]) == ["circle"]
    made(tmp_path / "all", *model)
    assert (tmp_path / "all" / "classes.txt").read_text().split() == ["red", "circle", "grass", "white"]
    with pytest.raises(ConfigError, match="'background' cannot be looked for"):
        made(tmp_path / "asked", *model, "labels.classes=[circle,background]")
    assert not (tmp_path / "asked" / "manifest.jsonl").exists()


def test_a_picture_whose_words_lie_beyond_the_token_limit_gets_an_empty_label(tmp_path, tiny_model, caplog):
    long = f"{'grass ' * 90}star"
    chosen = [*tiny_model, "model=scenes_unet", f"prompts.source=['{long}','a star']", "labels.classes=[star]"]
    made(tmp_path, *chosen)
    assert not np.asarray(Image.open(tmp_path / "masks" / "0.png")).any()
    assert np.asarray(Image.open(tmp_path / "masks" / "1.png")).any()
    assert "save_labels: 0: not looked for, as no token is left for them: 'star'" in caplog.text
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.png")}
    made(tmp_path, *chosen)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.png")} == times


def test_labels_of_chosen_classes_with_guidance_by_regions(tmp_path, tiny_model):
    """Two observers of one drawing: the guidance's own, and the labels'."""
    chosen = ["guidance=goca", "labels.classes=[circle,grass]", "labels.background=0.2", *tiny_model, "model=scenes_unet"]
    made(tmp_path / "with", *chosen)
    made(tmp_path / "without", *chosen, "save_labels=false")
    for name in ("0", "1"):
        pictures = [np.asarray(Image.open(tmp_path / part / "images" / f"{name}.png")) for part in ("with", "without")]
        assert np.array_equal(*pictures)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "with" / "masks" / "0.png")))) <= {0, 2}
    assert (tmp_path / "with" / "figure_labels_0.png").is_file()


def test_the_command_draws_where_no_image_is_given(tmp_path, tiny_model):
    settings = ["prompt='star, grass'", "reads='circle, sky'", "negative_prompt=snow", "steps=3", f"output={tmp_path}"]
    cfg = config.compose(["model=scenes_unet", *tiny_model, *settings, "save=tensors", "preset=goca"], "observe")
    show(cfg, Console(quiet=True))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"picture.png", "steps.png", "film.gif", "0_star_mask.png", "1_grass_overlay.png", "segmentation.png"} <= names
    assert {"reads_steps.png", "reads_0_circle_mask.png", "negative_steps.png", "attention.safetensors"} <= names
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
    with pytest.raises(ConfigError, match="multiples of"):
        show(config.compose(["model=scenes_unet", *tiny_model, *settings, "size=[33,32]"], "observe"), Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["aggregation=concepts"], "aggregation=concepts follows words through one forward"),
        (["+decision=hungarian"], "decision=hungarian matches clusters to ground truth"),
        (["calibration=raw", "labels.background=0.5"], "thresholds are of maps between 0 and 1"),
    ],
)
def test_labels_that_a_drawing_cannot_give_are_refused_before_it(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, "model=scenes_mmdit", "model.checkpoint=nowhere", *settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["preset=concept_attention"], "aggregation=concepts follows words through one forward"),
        (["calibration=files", "calibration.path=maps"], "calibration=files brings maps of its own"),
        (["decision=hungarian"], "decision=hungarian matches clusters to ground truth"),
        (["preset=diffcut"], "decision=hungarian matches clusters to ground truth"),
        (["preset=diffseg"], "decision=hungarian matches clusters to ground truth"),
        (["calibration=raw", "refinement=none", "background=0.5"], "thresholds are of maps between 0 and 1"),
        (["pixels=[[64,0]]"], "pixels: 64,0 is outside the image of 64 x 64 pixels"),
        (["image=scenes:0", "pixels=[[0,64]]"], "pixels: 0,64 is outside the image of 64 x 64 pixels"),
    ],
)
def test_what_a_drawing_cannot_give_is_refused_before_weights_are_read(settings, message):
    cfg = config.compose(["model=scenes_mmdit", "model.checkpoint=nowhere", "prompt='circle, grass'", *settings], "observe")
    with pytest.raises(ConfigError, match=message):
        show(cfg, Console(quiet=True))


@pytest.mark.parametrize(("settings", "stages"), [(["preset=faseg"], "views, passes"), (["views=noises"], "views")])
def test_views_and_passes_have_no_effect_on_a_drawing_and_are_said_to_have_none(tmp_path, tiny_model, settings, stages):
    common = ["model=scenes_unet", *tiny_model, "prompt='star, grass'", "steps=1", "film=none", f"output={tmp_path}"]
    console = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    show(config.compose([*common, *settings], "observe"), console)
    assert f"warning: {stages} of this method: without effect on a drawing" in console.export_text()
    assert (tmp_path / "segmentation.png").is_file()


@pytest.mark.parametrize("typed", ["views=mirrored", "passes.clean=true", "sizing=window"])
def test_what_is_typed_without_effect_on_a_drawing_is_refused(tmp_path, monkeypatch, hydra_restore_singletons, capsys, typed):
    monkeypatch.setattr("sys.argv", ["observe", "prompt=star", "model.checkpoint=nowhere", typed, f"output={tmp_path}"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("goca.observe", run_name="__main__")
    assert stopped.value.code == 2
    assert f"error: {typed}: the drawing itself says at which noise levels" in capsys.readouterr().err


def test_more_steps_than_levels_of_noise_are_one_message(tiny_model):
    cfg = config.compose(["model=scenes_unet", *tiny_model, "prompt=star", "steps=1001"], "observe")
    with pytest.raises(ConfigError, match="levels of noise, too few for 1001 steps"):
        show(cfg, Console(quiet=True))


@pytest.mark.parametrize("setting", ["steps=3", "guidance_scale=2", "size=[64,64]", "film=mp4"])
def test_what_is_for_a_drawing_is_not_ignored_for_an_image(setting):
    cfg = config.compose(["model=scenes_unet", "model.checkpoint=nowhere", "prompt=star", "image=scenes:0", setting], "observe")
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]} is for a picture that is drawn"):
        show(cfg, Console(quiet=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["image=scenes:0", "reads='circle, sky'"], "reads is for a picture that is drawn"),
        (["image=scenes:0", "negative_prompt=snow"], "negative_prompt is for a picture that is drawn"),
        (["heads=['*']"], "heads are shown of an existing picture"),
    ],
)
def test_nothing_that_is_asked_for_is_left_out_without_a_word(settings, message):
    with pytest.raises(ConfigError, match=message):
        show(config.compose(["model=scenes_unet", "prompt=star", *settings], "observe"), Console(quiet=True))


@pytest.mark.slow
def test_loggers_are_given_figures_films_and_tables(tmp_path, tiny_model):
    settings = ["model=scenes_unet", *tiny_model, "prompt='star, grass'"]
    drawn = [*settings, "steps=2", f"output={tmp_path / 'drawn'}", "logger=wandb", "logger.mode=offline"]
    show(config.compose(drawn, "observe"), Console(quiet=True))
    run = WandbRun(tmp_path / "drawn")
    written = {path.stem for path in (tmp_path / "drawn").glob("*.png")}
    assert {"picture", "steps", "0_star_overlay", "segmentation", "stages"} <= written
    assert {f"figures/{name}.path" for name in written} <= run.history.keys()
    assert (run.files / run.history["films/film.path"]).read_bytes() == (tmp_path / "drawn" / "film.gif").read_bytes()
    assert [row[1] for row in run.table("tokens") if row[2] == "grass"] == ["grass"]
    assert (run.run["run_group"], run.run["job_type"], run.summary["prompt"]) == ("observe", "observe", "star, grass")
    looked = [*settings, "image=scenes:0", f"output={tmp_path / 'looked'}", "logger=csv"]
    show(config.compose(looked, "observe"), Console(quiet=True))
    assert (tmp_path / "looked" / "tables" / "tokens.csv").read_text().startswith("position,token,part")
