"""Pickled weights are refused unless allowed; allowed, they are read as tensors and give the same numbers, and no code runs."""

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from goca import config
from goca.backbones.auto import propose
from goca.errors import ModelError
from goca.runs.evaluation import evaluate
from goca.runs.provenance import checkpoint_identity
from tests.helpers.tiny_unet import tiny_sd, tiny_unet_backbone

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}
OVERRIDES = ["model.size=32", "model.feature_size=16", "model.device=cpu", "logger=none", "limit=2", "figures.count=0"]
LORA = "pytorch_lora_weights"


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("safe") / "tiny"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture
def pickled(safe: Path, tmp_path: Path) -> Path:
    """The same weights as files that torch has pickled."""
    folder = shutil.copytree(safe, tmp_path / "pickled")
    for component, name in WEIGHTS.items():
        (file,) = (folder / component).glob("*.safetensors")
        torch.save(load_file(file), folder / component / f"{name}.bin")
        file.unlink()
    return folder


class Trap:
    """What a pickle can do to those who open it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """A folder that a trap makes; none may."""
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists()


def _evaluate(folder: Path, to: Path, *overrides: str) -> dict:
    return evaluate(config.compose([*OVERRIDES, f"model.checkpoint={folder}", *overrides]), to)


def test_they_are_refused_and_the_option_is_named(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has pytorch_model\.bin .* set model\.allow_pickle=true"):
        _evaluate(pickled, tmp_path / "run")


@pytest.mark.parametrize("part", [*WEIGHTS, "all"])
def test_allowed_they_give_the_numbers_of_safetensors(safe: Path, pickled: Path, tmp_path: Path, part: str) -> None:
    """Also where only one component is pickled."""
    for component in WEIGHTS:
        if part not in (component, "all"):
            shutil.rmtree(pickled / component)
            shutil.copytree(safe / component, pickled / component)
    summary = _evaluate(pickled, tmp_path / "run", "model.allow_pickle=true")
    expected = _evaluate(safe, tmp_path / "expected")
    for key in ("miou", "iou_by_class", "layer_weights"):
        assert summary[key] == expected[key]
    assert summary["checkpoint_hash"] != expected["checkpoint_hash"]


@pytest.mark.parametrize("component", WEIGHTS)
def test_even_allowed_they_run_no_code(pickled: Path, tmp_path: Path, component: str, sprung: Path) -> None:
    (pickled / component / f"{WEIGHTS[component]}.bin").write_bytes(pickle.dumps({"weight": Trap(sprung)}))
    with pytest.raises(ModelError, match="could not be loaded"):
        _evaluate(pickled, tmp_path / "run", "model.allow_pickle=true")


def test_the_hash_of_the_checkpoint_is_over_those_that_are_read(safe: Path, pickled: Path) -> None:
    def identity(folder: Path) -> str | None:
        inspected = tiny_unet_backbone(checkpoint=str(folder), allow_pickle=True)
        return checkpoint_identity(inspected.inspect())["checkpoint_hash"]

    before = identity(pickled)
    torch.save({"weight": torch.ones(1)}, pickled / "unet" / "diffusion_pytorch_model.bin")
    assert identity(pickled) != before
    beside = shutil.copytree(safe, pickled.parent / "beside")
    unread = identity(beside)
    torch.save({"weight": torch.ones(1)}, beside / "unet" / "diffusion_pytorch_model.bin")
    assert identity(beside) == unread


def test_settings_are_proposed_without_opening_them(pickled: Path, sprung: Path) -> None:
    for component, name in WEIGHTS.items():
        (pickled / component / f"{name}.bin").write_bytes(pickle.dumps(Trap(sprung)))
    assert propose(str(pickled))["_target_"] == "goca.backbones.unet.UNetBackbone"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA of the denoiser as a pickle."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = tiny_sd()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    pipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    file = tmp_path / "lora" / f"{LORA}.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    return tmp_path / "lora"


def test_a_pickled_lora_needs_the_option_as_well(safe: Path, lora: Path, tmp_path: Path) -> None:
    given = [f"model.lora={lora}"]
    with pytest.raises(ModelError, match=r"model\.lora: .* could not be loaded"):
        _evaluate(safe, tmp_path / "refused", *given)
    without = _evaluate(safe, tmp_path / "without")
    fused = _evaluate(safe, tmp_path / "fused", *given, "model.allow_pickle=true")
    assert fused["layer_weights"] != without["layer_weights"]


def test_a_pickled_lora_runs_no_code(safe: Path, lora: Path, tmp_path: Path, sprung: Path) -> None:
    (lora / f"{LORA}.bin").write_bytes(pickle.dumps({"weight": Trap(sprung)}))
    with pytest.raises(ModelError, match=r"model\.lora"):
        _evaluate(safe, tmp_path / "run", f"model.lora={lora}", "model.allow_pickle=true")


def test_the_default_is_to_refuse() -> None:
    assert not tiny_unet_backbone().allow_pickle
    assert config.compose().model.allow_pickle is False
