"""Training of every bundled architecture, one step each, and what it leaves: a pipeline that its adapter takes unchanged."""

import json
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

from goca.errors import ConfigError
from goca.ops import multiplies_half
from goca.paths import BUNDLED, CONF
from goca.runs.provenance import generator_measures
from goca.scenes.continued import keep_others, settle
from goca.scenes.datasets import CachedLatents
from goca.scenes.generator import scene
from goca.scenes.train import train
from goca.segmentor import Segmentor

pytestmark = pytest.mark.slow

SMALL = {
    "scenes_unet": [],
    "scenes_dit": ["backbone.pipeline.transformer.num_layers=4"],
    "scenes_mmdit": [],
}
MODELS = {
    "scenes_unet": ["scenes_unet"],
    "scenes_dit": ["scenes_dit", "model.layers.affinity=[transformer_blocks.3.attn1]"],
    "scenes_mmdit": ["scenes_mmdit"],
}  # fmt: skip
FAST = ["scenes=8", "held_out=2", "threads=1", "accelerator=cpu", "backbone.denoiser.steps=1", "backbone.denoiser.batch=2",
        "backbone.vae.steps=1", "backbone.vae.batch=2"]  # fmt: skip
if not multiplies_half(torch.bfloat16, "cpu"):
    FAST.append("precision=32")


def config(backbone: str, folder, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        places = [f"work={folder / 'work'}", f"output={folder}"]
        return compose("train", [f"backbone={backbone}", *FAST, *SMALL[backbone], *places, *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every architecture after one step, the transformers with the UNet's autoencoder."""
    folder = tmp_path_factory.mktemp("zoo")
    unet = train(config("scenes_unet", folder))
    shared = [f"vae={unet}", f"latents={folder / 'work' / 'scenes_unet' / 'latents.pt'}"]
    others = {name: train(config(name, folder, *shared)) for name in SMALL if name != "scenes_unet"}
    return {"scenes_unet": unet, **others}


@pytest.mark.parametrize("name", SMALL)
def test_the_adapter_takes_the_trained_pipeline(name, trained):
    report = json.loads((trained[name] / "training.json").read_text())
    assert report["steps"] == 1
    loss = {"scenes_mmdit": "held_out_loss_velocity"}.get(name, "held_out_loss_noise")
    assert generator_measures(str(trained[name])) == {loss: report["held_out_loss"]}
    assert report["held_out_loss"] > 0
    segmentor = Segmentor.from_config(*MODELS[name], f"model.checkpoint={trained[name]}", "model.device=cpu")
    segmentor.plan()
    result = segmentor.segment(scene(0).image, ["grass", "moon"])
    assert result.label_map.shape == (64, 64)
    assert all(torch.isfinite(values).all() for values in map(torch.as_tensor, result.class_maps.values()))


def test_text_encoders_are_named_as_published_ones(trained):
    """transformers 5.0 reads these names alone."""
    places = [*trained.values(), *sorted(BUNDLED.iterdir())]
    encoders = [file.parent for place in places for file in place.glob("text_encoder*/config.json")]
    kinds = {folder: json.loads((folder / "config.json").read_text())["architectures"] for folder in encoders}
    clip = [folder for folder, kind in kinds.items() if kind[0].startswith("CLIPText")]
    assert len(clip) >= 8
    for folder in clip:
        names = load_file(folder / "model.safetensors").keys()
        assert all(name.startswith("text_model.") or name == "text_projection.weight" for name in names), folder


@pytest.mark.parametrize("override", ["seed=1", "scenes=12", "backbone.denoiser.optimizer.learning_rate=0.5", "vae={unet}"])
def test_a_training_of_other_settings_is_not_continued(trained, override):
    unet = trained["scenes_unet"]
    cfg = config("scenes_unet", unet.parent, override.format(unet=unet))
    with pytest.raises(ConfigError, match="holds a training of other settings") as caught:
        train(cfg)
    assert ("autoencoder" if "vae" in override else override.split("=")[0]) in str(caught.value)


def test_the_same_training_is_continued_with_other_threads_and_folders(trained):
    unet = trained["scenes_unet"]
    settle(config("scenes_unet", unet.parent, "threads=2", "output=elsewhere"), unet.parent / "work" / "scenes_unet")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1", "seed: 0 -> 1"),
        ("backbone.denoiser.optimizer.learning_rate=0.5", "learning_rate: "),
        ("start={unet}", "started_from: "),
    ],
)
def test_a_finished_pipeline_is_not_replaced_by_another_training(trained, tmp_path, override, said):
    unet = trained["scenes_unet"]
    before = (unet / "training.json").read_bytes()
    with pytest.raises(ConfigError, match=r"(?s)holds the pipeline of another training.*Give output=DIR") as caught:
        train(config("scenes_unet", unet.parent, f"work={tmp_path}", override.format(unet=unet)))
    assert said in str(caught.value)
    assert [path.name for path in (tmp_path / "scenes_unet").iterdir()] == ["training.yaml"]  # nothing was trained
    assert (unet / "training.json").read_bytes() == before


def test_a_pipeline_of_the_same_training_may_be_written_again(trained, tmp_path):
    unet = trained["scenes_unet"]
    cfg = config("scenes_unet", unet.parent, f"work={tmp_path}", "threads=2", "paths.output=elsewhere")
    chosen = settle(cfg, tmp_path)
    keep_others(cfg, chosen, unet)
    keep_others(cfg, chosen, tmp_path / "nowhere")
    noted = json.loads((unet / "training.json").read_text())
    of_before = tmp_path / "of_before"
    of_before.mkdir()
    for keys, seed, refused in ((("seed", "scenes"), 0, False), (("seed", "scenes"), 1, True), (("scenes",), 1, False)):
        report = {key: value for key, value in (noted | {"seed": seed}).items() if key in keys}
        (of_before / "training.json").write_text(json.dumps(report))
        with pytest.raises(ConfigError, match="seed: 1 -> 0") if refused else nullcontext():
            keep_others(cfg, chosen, of_before)
    (of_before / "training.json").write_text("{")
    with pytest.raises(ConfigError, match=r"training\.json cannot be read"):
        keep_others(cfg, chosen, of_before)


def test_states_along_training_of_another_are_not_replaced_either(tmp_path):
    (tmp_path / "scenes_unet_2").mkdir()
    (tmp_path / "scenes_unet_2" / "training.json").write_text('{"scenes": 9}')
    with pytest.raises(ConfigError, match=r"scenes_unet_2 holds the pipeline of another training"):
        train(config("scenes_unet", tmp_path, "backbone.denoiser.steps=4", "backbone.denoiser.keep_every=2"))


def test_backbones_share_the_autoencoder(trained):
    first, second = (trained[name] / "vae" / "diffusion_pytorch_model.safetensors" for name in ("scenes_unet", "scenes_mmdit"))
    assert first.read_bytes() == second.read_bytes()


def test_a_training_goes_on_from_trained_weights_on_another_look(tmp_path, trained):
    unet = trained["scenes_unet"]
    still = ["backbone.denoiser.optimizer.learning_rate=0", "backbone.vae.optimizer.learning_rate=0", f"start={unet}"]
    folder = train(config("scenes_unet", tmp_path, "look=camouflage", *still))
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = load_file(unet / file), load_file(folder / file)
        assert all(torch.equal(before[key], value) for key, value in after.items())
    report = json.loads((folder / "training.json").read_text())
    assert (report["look"], report["started_from"]) == ("camouflage", "scenes_unet")
    latents = f"latents={tmp_path / 'work' / 'scenes_unet' / 'latents.pt'}"
    with pytest.raises(ConfigError, match=r"latents.* 10 camouflage scenes, this run needs 10 plain ones"):
        train(config("scenes_unet", tmp_path / "other", f"vae={unet}", latents))
    with pytest.raises(ConfigError, match=r"start: .* holds StableDiffusionPipeline, .* is a PixArtSigmaPipeline"):
        train(config("scenes_dit", tmp_path / "dit", f"start={unet}"))


def test_states_along_training_are_kept_and_a_finished_run_is_not_repeated(tmp_path, trained):
    shared = [f"vae={trained['scenes_unet']}", "backbone.denoiser.steps=2", "backbone.denoiser.keep_every=1"]
    folder = train(config("scenes_unet", tmp_path, *shared))
    early = folder.with_name("scenes_unet_1")
    assert json.loads((early / "training.json").read_text())["steps"] == 1
    weights = "unet/diffusion_pytorch_model.safetensors"
    final = load_file(folder / weights)
    assert any((final[key] != value).any() for key, value in load_file(early / weights).items())
    train(config("scenes_unet", tmp_path, *shared))
    torch.testing.assert_close(load_file(folder / weights), final, rtol=0.01, atol=1e-4)  # at most one step of averaging apart


def test_two_processes_train_one_backbone(warm_python, tmp_path):
    fast = [override.replace("batch=2", "batch=4") for override in FAST]
    places = [f"work={tmp_path / 'work'}", f"output={tmp_path}"]
    command = [warm_python, "-m", "goca.scenes.train", "devices=2", *fast, "backbone.denoiser.steps=2", *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "scenes_unet" / "training.json").read_text())
    assert report["steps"] == 2 and report["devices"] == 2 and report["batch"] == 4
    unet = load_file(tmp_path / "scenes_unet" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.isfinite(values).all() for values in unet.values())


