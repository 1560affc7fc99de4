"""model=auto, and `python -m goca.layers`."""

import io
import os
import subprocess

import pytest
import yaml
from diffusers import DiffusionPipeline
from rich.console import Console

from goca import config
from goca.backbones.auto import propose, propose_for
from goca.backbones.flux import FluxBackbone
from goca.errors import ConfigError, ModelError
from goca.layers import show
from goca.paths import BUNDLED, CONF
from goca.runs.evaluation import evaluate
from tests.helpers.tiny_pipelines import FAMILIES, tiny_pipeline


@pytest.fixture(
    scope="module",
    params=["sd", "hunyuan_dit", "flux_dev", "aura_flow"],
)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / request.param
    tiny_pipeline(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.mark.slow
def test_a_proposal_names_layers_that_run(saved, tmp_path):
    """All observed layers take part, and the main job runs with what is proposed, bar the size."""
    family, folder = saved
    adapter, settings = FAMILIES[family].adapter, FAMILIES[family].settings
    proposal = propose(str(folder))
    assert proposal["_target_"] == f"{adapter.__module__}.{adapter.__name__}"
    assert proposal["name"] == family
    overrides = ["model=auto", f"model.checkpoint={folder}", "model.size=64", "logger=none", "limit=1", "figures.count=0"]
    overrides += [f"+model.{key}={value}" for key, value in settings.items()]
    summary = evaluate(config.compose([*overrides, "dataset=scenes"]), tmp_path)
    assert summary["model"] == family
    assert len(summary["layer_weights"]) >= 2


def test_a_finetune_gets_the_constants_of_its_architecture(monkeypatch):
    """A checkpoint whose layers are those of a known model is proposed that model's config, under its own name."""
    from goca.backbones import auto
    from goca.backbones.loading import architectures

    known = "PixArt-alpha/PixArt-Sigma-XL-2-512-MS"
    published = {**architectures.published(), "someone/finetune": architectures.published()[known]}
    monkeypatch.setattr(architectures, "published", lambda: published)
    monkeypatch.setattr(auto, "check_source", lambda source: {"_class_name": "PixArtSigmaPipeline"})
    auto._propose.cache_clear()
    proposal = propose("someone/finetune")
    auto._propose.cache_clear()
    expected = config.plain(config.compose(["model=pixart_sigma_512"]).model)
    assert proposal["name"] == "finetune"
    assert proposal["checkpoint"] == "someone/finetune"
    for key in ("size", "layers", "affinity_order", "text_length", "heads"):
        assert proposal[key] == expected[key]


def test_what_no_adapter_takes_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    with pytest.raises(ModelError, match=r"StableAudioPipeline, which no adapter takes; .*FluxPipeline"):
        propose(str(tmp_path))


@pytest.mark.parametrize("pipeline", ["GlmImagePipeline", "BriaFibo2Pipeline"])
def test_a_model_without_words_in_its_sequence_is_refused_with_the_reason(tmp_path, pipeline):
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{pipeline}"}}')
    with pytest.raises(ModelError, match=rf"is a {pipeline}, which cannot be observed: its (denoiser|text) is"):
        propose(str(tmp_path))


def test_auto_without_a_checkpoint_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"model=auto needs model\.checkpoint"):
        config.build(config.compose(["model=auto"]), "model")


def _printed(*overrides):
    console = Console(width=150, record=True, file=io.StringIO())
    show(config.compose(overrides, "layers"), console)
    return console.export_text()


def test_the_layer_table_shows_kind_heads_width_grid_and_use():
    lines = _printed("model=flux_dev").splitlines()
    (reference,) = [line for line in lines if "reference" in line]
    assert " ".join(reference.split()) == "single_transformer_blocks.8.attn joint 24 3072 64 x 64 512 cross, reference"
    assert any("transformer" in line and "11901 M" in line and "22.17 GiB" in line for line in lines)


def test_auto_prints_a_config_that_can_be_saved(tmp_path):
    tiny_pipeline("flux_dev").save_pretrained(tmp_path / "mine")
    text = _printed("model=auto", f"model.checkpoint={tmp_path / 'mine'}", "model.size=64")
    printed = yaml.safe_load(text[text.index("# conf/model/mine.yaml") :])
    assert printed.pop("defaults") == ["base/loading@_here_"]
    assert printed.pop("_target_") == "goca.backbones.flux.FluxBackbone"
    assert FluxBackbone(**printed).name == "mine"


@pytest.mark.slow
def test_the_command_leaves_no_files_and_a_bad_glob_is_one_message(warm_python, tmp_path):
    command = [warm_python, "-m", "goca.layers", "model=sd15", "model.layers.reference=up_blocks.9.attn2"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(CONF.parent)}
    )
    assert result.returncode == 2
    assert "no layer of this model matches 'up_blocks.9.attn2'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_that_was_loaded_from_a_path_object_names_its_checkpoint_as_text():
    pipeline = DiffusionPipeline.from_pretrained(BUNDLED / "scenes_unet_tiny")
    assert propose_for(pipeline)["checkpoint"] == str(BUNDLED / "scenes_unet_tiny")
