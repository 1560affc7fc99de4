"""Checkpoints of every family come from a hub as they come from a folder: only what is needed, from one commit, and once."""

import dataclasses
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from goca import config
from goca.errors import ModelError
from goca.hub import download, repositories
from goca.paths import CONF
from goca.runs.provenance import checkpoint_identity
from tests.helpers.hub_repositories import copied, official
from tests.helpers.saved_pipeline import seen
from tests.helpers.tiny_pipelines import FAMILIES, family_overrides
from tests.hub.conftest import SD, small


def _weights(backbone):
    return backbone.denoiser.state_dict()


def _same(first, second) -> bool:
    a, b = _weights(first), _weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("family", ["sd", "flux_dev", "pixart_sigma"])
def test_an_empty_cache_gets_what_the_pipeline_consists_of_and_nothing_beside_it(hub, sd, tmp_path, family) -> None:
    made = sd if family == "sd" else official(family, tmp_path / "repository")
    hub.add(SD, made.folder)
    loaded = _family(family).load()
    assert hub.fetched() == made.plain
    assert _same(loaded, _family(family, checkpoint=str(made.folder)).load())


# Model configs that name a repository; where it is laid out as another family's, they share the small one.
PUBLISHED = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if not file.stem.startswith(("auto", "scenes")))
LAID_OUT_AS = {
    "playground2": "sdxl",
    "pixart_sigma_512": "pixart_sigma",
    "qwen_image_2512": "qwen_image",
    "sana15": "sana",
    "sd15": "sd",
    "sd21": "sd",
    "z_image_turbo": "z_image",
}


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    """A family's small repository, made once."""
    return cache(lambda family: official(family, tmp_path_factory.mktemp(family) / "repository"))


@pytest.mark.slow
@pytest.mark.parametrize("model", PUBLISHED)
def test_every_model_name_loads_from_an_empty_cache(hub, laid_out, monkeypatch, model) -> None:
    """As `model=NAME` alone says: its repository, variant and lengths; layers and size are the small model's."""
    monkeypatch.setattr(download, "PATIENCE", 30.0)  # no fault is played, and the machine may be busy
    family = LAID_OUT_AS.get(model, model)
    made = laid_out(family)
    settings = config.compose([f"model={model}", "model.device=cpu"]).model
    hub.add(settings.checkpoint, made.folder)
    settings.layers = dataclasses.asdict(FAMILIES[family].layers)
    settings.size = FAMILIES[family].settings.get("size", 32)  # the small model's table of positions ends there
    backbone = config.build(OmegaConf.create({"model": settings}), "model").load()
    files = made.variant if settings.variant else made.plain
    assert hub.fetched() == {file for file in files if file.partition("/")[0] not in backbone.unused}
    assert all(parameter.dtype == torch.float32 for parameter in backbone.denoiser.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(name for name, row in FAMILIES.items() if row.model == "auto"))
def test_families_without_a_model_name_load_by_model_auto(hub, laid_out, family) -> None:
    made = laid_out(family)
    name = f"small/{family}"
    hub.add(name, made.folder)
    settings = config.compose([*family_overrides(family, name), "model.variant=null"]).model
    config.build(OmegaConf.create({"model": settings}), "model").load()
    assert hub.fetched() == made.plain


def _family(family: str, **options):
    from tests.helpers.tiny_pipelines import tiny_backbone

    return tiny_backbone(family, **{"checkpoint": SD, **options})


def test_a_variant_is_all_that_is_fetched_also_with_full_precision_in_the_cache(hub, sd) -> None:
    small(variant="fp16").load()
    assert hub.fetched() == sd.variant
    small().load()
    hub.forget()
    half = small(variant="fp16").load()
    assert hub.fetched() == set()
    assert _same(half, small(checkpoint=str(sd.folder), variant="fp16").load())


def test_weights_that_a_single_file_stands_in_for_are_not_fetched(hub, sd) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    loaded = small(file=str(sd.folder / weights)).load()
    assert hub.fetched() == sd.plain - {weights}
    assert _same(loaded, small(checkpoint=str(sd.folder)).load())


def test_a_component_without_the_variant_is_read_as_it_is(hub, sd, tmp_path, caplog) -> None:
    folder = copied(sd.folder, tmp_path / "partial")
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    hub.add("small/partial", folder)
    with caplog.at_level("INFO"):
        small("small/partial", variant="fp16").load()
    assert "vae of small/partial has no files of variant fp16" in caplog.text
    assert "vae/diffusion_pytorch_model.safetensors" in hub.fetched()
    assert "unet/diffusion_pytorch_model.safetensors" not in hub.fetched()


