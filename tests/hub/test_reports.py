"""Weights that are not the checkpoint's: every component's loading report is checked, and LoRA weights fit as a whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from goca.backbones.loading.checkpoints import Source, open_checkpoint
from goca.backbones.loading.components import not_finite
from goca.errors import ModelError
from goca.paths import BUNDLED
from goca.runs.provenance import checkpoint_identity
from tests.helpers.hub_repositories import copied, lora, official, truncate_keys
from tests.helpers.saved_pipeline import seen
from tests.helpers.tiny_pipelines import tiny_pipeline
from tests.hub.conftest import small


@pytest.fixture
def copy(sd, tmp_path) -> Path:
    return copied(sd.folder, tmp_path / "copy")


def _file(folder: Path, component: str) -> Path:
    (file,) = (folder / component).glob("*model.safetensors")
    return file


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("fault", ["missing", "renamed", "mismatched", "nan"])
def test_weights_of_every_component_are_all_there(copy, component, fault) -> None:
    file = _file(copy, component)
    weights = load_file(file)
    key = next(key for key in weights if "norm" in key and key.endswith("weight"))
    if fault in ("missing", "renamed"):
        value = weights.pop(key)
        if fault == "renamed":
            weights[f"{key}_of_another_library"] = value
    elif fault == "mismatched":
        weights[key] = torch.ones(len(weights[key]) + 1)
    else:
        weights[key][0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    words = {"mismatched": "has weights of another shape", "nan": "holds NaN or infinity in"}.get(fault, "lacks weights for")
    name = key.removeprefix("text_model.").rsplit(".", 2)[0]
    with pytest.raises(ModelError, match=rf"model\.checkpoint: {component} \(\w+\) {words}.*{name.split('.')[-1]}") as failure:
        small(str(copy)).load()
    assert len(str(failure.value)) < 400


def test_shards_and_pickles_are_checked_as_well(sd, copy, tmp_path) -> None:
    file = _file(copy, "text_encoder")
    truncate_keys(file, drop="final_layer_norm")
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    with pytest.raises(ModelError, match=r"text_encoder \(CLIPTextModel\) lacks weights for .*final_layer_norm"):
        small(str(copy), allow_pickle=True).load()
    sharded = tmp_path / "sharded"
    tiny_pipeline("sd").save_pretrained(sharded, max_shard_size="40KB")
    part = next(iter(sorted((sharded / "unet").glob("*-of-*.safetensors"))))
    (gone,) = truncate_keys(part, drop=next(iter(load_file(part))))
    with pytest.raises(ModelError, match=rf"unet .*lacks weights for {gone}"):
        small(str(sharded)).load()
    part.unlink()
    with pytest.raises(ModelError, match=rf"unet of .* lacks {part.name}, which .*index\.json names"):
        small(str(sharded)).load()


def test_keys_that_belong_to_no_weight_are_listed(copy) -> None:
    file = _file(copy, "vae")
    save_file({**load_file(file), "loss.discriminator.weight": torch.ones(1)}, file, {"format": "pt"})
    loaded = small(str(copy)).load()
    assert checkpoint_identity(loaded)["unexpected_keys"] == {"vae": ["loss.discriminator.weight"]}


def test_the_bundled_backbones_and_older_names_report_nothing(sd) -> None:
    assert "unexpected_keys" not in checkpoint_identity(small(str(sd.folder)).load())


def test_the_shared_text_encoder_with_a_renamed_weight_is_refused(shared, tmp_path) -> None:
    """Its tensor used to be filled at random: two different numbers from one command."""
    folder = shutil.copytree(BUNDLED / "scenes_unet", tmp_path / "scenes")
    shutil.copytree(shared / "faults" / "te1" / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(ModelError, match=r"model\.checkpoint: text_encoder \(CLIPTextModel\) lacks weights for"):
        small(str(folder)).load()


def test_not_finite_finds_what_is_neither_in_one_pass() -> None:
    layer = torch.nn.Linear(3, 3)
    assert not_finite(layer) == []
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = torch.nn.Linear(3, 3).to(torch.bfloat16)
        broken.weight.data[1, 1] = value
        assert not_finite(broken) == ["weight"]


def test_an_index_that_is_damaged_is_one_message(copy) -> None:
    for content in ("{", "[]"):
        (copy / "model_index.json").write_text(content)
        with pytest.raises(ModelError, match=r"model_index\.json (cannot be read|is damaged)"):
            open_checkpoint(Source(str(copy)))
    (copy / "model_index.json").write_text(
        json.dumps({"_class_name": "NoSuchPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    )
    with pytest.raises(ModelError, match=r"is a NoSuchPipeline; this model config takes"):
        small(str(copy)).load()


# ------------------------------------------------------------------------------------------------------------------- LoRA
def test_a_lora_of_the_hub_is_read_at_one_commit_and_is_part_of_the_identity(hub, sd, tmp_path) -> None:
    repository = hub.add("small/lora", lora("sd", tmp_path / "a"))
    plain, fused = small().load(), small(lora="small/lora").load()
    first = checkpoint_identity(fused)
    assert first["checkpoint_hash"] != checkpoint_identity(plain)["checkpoint_hash"]
    assert first["lora"]["repository"] == "small/lora"
    assert first["lora"]["revision"] == repository.names["main"]
    local = small(lora=str(tmp_path / "a")).load()
    assert torch.equal(seen(local), seen(fused))
    assert not torch.equal(seen(plain), seen(fused))
    assert checkpoint_identity(local)["checkpoint_hash"] == first["checkpoint_hash"]
    other = small(lora=str(lora("sd", tmp_path / "b", seed=1))).load()
    assert checkpoint_identity(other)["checkpoint_hash"] != first["checkpoint_hash"]
    hub.forget()
    named = f"small/lora@{repository.names['main']}/pytorch_lora_weights.safetensors"
    small(revision=plain.opened.commit, lora=named).load()
    assert hub.requests == []


def test_prompt_caches_tell_loras_apart_by_content(hub, tmp_path) -> None:
    folder, cache = lora("sd", tmp_path / "lora"), str(tmp_path / "prompts")
    small(lora=str(folder), prompt_cache=cache).load().encode_prompts(["circle"])
    assert "circle" in small(lora=str(folder), prompt_cache=cache).load().embeddings
    lora("sd", folder, seed=1)
    assert "circle" not in small(lora=str(folder), prompt_cache=cache).load().embeddings


def test_a_lora_of_which_a_layer_does_not_fit_is_refused(sd, tmp_path, shared) -> None:
    folder = lora("sd", tmp_path / "lora")
    file = folder / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    for ending in ("lora_A", "lora_B"):
        key = next(key for key in weights if ending in key)
        weights[key.replace("down_blocks.0", "down_blocks.7").replace("up_blocks.0", "up_blocks.7")] = torch.randn_like(
            weights[key]
        )
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"model\.lora: .*1 of its \d+ layers do not fit this model, such as unet\.\w+_blocks\.7"
    ):
        small(str(sd.folder), lora=str(folder)).load()
    with pytest.raises(ModelError, match=r"model\.lora: .*layers do not fit this model|weights do not fit"):
        small(str(sd.folder), lora=str(shared / "faults" / "lora" / "partial.safetensors")).load()


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_of_two_loras_one_has_to_be_named(hub, tmp_path, where) -> None:
    folder = lora("sd", tmp_path / "two", name="a.safetensors")
    lora("sd", folder, seed=1, name="b.safetensors")
    hub.add("small/two", folder)
    name = str(folder) if where == "folder" else "small/two"
    with pytest.raises(
        ModelError, match=r"holds 2 files, a\.safetensors, b\.safetensors; name one: model\.lora=.*/a\.safetensors"
    ):
        small(lora=name).load()
    assert checkpoint_identity(small(lora=f"{name}/b.safetensors").load())["lora"]["file"] == "b.safetensors"
    with pytest.raises(ModelError, match=r"model\.lora: "):
        small(lora=f"{name}/c.safetensors").load()


@pytest.mark.parametrize(
    "name", ["nowhere/at/all.safetensors", "./nowhere", "/no/such/folder", "loras/style.safetensors", "no"]
)
def test_a_lora_that_is_nowhere_says_how_one_is_given(hub, name) -> None:
    with pytest.raises(ModelError, match=r"model\.lora: .*(give owner/name|there is no repository)") as failure:
        small(lora=name).load()
    assert "allow_pickle" not in str(failure.value)


def test_a_lora_that_is_cut_or_not_finite_is_refused(sd, tmp_path) -> None:
    folder = lora("sd", tmp_path / "lora")
    file = folder / "pytorch_lora_weights.safetensors"
    weights = load_file(file)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.lora: .*holds NaN or infinity"):
        small(str(sd.folder), lora=str(folder)).load()
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ModelError, match=r"model\.lora: .*is damaged"):
        small(str(sd.folder), lora=str(folder)).load()


def test_every_family_that_takes_loras_takes_its_own(tmp_path) -> None:
    """The check for fit knows the names of joint attention, too."""
    made = official("flux_dev", tmp_path / "flux", variant=None)
    from tests.helpers.tiny_pipelines import tiny_backbone

    tiny_backbone("flux_dev", checkpoint=str(made.folder), lora=str(lora("flux_dev", tmp_path / "lora"))).load()