def test_devices_that_do_not_divide_a_batch_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"devices: 3 does not divide backbone\.vae\.batch, 2"):
        train(config("scenes_unet", tmp_path, "devices=3"))


def test_float16_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"precision: 16-mixed .* bf16-mixed or 32"):
        train(config("scenes_unet", tmp_path, "precision=16-mixed"))


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_without_bfloat16_is_told_of(tmp_path, monkeypatch, caplog, fast):
    monkeypatch.setattr("goca.ops.multiplies_half", lambda dtype, device: fast)
    with pytest.raises(ConfigError, match=r"look: nowhere is not one of"):  # looked at next, so that nothing is trained
        train(config("scenes_unet", tmp_path, "precision=bf16-mixed", "look=nowhere"))
    assert ("precision: this processor has no instructions for bfloat16" in caplog.text) is not fast


# The one of the camouflage look starts from trained weights, which its average may remember.
@pytest.mark.parametrize(
    "name", sorted({path.stem for path in (CONF / "backbone").glob("*.yaml")} - {"scenes_unet_camouflage"})
)
def test_averages_forget_the_random_start(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        backbone = compose("train", [f"backbone={name}"]).backbone
    for part in (backbone.vae, backbone.denoiser):
        assert part.ema**part.steps < 1e-3


def test_prompts_are_the_words_in_any_order_and_sometimes_empty():
    words = [["grass", "moon", "star"]] * 200
    data = CachedLatents(torch.zeros(200, 4, 2, 2), torch.ones(200, 4, 2, 2), words)
    prompts = [data[i][1] for i in range(200)]
    assert {frozenset(prompt.split(", ")) for prompt in prompts} == {frozenset(words[0]), frozenset([""])}
    assert len(set(prompts)) == 7
    assert 5 < prompts.count("") < 40
