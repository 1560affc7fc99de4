"""The two commands from configuration to files, on the bundled backbone."""

import json
import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from goca import config, evaluate_generation, generate
from goca.backbones.unet import UNetBackbone
from goca.errors import ConfigError, DataError, ModelError
from goca.generation import measures
from goca.generation.image_sets import ImageSet
from goca.generation.pictures import read_manifest
from goca.paths import BUNDLED, CONF
from goca.scenes.classifier import SceneClassifier
from tests.helpers.tiny_pipelines import tiny_pipeline
from tests.helpers.wandb_run import WandbRun

pytestmark = pytest.mark.skipif(not (BUNDLED / "scenes_unet").is_dir(), reason="the bundled backbone is not here")
SMALL = ("limit=3", "batch_size=2", "steps=2", "logger=csv", "progress=false", "seeds=by_id")


def make(folder, *overrides):
    return generate.generate(config.compose([*SMALL, *overrides], "generate"), folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same prompts and seeds with two kinds of guidance."""
    root = tmp_path_factory.mktemp("made")
    for name in ("cfg", "goca"):
        make(root / name, f"guidance={name}", "guidance.scale=3", "save_maps=[1]")
    return root


def test_pictures_maps_and_numbers(made):
    records = read_manifest(made / "goca")
    assert [record["image_id"] for record in records] == ["1000000", "1000001", "1000002"]
    assert len({record["seed"] for record in records}) == 3
    summary = json.loads((made / "goca" / "summary.json").read_text())
    assert (summary["method"], summary["guidance_scale"], summary["pictures"]) == ("goca", 3.0, 3)
    with np.load(made / "goca" / "maps" / "1000000_001.npz") as maps:
        assert maps["regions"].shape == maps["foreground"].shape == maps["rate"].shape == (16, 16)
        assert "sky" in maps["tokens"]
    assert not (made / "cfg" / "maps").exists()
    assert (made / "goca" / "figure_pictures.png").is_file() and (made / "goca" / "tables" / "pictures.csv").is_file()


def test_a_restart_makes_what_is_missing_and_nothing_else(made):
    path = made / "goca" / "images" / "1000001.png"
    before, times = path.read_bytes(), {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    path.unlink()
    make(made / "goca", "guidance=goca", "guidance.scale=3")
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir() if file.stat().st_mtime_ns != times[file.name]} == {path.name}
    with pytest.raises(ConfigError, match="another settings"):
        make(made / "goca", "guidance=goca", "guidance.scale=4")


def test_weights_are_written_down_and_never_mixed_in_one_folder(tmp_path):
    make(tmp_path, "limit=1")
    written = json.loads((tmp_path / "checkpoint.json").read_text())
    assert json.loads((tmp_path / "summary.json").read_text())["checkpoint_hash"] == written["checkpoint_hash"]
    assert len(written["checkpoint_hash"]) == 64
    (tmp_path / "checkpoint.json").write_text(json.dumps(written | {"checkpoint_hash": "0" * 64}))
    with pytest.raises(ConfigError, match="were made with other weights"):
        make(tmp_path, "limit=2")


def test_shards_make_the_same_pictures(made, tmp_path):
    for shard in ("2/2", "1/2"):
        make(tmp_path, "guidance=goca", "guidance.scale=3", f"shard={shard}")
    for record in read_manifest(made / "goca"):
        assert (tmp_path / record["file"]).read_bytes() == (made / "goca" / record["file"]).read_bytes()
    assert ImageSet.open(str(tmp_path)).ids == ImageSet.open(str(made / "goca")).ids  # they can be compared pair by pair


@pytest.mark.parametrize("guidance", [path.stem for path in sorted((CONF / "guidance").glob("*.yaml"))])
@pytest.mark.parametrize("model", ["scenes_unet", "sd15", "sdxl", "pixart_sigma_512"])
def test_every_guidance_with_every_model_builds(guidance, model):
    generator = generate.build(config.compose([f"guidance={guidance}", f"model={model}"], "generate"))
    assert generator.guidance.name == guidance
    heads = generator.method.aggregation.heads
    assert heads == ("average" if guidance == "scfg" else "dot_product")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("guidance.scale=1", r"guidance\.scale.*above 1"),
        ("guidance.limits=[3,1]", "lower limit"),
        ("guidance_every=0", "guidance_every: should be greater than 0"),
        ("size=64", "size: should be a list"),
        ("size=[65,64]", "multiples of"),
        ("steps=0", "steps"),
        ("batch_size=none", "batch_size"),
        ("scheduler=Nothing", "DDIMScheduler"),
        ("model.text_encoders=first", "resident"),
        ("shard=3/2", "shard"),
        ("prompts.source=absent.csv", r"absent\.csv"),
        ("refinement=pamr", "no image"),
        ("save_maps=1", "save_maps: should be a list"),
        ("save_maps=[2]", r"save_maps: give denoiser calls from 0 to 1, such as \[0,1\]; got \[2\]"),
        ("seeds=any", "should be 'same' or 'by_id'"),
        ("steps=1001", "steps: DDIMScheduler has 1000 levels of noise, too few for 1001 steps"),
        ("calibration=loss_power", "calibration: exponents are measured on a finished image"),
    ],
)
def test_wrong_settings_stop_with_one_message(tmp_path, override, message):
    with pytest.raises((ConfigError, DataError), match=message):
        make(tmp_path, override)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_maps_are_asked_for_of_calls_that_a_scheduler_of_second_order_makes(tmp_path):
    heun = ("guidance=goca", "scheduler=HeunDiscreteScheduler", "limit=1")
    with pytest.raises(ConfigError, match=r"denoiser calls from 0 to 2, such as \[0,2\]; got \[3\]"):
        make(tmp_path, *heun, "save_maps=[3]")
    make(tmp_path, *heun, "save_maps=[2]")
    assert len(list(tmp_path.glob("maps/*_002.npz"))) == 1


def test_what_has_no_effect_is_said_to_have_none(tmp_path, capsys):
    make(tmp_path, "limit=1", "guidance=cfg", "save_maps=[0]", "labels.background=0.5")
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: save_maps: guidance=cfg finds no regions" in said
    assert "warning: labels.background: no labels are made without save_labels=true" in said
    assert "labels.classes" not in said


def test_a_restart_with_nothing_to_do_remembers_the_scheduler(tmp_path):
    for _ in range(2):
        assert make(tmp_path, "limit=1")["scheduler"] == "DDIMScheduler"
    assert json.loads((tmp_path / "summary.json").read_text())["scheduler"] == "DDIMScheduler"
    written = json.loads((tmp_path / "checkpoint.json").read_text())
    del written["scheduler"]  # as folders of before have it
    (tmp_path / "checkpoint.json").write_text(json.dumps(written))
    assert make(tmp_path, "limit=1")["scheduler"] == "DDIMScheduler"


@pytest.fixture
def untrained(monkeypatch):
    """Seeded weights in place of the trained classifier's."""
    torch.manual_seed(0)
    classifier = SceneClassifier().eval()
    monkeypatch.setattr(measures.SceneClassifier, "load", lambda: classifier)


def judge(made, folder, *overrides):
    images = f"images=[{made / 'cfg'},{made / 'goca'}]"
    common = [images, "logger=csv", "progress=false", "min_images=2", f"cache={folder / 'cache'}", "bootstrap=5"]
    return evaluate_generation.evaluate(config.compose([*common, *overrides], "evaluate_generation"), folder)


def test_only_pictures_of_the_same_prompts_and_seeds_are_compared(made, tmp_path, untrained):
    make(tmp_path / "goca", "guidance=goca", "guidance.scale=3", "seed=7")
    results = judge(made, tmp_path, f"images=[{made / 'cfg'},{tmp_path / 'goca'}]", "reference=scenes:16")
    assert [run["minus_cfg"] for run in results["runs"]] == [{}, {}]
    assert not list(tmp_path.glob("*side_by_side.png"))


def test_only_pictures_that_differ_in_guidance_alone_are_compared(made, tmp_path, untrained):
    """The same prompts, seeds and scale, drawn in other steps or by another scheduler, are no baseline."""
    make(tmp_path / "steps" / "cfg", "guidance=cfg", "guidance.scale=3", "steps=3")
    make(tmp_path / "scheduler" / "cfg", "guidance=cfg", "guidance.scale=3", "scheduler=own")
    others = [str(tmp_path / name / "cfg") for name in ("steps", "scheduler")]
    results = judge(made, tmp_path, f"images=[{','.join(others)},{made / 'goca'}]", "reference=scenes:16")
    assert [run["run"] for run in results["runs"]] == ["steps/cfg", "scheduler/cfg", "goca"]
    assert [run["minus_cfg"] for run in results["runs"]] == [{}, {}, {}]
    again = judge(made, tmp_path, f"images=[{','.join(others)},{made / 'cfg'},{made / 'goca'}]", "reference=scenes:16")
    assert again["runs"][3]["minus_cfg"] == judge(made, tmp_path, "reference=scenes:16")["runs"][1]["minus_cfg"] != {}


def test_folders_of_one_name_keep_a_column_and_numbers_each(made, tmp_path, untrained):
    make(tmp_path / "goca", "guidance=goca", "guidance.scale=3", "save_maps=[1]")
    folders = f"images=[{tmp_path / 'goca'},{made / 'goca'}]"
    results = judge(made, tmp_path, folders, "reference=scenes:16")
    first, second = (run["run"] for run in results["runs"])
    assert first != second and first.endswith("/goca") and second.endswith("/goca")
    with Image.open(tmp_path / "side_by_side.png") as both, Image.open(made / "goca" / "figure_pictures.png") as one:
        assert both.width > 1.5 * one.width
    scalars = (tmp_path / "tables" / "summary.csv").read_text()
    assert f"{first}/scenes distance" in scalars and f"{second}/scenes distance" in scalars
    with pytest.raises(ConfigError, match="is given twice"):
        judge(made, tmp_path, f"images=[{made / 'goca'},{made}/./goca]", "reference=scenes:16")


@pytest.mark.parametrize("missing", ["reference=null", "extractor=none"])
def test_statistics_that_would_not_be_written_are_refused(made, tmp_path, untrained, missing):
    with pytest.raises(ConfigError, match="save_statistics keeps what an extractor sees in reference"):
        judge(made, tmp_path, missing, f"save_statistics={tmp_path / 'statistics.npz'}", "clip=nobody/clip")


def test_evaluation_of_two_kinds_of_guidance(made, tmp_path, untrained):
    results = judge(made, tmp_path, "reference=scenes:16", f"save_statistics={tmp_path / 'stats.npz'}")
    plain, goca = results["runs"]
    assert (plain["run"], goca["run"], plain["minus_cfg"]) == ("cfg", "goca", {})
    assert set(goca["measures"]) == {"scenes distance", "answers right %", "named classes shown %"} == set(goca["minus_cfg"])
    assert results["reference_images"] == 16 and "64" in results["resize"] and "scenes classifier" in results["extractor"]
    for name in ("side_by_side", "maps_side_by_side"):
        with Image.open(tmp_path / f"{name}.png") as grid:
            grid.load()
    assert "goca" in (tmp_path / "results.md").read_text()
    again = judge(made, tmp_path, f"reference={tmp_path / 'stats.npz'}")
    assert again["runs"] == results["runs"]


def test_too_few_images_and_wrong_statistics(made, tmp_path, untrained):
    with pytest.raises(DataError, match=r"3 images are too few for the scenes distance.*65"):
        judge(made, tmp_path, "min_images=null")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(DataError, match=r"holds 3 features.*gives 64"):
        judge(made, tmp_path, f"reference={tmp_path / 'other.npz'}")
    with pytest.raises(ConfigError, match="at least one measure"):
        judge(made, tmp_path, "extractor=none")


@pytest.mark.parametrize("override", ["batch_size=0", "chunk=0", "bootstrap=few"])
def test_numbers_of_the_evaluation_that_cannot_be(made, tmp_path, untrained, override):
    with pytest.raises(ConfigError, match=f"{override.split('=')[0]}: should be "):
        judge(made, tmp_path, override)


def test_a_model_without_guidance_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(UNetBackbone, "inspect", lambda self: setattr(self, "pipeline", tiny_pipeline("flux_dev")))
    monkeypatch.setattr(UNetBackbone, "load", lambda self: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match=r"FluxPipeline.*no unconditional prediction"):
        make(tmp_path, "guidance=goca")


def test_figures_of_maps_are_as_many_as_asked_for(tmp_path):
    make(tmp_path, "guidance=scfg", "save_maps=[0,1]", "figures.count=1")
    assert len(list(tmp_path.glob("maps/*.npz"))) == 6 and len(list(tmp_path.glob("figure_maps_*.png"))) == 1


def test_wandb_gets_pictures_maps_and_the_table_over_scales(made, tmp_path, untrained):
    """From both commands, as W&B's own command reads the runs back."""
    offline = ("logger=wandb", "logger.mode=offline")
    make(tmp_path / "run", "guidance=goca", "guidance.scale=5", "save_maps=[1]", "limit=2", *offline)
    run = WandbRun(tmp_path / "run")
    assert {"figures/pictures", "figures/maps/1000000", "tables/pictures"} <= {key.rsplit(".")[0] for key in run.history}
    assert run.summary["guidance_scale"] == 5
    judge(made, tmp_path, "reference=scenes:16", *offline)
    judged = WandbRun(tmp_path)
    assert {"figures/side_by_side", "figures/maps_side_by_side"} <= {key.rsplit(".")[0] for key in judged.history}
    assert [row[:4] for row in judged.table("runs")] == [["cfg", "cfg", 3.0, 3], ["goca", "goca", 3.0, 3]]


def run_command():
    """`python -m goca.generate` in this process."""
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("goca.generate", run_name="__main__")
    assert not stopped.value.code


def test_a_sweep_over_guidance_and_scales(tmp_path, monkeypatch, hydra_restore_singletons):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by the command, and taken back behind the test
    overrides = ["guidance=cfg,goca", "guidance.scale=2,7.5", f"paths.output={tmp_path}", *SMALL, "limit=1", "steps=1"]
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    monkeypatch.setattr("sys.argv", ["generate", "-m", *overrides, *quiet])
    run_command()
    folders = sorted(path.parent.name for path in tmp_path.glob("generation/*/images"))
    assert folders == [f"scenes_unet_{guidance}_{scale}" for guidance in ("cfg", "goca") for scale in (2, 7.5)]


def test_prompts_on_the_command_line(tmp_path, monkeypatch):
    """`prompts=FILE` is a file although `prompts` is a group of options elsewhere."""
    (tmp_path / "two.csv").write_text("image_id,text\nx,moon\ny,star\n")
    seen = []
    monkeypatch.setattr(generate, "generate", lambda cfg, folder: seen.append(cfg.prompts.source))
    for value in (str(tmp_path / "two.csv"), "[moon,a star]"):
        monkeypatch.setattr("sys.argv", ["generate", f"prompts={value}", f"paths.output={tmp_path}"])
        run_command()
    assert seen == [str(tmp_path / "two.csv"), ["moon", "a star"]]