def test_shards_of_a_variant_are_found_by_their_index(hub, tmp_path) -> None:
    made = official("sd35", tmp_path / "sharded", sharded=True)
    assert any("-of-" in file for file in made.variant)
    hub.add("small/sharded", made.folder)
    _family("sd35", checkpoint="small/sharded", variant="fp16").load()
    assert hub.fetched() == made.variant


def test_a_variant_that_is_not_there_names_those_that_are(hub, sd) -> None:
    with pytest.raises(ModelError, match=r"model\.variant: small/sd has no files of variant bf16; it has fp16"):
        small(variant="bf16").load()
    assert hub.fetched() == {"model_index.json"}


def test_a_repository_with_a_variant_alone_says_which(hub, sd, tmp_path) -> None:
    folder = copied(sd.folder, tmp_path / "half")
    for file in folder.rglob("*.safetensors"):
        if ".fp16." not in file.name:
            file.unlink()
    hub.add("small/half", folder)
    with pytest.raises(ModelError, match=r"has weights of a variant only; set model\.variant=fp16$"):
        small("small/half").load()
    with pytest.raises(ModelError, match=r"set model\.variant=fp16$"):
        small(str(folder)).load()


# ----------------------------------------------------------------------------------------------------- again, and offline
def test_the_second_run_asks_once_a_pinned_one_never(hub, monkeypatch) -> None:
    first = small().load()
    commit = first.opened.commit
    hub.forget()
    repositories.forget()
    small().load()
    assert hub.requests == ["GET /api/models/small/sd"]
    hub.forget()
    small(revision=commit).load()
    assert hub.requests == []


@pytest.mark.parametrize("how", ["offline", "down", "reset", "silent", "500", "token"])
def test_a_full_cache_serves_without_the_hub(hub, monkeypatch, caplog, how) -> None:
    first = small().load()
    repositories.forget()
    hub.forget()
    monkeypatch.setattr(repositories, "_ANSWER_WITH_CACHE", 0.3)
    faults = {"reset": {"reset": True}, "silent": {"hang": 4}, "500": {"status": 500}, "down": {}, "offline": {}, "token": {}}
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if how == "down":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    if how == "token":
        monkeypatch.setenv("HF_TOKEN", "expired")
    with hub.failing("." if faults[how] else "never", **faults[how]):
        assert _same(small().load(), first)
    assert ("taking commit" in caplog.text) == (how != "offline")
    assert hub.bytes_sent == 0


def test_a_cache_that_hf_download_has_filled_serves_a_pinned_run(hub, sd) -> None:
    commit = hub.repositories[SD].names["main"]
    for file in sd.plain | {"unet/diffusion_pytorch_model.fp16.safetensors"}:
        hf_hub_download(SD, file, revision=commit)
    hub.forget()
    small(revision=commit).load()
    assert hub.requests == []


def test_only_what_is_missing_is_fetched_and_named_offline(hub, sd, monkeypatch) -> None:
    commit = small().load().opened.commit
    missing = repositories.folder_of(SD, commit) / "vae" / "diffusion_pytorch_model.safetensors"
    missing.resolve().unlink()
    missing.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"lacks vae/diffusion_pytorch_model\.safetensors of small/sd, and HF_HUB_OFFLINE"):
        small().load()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.forget()
    small().load()
    assert hub.fetched() == {"vae/diffusion_pytorch_model.safetensors"}


# ------------------------------------------------------------------------------------------------------------ one commit
@pytest.fixture
def moving(hub, sd, tmp_path):
    """A repository whose main can move to other weights: the name, and what moves it."""
    hub.add("small/moving", sd.folder)
    other = copied(sd.folder, tmp_path / "next")
    for part in ("unet", "text_encoder"):
        (file,) = [file for file in (other / part).glob("*.safetensors") if "fp16" not in file.name and "ema" not in file.name]
        save_file({key: value * 1.01 for key, value in load_file(file).items()}, file, {"format": "pt"})
    return "small/moving", lambda: hub.repositories["small/moving"].commit(other)


def test_a_run_reads_one_commit_though_main_moves_between(moving, hub, sd) -> None:
    name, move = moving
    backbone = small(name, text_encoders="first").inspect()
    before = backbone.opened.commit
    assert move() != before
    backbone.encode_prompts(["circle"])
    backbone.load()
    assert {line.split("/")[4] for line in hub.requests if "/resolve/" in line} == {before}
    assert checkpoint_identity(backbone)["checkpoint_revision"] == before
    assert _same(backbone, small(str(sd.folder)).load())


def test_a_branch_tag_or_commit_is_what_is_read(moving, hub) -> None:
    name, move = moving
    repository = hub.repositories[name]
    first = repository.names["main"]
    repository.names["v1"] = first
    second = move()
    assert small(name).load().opened.commit == second
    assert small(name, revision="v1").load().opened.commit == first
    assert small(name, revision=first).load().opened.commit == first


