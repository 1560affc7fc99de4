"""Placement, quantisation, prompts first and the prompt cache change no number, or little where precision is given up."""

import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from goca import config
from goca.backbones.loading import pipelines
from goca.errors import DataError
from goca.prompts.sources import Classes
from goca.runs.evaluation import evaluate
from goca.runs.folder import RunFolder
from tests.helpers.saved_pipeline import TEXTS, backbone, seen
from tests.helpers.tiny_pipelines import family_overrides


def test_int8_weights_give_nearly_the_same_maps(folder, expected):
    pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    loaded = backbone(folder, quantization="torchao_int8").load()
    assert type(loaded.denoiser.transformer_blocks[0].attn.to_out[0].weight).__module__.startswith("torchao")
    small = next(loaded.pipeline.text_encoder.parameters())
    assert type(small) is torch.nn.Parameter
    torch.testing.assert_close(seen(loaded), expected, rtol=0.1, atol=0.005)


def test_offloading_changes_no_number(folder, expected):
    assert torch.equal(seen(backbone(folder, placement="offload").load()), expected)


def test_channels_last_changes_the_layout_and_only_rounding(folder, expected):
    loaded = backbone(folder, channels_last=True).load()
    convolution = loaded.pipeline.vae.encoder.conv_in.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last) and not convolution.is_contiguous()
    torch.testing.assert_close(seen(loaded), expected, rtol=1e-3, atol=1e-5)


def test_prompts_first_are_encoded_without_denoiser_and_then_without_encoders(folder, expected, monkeypatch):
    loaded = backbone(folder, text_encoders="first").inspect()
    assert all(parameter.is_meta for parameter in loaded.denoiser.parameters())
    loaded.encode_prompts(TEXTS)
    assert loaded.pipeline.text_encoder_2 is None
    loaded.load()
    assert loaded.pipeline.text_encoder is None
    monkeypatch.setattr(pipelines, "load_text_encoders", lambda *_: pytest.fail("the encoders were loaded again"))
    assert torch.equal(seen(loaded), expected)


def test_a_prompt_that_comes_late_is_encoded_all_the_same(folder, expected):
    assert torch.equal(seen(backbone(folder, text_encoders="first").load()), expected)


def test_cached_embeddings_serve_the_next_run_and_no_other_checkpoint(folder, expected, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    backbone(folder, prompt_cache=cache).load().encode_prompts(TEXTS)
    again = backbone(folder, prompt_cache=cache, text_encoders="first").inspect()
    monkeypatch.setattr(pipelines, "load_text_encoders", lambda *_: pytest.fail("the encoders were loaded"))
    again.encode_prompts(TEXTS)
    assert torch.equal(seen(again.load()), expected)
    assert TEXTS[0] in backbone(shutil.copytree(folder, tmp_path / "copy"), prompt_cache=cache).load().embeddings
    other = shutil.copytree(folder, tmp_path / "other")
    weights = load_file(other / "text_encoder" / "model.safetensors")
    save_file({key: tensor + 1e-3 for key, tensor in weights.items()}, other / "text_encoder" / "model.safetensors")
    assert TEXTS[0] not in backbone(other, prompt_cache=cache).load().embeddings
    assert TEXTS[0] not in backbone(folder, prompt_cache=cache, text_length=30).load().embeddings


def test_the_main_job_encodes_all_prompts_before_the_denoiser_loads(folder, tmp_path, monkeypatch):
    """By the time the denoiser's weights are read, every prompt of the run is on disk and no text encoder is alive."""
    common = [*family_overrides("flux_dev", folder), "dataset=scenes", "figures.count=0", "limit=5"]
    resident = evaluate(config.compose(common), tmp_path / "resident")
    cache, encoders, order = tmp_path / "cache", [], []
    load_encoders, load_pipeline = pipelines.load_text_encoders, pipelines.load_pipeline

    def watched_encoders(*arguments):
        order.append("encoders")
        loaded = load_encoders(*arguments)
        encoders.extend(weakref.ref(encoder) for encoder in loaded[0].values())
        return loaded

    def watched_pipeline(*arguments):
        order.append("denoiser")
        assert len(encoders) == 2
        assert [encoder() for encoder in encoders] == [None, None]
        assert len(list(cache.rglob("*.safetensors"))) == 5
        return load_pipeline(*arguments)

    monkeypatch.setattr(pipelines, "load_text_encoders", watched_encoders)
    monkeypatch.setattr(pipelines, "load_pipeline", watched_pipeline)
    first = [*common, "model.text_encoders=first", f"model.prompt_cache={cache}"]
    summary = evaluate(config.compose(first), tmp_path / "first")
    assert order == ["encoders", "denoiser"]
    for kept, expected in zip(RunFolder(tmp_path / "first").records(), RunFolder(tmp_path / "resident").records(), strict=True):
        for key in ("confusion", "layer_weights", "prompts"):
            assert kept[key] == expected[key]
    assert summary["miou"] == resident["miou"]
    order.clear()
    assert evaluate(config.compose(first), tmp_path / "second")["miou"] == resident["miou"]
    assert order == ["denoiser"]  # every prompt was at hand


def test_prompts_first_leaves_out_what_is_done_and_what_cannot_be_prompted(folder, tmp_path, monkeypatch):
    """An image whose prompt fails is recorded in its batch, as with resident encoders, and a continued run encodes the rest."""
    original = Classes.__call__

    def failing(self, sample, *rest):
        if sample.image_id == "1000003":
            raise DataError("no words for this one")
        return original(self, sample, *rest)

    monkeypatch.setattr(Classes, "__call__", failing)
    cache = tmp_path / "cache"
    overrides = [*family_overrides("flux_dev", folder), "dataset=scenes", "figures.count=0", "limit=6", "run.max_failed=null"]
    cfg = config.compose([*overrides, "model.text_encoders=first", f"model.prompt_cache={cache}"])
    summary = evaluate(cfg, tmp_path / "run")
    assert summary["failures"] == {"1000003": "no words for this one"}
    assert len(list(cache.rglob("*.safetensors"))) == 5
    records = tmp_path / "run" / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))
    shutil.rmtree(cache)
    assert evaluate(cfg, tmp_path / "run")["miou"] == summary["miou"]
    assert len(list(cache.rglob("*.safetensors"))) == 3


def test_half_precision_gives_nearly_the_same_maps(folder, expected):
    half = backbone(folder, dtype="bfloat16").load()
    assert {parameter.dtype for parameter in half.denoiser.parameters()} == {torch.bfloat16}
    maps = seen(half)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, rtol=0.1, atol=0.01)
