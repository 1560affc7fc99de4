"""Checkpoints that cannot work are refused with one message, before weights are read where that is possible."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from goca.backbones.loading.pipelines import choose_dtype
from goca.backbones.loading.processors import TextProcessor
from goca.errors import ModelError
from tests.helpers.saved_pipeline import backbone, layer_names
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, r"model\.size: flux_dev takes multiples of 4 px, got 30; 32 is nearest"),
        ({"dtype": "float16"}, r"model\.dtype: float16 is not usable on the cpu"),
        ({"device": "cuda"}, r"model\.device: 'cuda' is not on this machine"),
        ({"device": "gpu"}, r"model\.device: 'gpu' is not a device name"),
        (
            {"layers": layer_names(reference="transformer_blocks.9.attn")},
            r"model\.layers\.reference: .*'transformer_blocks\.9\.attn'",
        ),
        ({"layers": layer_names(cross=("*attn2",))}, r"model\.layers\.cross: .*'\*attn2'; near it are transformer_blocks"),
    ],
)
def test_what_configurations_tell_is_told_before_weights_are_read(folder, no_weights, options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a cuda device")
    with pytest.raises(ModelError, match=message):
        backbone(folder, **options).load()


def test_a_missing_component_is_named(copy, no_weights):
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelError, match=r"lacks its component 'vae' \(AutoencoderKL\)"):
        backbone(copy).load()


def test_pickled_weights_are_not_read(copy, no_weights):
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(
        ModelError, match=r"transformer of .* has diffusion_pytorch_model\.bin but no \*\.safetensors; only safetensors"
    ):
        backbone(copy).load()


@pytest.mark.parametrize("component", ["transformer", "text_encoder", "text_encoder_2", "vae"])
def test_weights_cut_short_are_one_message(copy, component):
    (weights,) = (copy / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelError, match=rf"model\.checkpoint: {component} could not be loaded: .*{weights.name} is damaged"):
        backbone(copy).load()


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
def test_code_that_a_checkpoint_brings_is_not_run(copy, tmp_path, component):
    """What diffusers would run with trust_remote_code, and transformers by an auto_map."""
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, component: ["evil", "Evil"]}))
    (copy / component / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    settings = json.loads((copy / component / "config.json").read_text())
    (copy / component / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoModel": "evil.Evil"}}))
    with pytest.raises(
        ModelError, match=rf"{component} could not be loaded: neither .* code that a checkpoint brings is not run"
    ):
        backbone(copy).load()
    assert not (tmp_path / "ran").exists()


def test_another_family_is_refused(copy, no_weights):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ModelError, match=r"is a StableDiffusionPipeline; this model config takes FluxPipeline"):
        backbone(copy).load()


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_single_file_is_refused(tmp_path, no_weights, name):
    (tmp_path / name).write_bytes(b"")
    command = r"diffusers\.FluxPipeline\.from_single_file\('model\..*'\)\.save_pretrained\('model'\)"
    with pytest.raises(ModelError, match=rf"is a single file; give a diffusers folder\. .*{command}"):
        backbone(tmp_path / name).load()


def test_a_folder_that_is_no_pipeline_or_not_there(tmp_path, no_weights):
    with pytest.raises(ModelError, match=r"holds no model_index\.json"):
        backbone(tmp_path).load()
    with pytest.raises(ModelError, match="there is no folder"):
        backbone(tmp_path / "nowhere").load()


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_a_missing_quantisation_extra_is_named(folder, no_weights, monkeypatch, library):
    monkeypatch.setattr("goca.backbones.loading.quantization.find_spec", lambda name: None)
    kind = {"bitsandbytes": "bitsandbytes_4bit", "torchao": "torchao_int8"}[library]
    with pytest.raises(ModelError, match=rf"{kind} needs {library}; pip install -e '.\[quantization\]'"):
        backbone(folder, quantization=kind).load()


def test_bitsandbytes_without_a_gpu_is_refused(folder, no_weights, monkeypatch):
    monkeypatch.setattr("goca.backbones.loading.quantization.find_spec", lambda name: True)
    with pytest.raises(ModelError, match=r"bitsandbytes_4bit needs a GPU; torchao_int8 works on the cpu"):
        backbone(folder, quantization="bitsandbytes_4bit").load()


def test_a_type_that_the_device_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(ModelError, match=r"model\.dtype: this cuda device has no bfloat16; use float16 or float32"):
        choose_dtype("bfloat16", torch.device("cuda"))
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16


@pytest.mark.parametrize("fast", [True, False])
def test_a_processor_without_bfloat16_is_told_of(monkeypatch, caplog, fast):
    monkeypatch.setattr("goca.ops.multiplies_half", lambda dtype, device: fast)
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert ("no instructions for bfloat16" in caplog.text) is not fast


def test_files_of_a_variant_are_read_and_their_lack_is_named(folder, tmp_path):
    tiny_pipeline("flux_dev").save_pretrained(tmp_path / "fp16", variant="fp16")
    assert next(backbone(tmp_path / "fp16", variant="fp16").load().denoiser.parameters()).dtype == torch.float32
    with pytest.raises(ModelError, match=r"model\.variant: .* has no files of variant fp16; it has no variants"):
        backbone(folder, variant="fp16").load()


def test_hidream_without_its_llama_says_how_to_bring_it(tmp_path, no_weights):
    """As its repository is published: the weights of Llama have a licence of their own."""
    pipeline = tiny_pipeline("hidream_i1")
    pipeline.register_modules(text_encoder_4=None, tokenizer_4=None)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks text_encoder_4, Llama 3\.1 8B.* set model\.checkpoint=FOLDER"):
        tiny_backbone("hidream_i1", checkpoint=str(tmp_path)).load()


def test_a_processor_that_needs_torchvision_is_read_for_its_words(tmp_path):
    """transformers has no class of that name without torchvision, and raises where what stands in for it is touched."""
    tiny_pipeline("flux2_dev").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]  # as in FLUX.2-dev
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    plain = tiny_pipeline("flux2_dev").tokenizer
    found = tiny_backbone("flux2_dev", checkpoint=str(tmp_path)).load().pipeline.tokenizer
    assert isinstance(found, TextProcessor)
    chat = [[{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]]
    ids, expected = (each.apply_chat_template(chat, tokenize=True)["input_ids"] for each in (found, plain))
    assert ids == expected
