"""Checkpoints that cannot work are refused with one message; placement, prompts first and the prompt cache change no number."""

import json
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from goca import config
from goca.aggregation import Aggregation
from goca.attention.statistics import AttentionStatistics
from goca.backbones import checkpoints, loading
from goca.backbones.layers import LayerNames
from goca.errors import DataError, ModelError
from goca.prompts.sources import Classes
from goca.results import RunFolder
from goca.run import evaluate
from tests.backbones.test_families import _overrides
from tests.backbones.tiny_dit import tiny_backbone, tiny_pipeline

TEXTS = ["circle, grass", "a heart on snow"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("flux") / "pipeline"
    tiny_pipeline("flux_dev").save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test if any weights are read."""

    def refuse(*_, **__):
        raise AssertionError("weights were read before the mistake was found")

    monkeypatch.setattr(loading, "load_pipeline", refuse)


def _backbone(checkpoint, **options):
    return tiny_backbone("flux_dev", checkpoint=str(checkpoint), **options)


def _seen(backbone):
    aggregation = Aggregation(
        heads="dot_product",
        layers="dot_product",
        cross_layers=backbone.layers.cross,
        reference=backbone.layers.reference,
        feature_size=16,
    )
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    statistics = AttentionStatistics(aggregation, backbone.plan(aggregation))
    return backbone.observe(pixels, TEXTS, ["a", "b"], 0, statistics).token_maps


def _layers(**changed):
    names = {"cross": ("*attn",), "manual": ("*attn",), "reference": "*.0.attn", "affinity": ("*attn",)}
    return LayerNames(**{**names, **changed})


@pytest.fixture(scope="module")
def expected(folder):
    return _seen(_backbone(folder).load())


# ------------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, r"model\.size: flux_dev takes multiples of 4 px, got 30; 32 is nearest"),
        ({"dtype": "float16"}, r"model\.dtype: float16 is not usable on the cpu"),
        ({"device": "cuda"}, r"model\.device: 'cuda' is not on this machine"),
        ({"device": "gpu"}, r"model\.device: 'gpu' is no device name"),
        (
            {"layers": _layers(reference="transformer_blocks.9.attn")},
            r"model\.layers\.reference: .*'transformer_blocks\.9\.attn'",
        ),
        ({"layers": _layers(cross=("*attn2",))}, r"model\.layers\.cross: .*'\*attn2'; near it are transformer_blocks"),
    ],
)
def test_what_configurations_tell_is_told_before_weights_are_read(folder, no_weights, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a cuda device")
    with pytest.raises(ModelError, match=message):
        _backbone(folder, **options).load()


def test_a_missing_component_is_named(copy, no_weights):
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelError, match=r"lacks its component 'vae' \(AutoencoderKL\)"):
        _backbone(copy).load()


def test_pickled_weights_are_not_read(copy, no_weights):
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(
        ModelError, match=r"transformer of .* has diffusion_pytorch_model\.bin but no \*\.safetensors; only safetensors"
    ):
        _backbone(copy).load()


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "text_encoder_2", "vae"])
def test_weights_cut_short_are_one_message(copy, component):
    (weights,) = (copy / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"model\.checkpoint: .*copy could not be loaded"):
        _backbone(copy).load()


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_code_that_a_checkpoint_brings_is_not_run(copy, tmp_path, component):
    """What diffusers would run with trust_remote_code, and transformers by an auto_map."""
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, component: ["evil", "Evil"]}))
    (copy / component / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    settings = json.loads((copy / component / "config.json").read_text())
    (copy / component / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoModel": "evil.Evil"}}))
    with pytest.raises(ModelError, match="could not be loaded"):
        _backbone(copy).load()
    assert not (tmp_path / "ran").exists()


def test_another_family_is_refused(copy, no_weights):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelError, match=r"is a StableDiffusionPipeline; this model config takes FluxPipeline"):
        _backbone(copy).load()


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_single_file_is_refused(tmp_path, no_weights, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match="is a single file; give a diffusers folder"):
        _backbone(tmp_path / name).load()


def test_a_folder_that_is_no_pipeline_or_not_there(tmp_path, no_weights):
    with pytest.raises(ModelError, match=r"holds no model_index\.json"):
        _backbone(tmp_path).load()
    with pytest.raises(ModelError, match="there is no folder"):
        _backbone(tmp_path / "nowhere").load()


class _Response:
    headers: dict = {}  # noqa: RUF012
    request, status_code, text = None, 403, ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", r"owner/name is gated: accept its terms on the hub's page, then log in with `hf auth login`"),
        ("RevisionNotFoundError", r"model\.revision: owner/name has no revision 'gone'"),
        ("RepositoryNotFoundError", r"could not be fetched from the hub .*Check the name and the network, log in"),
        ("LocalEntryNotFoundError", r"could not be fetched from the hub .*Check the name and the network"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch, no_weights, error, message):
    kind = getattr(checkpoints.hub, error)

    def fail(*_, **__):
        raise (
            kind("the hub said no", response=_Response())
            if issubclass(kind, checkpoints.hub.HfHubHTTPError)
            else kind("no network")
        )

    monkeypatch.setattr(checkpoints.DiffusionPipeline, "load_config", fail)
    with pytest.raises(ModelError, match=message):
        _backbone("owner/name", revision="gone").load()


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_a_missing_quantisation_extra_is_named(folder, no_weights, monkeypatch, library):
    monkeypatch.setattr("goca.backbones.quantization.find_spec", lambda name: None)
    kind = {"bitsandbytes": "bitsandbytes_4bit", "torchao": "torchao_int8"}[library]
    with pytest.raises(ModelError, match=rf"{kind} needs {library}; install it with: pip install 'goca\[quantization\]'"):
        _backbone(folder, quantization=kind).load()


def test_bitsandbytes_without_a_gpu_is_refused(folder, no_weights, monkeypatch):
    monkeypatch.setattr("goca.backbones.quantization.find_spec", lambda name: True)
    with pytest.raises(ModelError, match=r"bitsandbytes_4bit needs a GPU; torchao_int8 works on the cpu"):
        _backbone(folder, quantization="bitsandbytes_4bit").load()


# ----------------------------------------------------------------------------------------------- placement and prompts
def test_int8_weights_give_nearly_the_same_maps(folder, expected):
    pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    backbone = _backbone(folder, quantization="torchao_int8").load()
    assert type(backbone.denoiser.transformer_blocks[0].attn.to_out[0].weight).__module__.startswith("torchao")
    small = next(backbone.pipeline.text_encoder.parameters())
    assert type(small) is torch.nn.Parameter
    torch.testing.assert_close(_seen(backbone), expected, rtol=0.1, atol=0.005)


def test_offloading_changes_no_number(folder, expected):
    assert torch.equal(_seen(_backbone(folder, placement="offload").load()), expected)


def test_prompts_first_are_encoded_without_denoiser_and_then_without_encoders(folder, expected, monkeypatch):
    backbone = _backbone(folder, text_encoders="first").inspect()
    assert all(parameter.is_meta for parameter in backbone.denoiser.parameters())
    backbone.encode_prompts(TEXTS)
    assert backbone.pipeline.text_encoder_2 is None
    backbone.load()
    assert backbone.pipeline.text_encoder is None
    monkeypatch.setattr(loading, "load_text_encoders", lambda *_: pytest.fail("the encoders were loaded again"))
    assert torch.equal(_seen(backbone), expected)


def test_a_prompt_that_comes_late_is_encoded_all_the_same(folder, expected):
    assert torch.equal(_seen(_backbone(folder, text_encoders="first").load()), expected)


def test_cached_embeddings_serve_the_next_run_and_no_other_checkpoint(folder, expected, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    _backbone(folder, prompt_cache=cache).load().encode_prompts(TEXTS)
    again = _backbone(folder, prompt_cache=cache, text_encoders="first").inspect()
    monkeypatch.setattr(loading, "load_text_encoders", lambda *_: pytest.fail("the encoders were loaded"))
    again.encode_prompts(TEXTS)
    assert torch.equal(_seen(again.load()), expected)
    other = shutil.copytree(folder, tmp_path / "other")
    assert TEXTS[0] not in _backbone(other, prompt_cache=cache).load().embeddings
    assert TEXTS[0] not in _backbone(folder, prompt_cache=cache, text_length=30).load().embeddings


def test_the_main_job_encodes_all_prompts_before_the_denoiser_loads(folder, tmp_path, monkeypatch):
    """By the time the denoiser's weights are read, every prompt of the run is on disk and no text encoder is alive."""
    common = [*_overrides("flux_dev", folder), "dataset=scenes", "figures.count=0", "limit=5"]
    resident = evaluate(config.compose(common), tmp_path / "resident")
    cache, encoders, order = tmp_path / "cache", [], []
    load_encoders, load_pipeline = loading.load_text_encoders, loading.load_pipeline

    def watched_encoders(*arguments):
        order.append("encoders")
        loaded = load_encoders(*arguments)
        encoders.extend(weakref.ref(encoder) for encoder in loaded.values())
        return loaded

    def watched_pipeline(*arguments):
        order.append("denoiser")
        assert len(encoders) == 2
        assert [encoder() for encoder in encoders] == [None, None]
        assert len(list(cache.rglob("*.safetensors"))) == 5
        return load_pipeline(*arguments)

    monkeypatch.setattr(loading, "load_text_encoders", watched_encoders)
    monkeypatch.setattr(loading, "load_pipeline", watched_pipeline)
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
    overrides = [*_overrides("flux_dev", folder), "dataset=scenes", "figures.count=0", "limit=6", "run.max_failed=null"]
    cfg = config.compose([*overrides, "model.text_encoders=first", f"model.prompt_cache={cache}"])
    summary = evaluate(cfg, tmp_path / "run")
    assert summary["failures"] == {"1000003": "no words for this one"}
    assert len(list(cache.rglob("*.safetensors"))) == 5
    records = tmp_path / "run" / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))
    shutil.rmtree(cache)
    assert evaluate(cfg, tmp_path / "run")["miou"] == summary["miou"]
    assert len(list(cache.rglob("*.safetensors"))) == 3


