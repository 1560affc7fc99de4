"""Training of a bundled pipeline's decoder: the encoder, on whose latents denoisers were trained, stays as it is."""

import shutil

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from hydra import compose, initialize_config_dir

from goca.errors import ModelError
from goca.paths import CONF
from goca.scenes.train_decoder import train
from tests.helpers.tiny_unet import tiny_sd


def settings(pipeline, *overrides):
    small = ["scenes=8", "steps=2", "batch_size=4", "size=32", f"pipeline={pipeline}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train_decoder", [*small, *overrides])


def test_only_the_decoder_changes(tmp_path):
    tiny_sd().save_pretrained(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    report = train(settings(tmp_path / "old", f"output={tmp_path / 'new'}"))
    assert report["steps"] == 2 and report["error_after"] != report["error_before"]
    before, after = (AutoencoderKL.from_pretrained(tmp_path / name / "vae").float().state_dict() for name in ("old", "new"))
    changed = {name.split(".")[0] for name in before if not torch.allclose(before[name], after[name], atol=1e-3)}
    assert changed == {"decoder", "post_quant_conv"}
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "new").vae is not None


def test_a_folder_without_autoencoder(tmp_path):
    with pytest.raises(ModelError, match=r"pipeline: .* has no autoencoder"):
        train(settings(tmp_path))
