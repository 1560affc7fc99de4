"""Pipelines that a user has made something of: LoRA fused or running beside, offloaded, quantised."""

import pytest
import torch

from goca.backbones.loading.quantization import dense_weight
from goca.segmentor import Segmentor
from tests.helpers.hub_repositories import lora
from tests.helpers.saved_pipeline import seen
from tests.helpers.tiny_pipelines import tiny_pipeline

LAYERS = [
    "model.layers.cross=['*attn']",
    "model.layers.manual=['*.1.attn']",
    "model.layers.reference=single_transformer_blocks.0.attn",
    "model.layers.affinity=['*.1.attn']",
]


def _maps(pipeline):
    backbone = Segmentor.from_pipeline(pipeline, "model.size=32", *LAYERS).backbone
    assert backbone.pipeline is pipeline
    return seen(backbone), backbone


@pytest.fixture(scope="module")
def plain():
    return _maps(tiny_pipeline("flux_dev"))[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A LoRA of the queries and the output projection, whose W^O the head weights are computed with."""
    return lora("flux_dev", tmp_path_factory.mktemp("lora"), targets=["to_q", "to_out.0"])


@pytest.mark.slow
def test_a_lora_counts_whether_it_is_fused_or_runs_beside(plain, weights):
    fused, beside = tiny_pipeline("flux_dev"), tiny_pipeline("flux_dev")
    for pipeline in (fused, beside):
        pipeline.load_lora_weights(weights)
    fused.fuse_lora()
    fused.unload_lora_weights()
    maps, _ = _maps(fused)
    assert (maps - plain).abs().max() > 1e-4
    together, backbone = _maps(beside)
    torch.testing.assert_close(together, maps, rtol=1e-3, atol=1e-6)
    beside.disable_lora()
    torch.testing.assert_close(seen(backbone), plain, rtol=1e-4, atol=1e-6)


def test_group_offloading_changes_no_bit(plain):
    pipeline = tiny_pipeline("flux_dev")
    pipeline.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(_maps(pipeline)[0], plain)


def test_int8_weights_of_torchao_give_nearly_the_same_maps(plain):
    torchao = pytest.importorskip("torchao.quantization", reason="the extra `quantization` is not installed")
    pipeline = tiny_pipeline("flux_dev")
    torchao.quantize_(pipeline.transformer, torchao.Int8WeightOnlyConfig())
    maps, backbone = _maps(pipeline)
    assert type(backbone.denoiser.transformer_blocks[0].attn.to_out[0].weight).__module__.startswith("torchao")
    torch.testing.assert_close(maps, plain, rtol=0.1, atol=0.005)


def test_four_bit_weights_of_bitsandbytes_are_read_as_they_were():
    """On some processors it packs them anew at the first forward; narrower layers than 64 it cannot run there."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 128).eval()
    small = bitsandbytes.nn.Linear4bit(128, 128, quant_type="nf4", compute_dtype=torch.bfloat16).eval()
    small.load_state_dict(linear.state_dict())
    small = small.to("cpu").requires_grad_(False)
    before = dense_weight(small).float()
    assert (before - linear.weight).abs().max() < 0.02
    with torch.inference_mode():
        small(torch.randn(1, 5, 128).bfloat16())
    torch.testing.assert_close(dense_weight(small).float(), before, rtol=0.01, atol=1e-4)