# ------------------------------------------------------------------------------------------------------------------ LoRA
def _save_lora(pipeline, component, targets, path):
    """Random LoRA weights for one component."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    network = getattr(pipeline, component)
    network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    pipeline.save_lora_weights(path, **{f"{component}_lora_layers": get_peft_model_state_dict(network)})


def test_a_lora_is_fused_and_changes_the_maps(folder, expected, tmp_path):
    _save_lora(tiny_pipeline("flux_dev"), "transformer", ["to_q"], tmp_path)
    backbone = _backbone(folder, lora=str(tmp_path)).load()
    assert not torch.allclose(_seen(backbone), expected)
    assert not any("lora" in name for name, _ in backbone.denoiser.named_modules())
    first = _backbone(folder, lora=str(tmp_path), text_encoders="first").load()
    assert torch.equal(_seen(first), _seen(backbone))


def test_a_lora_of_the_text_encoder_needs_it_resident(folder, expected, tmp_path):
    _save_lora(tiny_pipeline("flux_dev"), "text_encoder", ["q_proj"], tmp_path)
    assert not torch.equal(_seen(_backbone(folder, lora=str(tmp_path)).load()), expected)
    with pytest.raises(ModelError, match=r"model\.lora: .* needs model\.text_encoders=resident"):
        _backbone(folder, lora=str(tmp_path), text_encoders="first").load()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("transformer.transformer_blocks.0.attn.to_q", "its weights do not fit this model"),
        ("transformer.elsewhere", "its weights do not fit|no such layer|not found"),
        ("unet.down_blocks.0", "none of its weights belong"),
    ],
)
def test_a_lora_of_another_model_is_refused(folder, tmp_path, layer, message):
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 3), f"{layer}.lora_B.weight": torch.ones(3, 2)}
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ModelError, match=rf"model\.lora: .* could not be loaded: .*({message})"):
        _backbone(folder, lora=str(tmp_path)).load()


def test_a_family_that_takes_no_lora_says_so(tmp_path, no_weights):
    tiny_pipeline("pixart_alpha").save_pretrained(tmp_path / "pixart")
    with pytest.raises(ModelError, match=r"model\.lora: diffusers' PixArtAlphaPipeline takes no LoRA"):
        tiny_backbone("pixart_alpha", checkpoint=str(tmp_path / "pixart"), lora="owner/lora").load()