# --------------------------------------------------------------------------------------------------------------- identity
def test_what_else_lies_in_the_cache_or_the_clone_changes_no_identity(hub, sd, tmp_path) -> None:
    first = checkpoint_identity(small().load())
    for file in ("unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned-emaonly.safetensors", "README.md"):
        hf_hub_download(SD, file, revision=first["checkpoint_revision"])
    assert checkpoint_identity(small().load()) == first
    clone = checkpoint_identity(small(str(sd.folder)).load())
    assert clone["checkpoint_hash"] == first["checkpoint_hash"]
    (bare := tmp_path / "bare").mkdir()
    for file in sd.plain:
        (bare / file).parent.mkdir(exist_ok=True)
        shutil.copy(sd.folder / file, bare / file)
    assert checkpoint_identity(small(str(bare)).load())["checkpoint_hash"] == first["checkpoint_hash"]


def test_other_weights_and_other_files_of_them_have_another_identity(hub, sd, tmp_path) -> None:
    first = checkpoint_identity(small().load())["checkpoint_hash"]
    assert checkpoint_identity(small(variant="fp16").load())["checkpoint_hash"] != first
    for part in ("unet", "vae", "text_encoder"):
        folder = copied(sd.folder, tmp_path / part)
        (file,) = (folder / part).glob("*model.safetensors")
        weights = load_file(file)
        key = next(key for key in weights if weights[key].is_floating_point())
        weights[key].view(-1)[0] += 1
        save_file(weights, file, {"format": "pt"})
        assert checkpoint_identity(small(str(folder)).load())["checkpoint_hash"] != first


def test_a_prompt_cache_that_saves_the_encoders_changes_no_identity(hub, sd, tmp_path, monkeypatch) -> None:
    resident = checkpoint_identity(small().load())
    cache = str(tmp_path / "prompts")
    first = small(text_encoders="first", prompt_cache=cache).inspect()
    first.encode_prompts(["circle"])
    assert checkpoint_identity(first.load()) == resident
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another machine"))
    hub.forget()
    second = small(text_encoders="first", prompt_cache=cache).inspect()
    second.encode_prompts(["circle"])
    assert checkpoint_identity(second.load()) == resident
    assert not any(file.startswith("text_encoder/") for file in hub.fetched())
    assert torch.isfinite(seen(second)).all()


def test_a_cut_file_of_the_prompt_cache_is_named(hub, tmp_path) -> None:
    cache = tmp_path / "prompts"
    small(prompt_cache=str(cache)).load().encode_prompts(["circle"])
    (file,) = cache.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match=rf"model\.prompt_cache: {file} is damaged .*; delete it and repeat"):
        small(prompt_cache=str(cache)).load().conditioning(["circle"])


def test_hashes_are_remembered_by_path_size_and_time(tmp_path, monkeypatch) -> None:
    from goca.hub import digests

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(digests, "_REMEMBERED_FROM", 10)
    file = tmp_path / "weights"
    file.write_bytes(b"some large file")
    expected = digests.file_digest(file)
    monkeypatch.setattr(digests, "_read", lambda *_: pytest.fail("read again"))
    assert digests.file_digest(file) == expected
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    file.write_bytes(b"another large file")
    assert digests.file_digest(file) != expected


@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_a_run_begun_with_the_earlier_hash_keeps_it(hub, sd, kind) -> None:
    """It covered what lay in the folder; the same folder, or the same commit, is the same checkpoint still."""
    backbone = small(SD if kind == "hub" else str(sd.folder)).load()
    now = checkpoint_identity(backbone)
    old = _old_hash(sd.folder) if kind == "folder" else "0" * 64
    earlier = {"checkpoint_hash": old, "checkpoint_revision": now["checkpoint_revision"]}
    continued = checkpoint_identity(backbone, earlier)
    assert continued["checkpoint_hash"] == old
    assert "checkpoint_hash_scheme" not in continued
    other = {"checkpoint_hash": "1" * 64, "checkpoint_revision": "2" * 40}
    assert checkpoint_identity(backbone, other)["checkpoint_hash"] != other["checkpoint_hash"]
    assert checkpoint_identity(backbone, now) == now


def _old_hash(folder: Path) -> str:
    import hashlib

    total = hashlib.sha256()
    suffixes = (".safetensors", ".json", ".bin", ".ckpt", ".pt", ".pth")
    for file in sorted(file for file in folder.rglob("*") if file.suffix in suffixes):
        total.update(f"{file.relative_to(folder).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()
