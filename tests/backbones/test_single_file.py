"""Weights in one file: a denoiser's or a whole checkpoint's, in diffusers' names or the authors', plain or GGUF."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from goca.backbones.loading.components import not_finite
from goca.backbones.loading.quantization import dense_weight
from goca.errors import ModelError
from goca.runs.provenance import checkpoint_identity
from tests.helpers.original_layout import original_state
from tests.helpers.saved_pipeline import backbone, seen
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline


@pytest.fixture(scope="module")
def denoiser(folder, tmp_path_factory):
    """A transformer's weights in one file, and its pipeline's folder without them."""
    place = tmp_path_factory.mktemp("single")
    file = place / "transformer.safetensors"
    shutil.copy(folder / "transformer" / "diffusion_pytorch_model.safetensors", file)
    rest = shutil.copytree(folder, place / "rest")
    (rest / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    return file, rest


def test_a_denoisers_file_stands_in_for_its_weights(denoiser, expected):
    file, rest = denoiser
    assert torch.equal(seen(backbone(rest, file=str(file)).load()), expected)


def test_a_whole_checkpoint_under_its_authors_names(tmp_path):
    """Nothing but configurations and the tokenizer comes from the folder."""
    pipeline = tiny_pipeline("sd")
    pipeline.save_pretrained(tmp_path / "pipeline")
    before = seen(tiny_backbone("sd", checkpoint=str(tmp_path / "pipeline")).load())
    for weights in (tmp_path / "pipeline").rglob("*.safetensors"):
        weights.unlink()
    save_file(original_state(pipeline), tmp_path / "model.safetensors")
    loaded = tiny_backbone("sd", checkpoint=str(tmp_path / "pipeline"), file=str(tmp_path / "model.safetensors")).load()
    for name in ("unet", "vae", "text_encoder"):
        found, wanted = getattr(loaded.pipeline, name).state_dict(), getattr(pipeline, name).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in found), name
    assert torch.equal(seen(loaded), before)


def _gguf(weights, file):
    gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    writer = gguf.GGUFWriter(file, "flux")
    for name, tensor in weights.items():
        values, kind = tensor.float().numpy(), gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_gives_nearly_the_same_maps(denoiser, expected, tmp_path):
    file, rest = denoiser
    weights = load_file(file)
    _gguf(weights, tmp_path / "q8.gguf")
    loaded = backbone(rest, file=str(tmp_path / "q8.gguf")).load()
    linear = loaded.denoiser.transformer_blocks[0].attn.to_out[0]
    assert type(linear.weight).__name__ == "GGUFParameter"
    stored = weights["transformer_blocks.0.attn.to_out.0.weight"]
    assert (dense_weight(linear) - stored).abs().max() <= stored.abs().max() / 127  # a step of eight bits at most
    assert not not_finite(loaded.denoiser)
    torch.testing.assert_close(seen(loaded), expected, rtol=0.1, atol=0.005)
    with pytest.raises(ModelError, match=r"model\.quantization: a \.gguf file is quantised already"):
        backbone(rest, file=str(tmp_path / "q8.gguf"), quantization="torchao_int8").inspect()


def test_the_file_is_part_of_the_identity(denoiser, tmp_path):
    file, rest = denoiser
    first = checkpoint_identity(backbone(rest, file=str(file)).load())["checkpoint_hash"]
    weights = load_file(file)
    weights["proj_out.bias"] += 1
    save_file(weights, tmp_path / "other.safetensors")
    other = checkpoint_identity(backbone(rest, file=str(tmp_path / "other.safetensors")).load())["checkpoint_hash"]
    again = checkpoint_identity(backbone(rest, file=str(file)).load())["checkpoint_hash"]
    assert first == again != other


def _cut(file, tmp_path):
    return _written(file, tmp_path, lambda weights: weights.pop("proj_out.bias"))


def _not_finite(file, tmp_path):
    return _written(file, tmp_path, lambda weights: weights["proj_out.bias"].fill_(torch.nan))


def _reshaped(file, tmp_path):
    return _written(file, tmp_path, lambda weights: weights.update({"proj_out.bias": torch.zeros(3)}))


def _written(file, tmp_path, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, r"model\.file: transformer \(FluxTransformer2DModel\) lacks weights for proj_out\.bias;"),
        (_not_finite, r"model\.file: transformer \(FluxTransformer2DModel\) holds NaN or infinity in proj_out\.bias;"),
        (_reshaped, r"model\.file: transformer \(FluxTransformer2DModel\) has weights of another shape: .*proj_out\.bias"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(denoiser, tmp_path, change, message):
    file, rest = denoiser
    with pytest.raises(ModelError, match=message):
        backbone(rest, file=str(change(file, tmp_path))).load()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.safetensors", None, r"model\.file: there is no file .*nowhere\.safetensors"),
        ("model.ckpt", b"x", r"model\.ckpt is no \.safetensors or \.gguf file; pickles are not read: save it as \.safetensors"),
        ("model.safetensors", b"not one", r"model\.safetensors is damaged"),
        ("model.gguf", b"not one", r"model\.gguf is damaged, or no GGUF file"),
    ],
)
def test_what_is_no_file_of_weights_is_refused_before_anything_is_read(folder, no_weights, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        backbone(folder, file=str(tmp_path / name)).load()


def test_a_class_of_which_diffusers_reads_no_single_file_is_refused(tmp_path):
    pipeline = tiny_pipeline("pixart_alpha")
    pipeline.save_pretrained(tmp_path / "pipeline")
    save_file(pipeline.transformer.state_dict(), tmp_path / "model.safetensors")
    loaded = tiny_backbone("pixart_alpha", checkpoint=str(tmp_path / "pipeline"), file=str(tmp_path / "model.safetensors"))
    with pytest.raises(ModelError, match=r"model\.file: diffusers reads no single file for a PixArtTransformer2DModel"):
        loaded.load()
