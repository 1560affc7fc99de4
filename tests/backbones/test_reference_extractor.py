"""The authors' attention processors, fed the same weights and inputs, against the tap and the canonical calls."""

import json

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttention
from safetensors.torch import load_file
from torch import nn

from goca.attention.call import probabilities
from goca.attention.tap import AttentionTap
from goca.backbones.flux import FluxBackbone
from goca.backbones.mixins import CrossAttention
from goca.layer_names import LayerNames

HALF = {"rtol": 2e-3, "atol": 1e-3}  # what the authors store is cast to float16


@pytest.fixture
def case(reference, request):
    listed = json.loads((reference / "numerics" / "cases.json").read_text())["cases"]
    entry = next((entry for entry in listed if entry["id"] == f"extractor/{request.param}"), None)
    if entry is None:
        pytest.skip(f"these reference data hold no case extractor/{request.param}")
    tensors = {}
    for file in [*entry["shared_inputs"], entry["file"]]:
        tensors |= load_file(reference / "numerics" / file)
    return entry, tensors


def _inputs(tensors):
    return {key.removeprefix("inputs/"): value for key, value in tensors.items() if key.startswith("inputs/")}


def _weights(tensors):
    return {key.removeprefix("weight/"): value for key, value in _inputs(tensors).items() if key.startswith("weight/")}


def _expected(tensors, part):
    (value,) = [value for key, value in tensors.items() if key.startswith("expected/") and key.endswith(f"-{part}")]
    return value.float()


def _observe(backbone, module, layer, pixels, **inputs):
    """The module's output and its canonical call, as a backbone of that family sees it."""
    side = round(pixels**0.5)
    backbone.__dict__ |= {"attention_modules": {layer: module}}
    calls = []
    with (
        torch.no_grad(),
        AttentionTap({layer: module}, lambda raw: calls.append(backbone.canonical(raw, (2 * side, 2 * side)))),
    ):
        output = module(**inputs)
    (call,) = calls
    return output, call


class _Blocks(CrossAttention):
    """The canonicalisation of every family with attn1 and attn2, without a pipeline."""

    patch = 2
    text_segments = encode_text = blank_conditioning = denoise = None

    def __init__(self):
        pass


def _attention(entry, tensors):
    weights = _weights(tensors)
    cross = _inputs(tensors).get("encoder_hidden_states")
    heads, (width, query_dim) = entry["options"]["heads"], weights["to_q.weight"].shape
    context = None if cross is None else cross.shape[-1]
    module = Attention(query_dim, context, heads=heads, dim_head=width // heads, bias="to_q.bias" in weights)
    module.load_state_dict(weights)
    return module.eval(), cross


@pytest.mark.parametrize("case", ["cross", "cross_masked", "self"], indirect=True)
def test_separate_attention(case):
    entry, tensors = case
    module, cross = _attention(entry, tensors)
    hidden = _inputs(tensors)["hidden_states"]
    options = {} if cross is None else {"encoder_hidden_states": cross}
    if "attention_mask" in _inputs(tensors):
        options["attention_mask"] = _inputs(tensors)["attention_mask"]
    layer = "block.attn1" if cross is None else "block.attn2"
    output, call = _observe(_Blocks(), module, layer, hidden.shape[1], hidden_states=hidden, **options)
    torch.testing.assert_close(output, tensors["expected/hidden_states"], rtol=1e-4, atol=1e-5)
    keys = call.image if cross is None else call.text
    torch.testing.assert_close(probabilities(call, keys), _expected(tensors, "map"), **HALF)
    torch.testing.assert_close(call.projection, _expected(tensors, "special-weight"), **HALF)
    torch.testing.assert_close(call.value[0], _expected(tensors, "special-value"), **HALF)
    torch.testing.assert_close(_side_by_side(call.output), _expected(tensors, "special-post-value"), **HALF)
    torch.testing.assert_close(_dense(call.query, call.grid), _expected(tensors, "q"), **HALF)


def _side_by_side(heads):
    """(B, H, S, d) -> (B, S, H * d)."""
    return heads.transpose(1, 2).flatten(2)


def _dense(heads, grid):
    """(B, H, S, d) -> (B, H * d, h, w): a dense feature."""
    return _side_by_side(heads).transpose(1, 2).unflatten(2, grid)


def _flux():
    layers = LayerNames(cross=("*",), manual=("*",), reference="*", affinity=("*",), feature="output")
    return FluxBackbone(name="flux", checkpoint="in-memory", size=32, timestep=150, layers=layers)


def _flux_module(entry, tensors, single):
    weights = _weights(tensors)
    heads, (width, query_dim) = entry["options"]["heads"], weights["to_q.weight"].shape
    context = {"pre_only": True} if single else {"added_kv_proj_dim": query_dim, "context_pre_only": False}
    module = FluxAttention(query_dim, heads, width // heads, bias=True, out_dim=width, eps=1e-6, **context)
    module.load_state_dict(weights)
    return module.eval()


@pytest.mark.parametrize("case", ["flux_dual"], indirect=True)
def test_flux_double_stream_block(case):
    """Maps are slices of one softmax over text and image; upstream's value is that of the image part (docs/parity.md, Q8)."""
    entry, tensors = case
    inputs = _inputs(tensors)
    image, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
    module = _flux_module(entry, tensors, single=False)
    output, call = _observe(
        _flux(), module, "transformer_blocks.0.attn", image.shape[1], hidden_states=image, encoder_hidden_states=text
    )
    torch.testing.assert_close(output[0], tensors["expected/hidden_states"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output[1], tensors["expected/encoder_hidden_states"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probabilities(call, call.text), _expected(tensors, "cross-map"), **HALF)
    torch.testing.assert_close(probabilities(call, call.image), _expected(tensors, "self-map"), **HALF)
    torch.testing.assert_close(call.projection, _expected(tensors, "cross-special-weight"), **HALF)
    torch.testing.assert_close(call.value[0][:, call.image], _expected(tensors, "cross-special-value"), **HALF)
    torch.testing.assert_close(_side_by_side(call.output), _expected(tensors, "cross-special-post-value"), **HALF)
    # Upstream takes the "attention output" of a double block after W^O; the paper's reference is a single block, without one.
    projected = module.to_out[0](_side_by_side(call.output)).transpose(1, 2).unflatten(2, call.grid)
    torch.testing.assert_close(projected, _expected(tensors, "attn-out"), **HALF)


@pytest.mark.parametrize("case", ["flux_single"], indirect=True)
def test_flux_single_stream_block(case):
    entry, tensors = case
    hidden = _inputs(tensors)["hidden_states"]
    text = entry["options"]["text_len"]
    module = _flux_module(entry, tensors, single=True)
    backbone = _flux()
    block = nn.Module()
    block.attn, block.proj_out = module, nn.Linear(2 * hidden.shape[-1], hidden.shape[-1])
    network = nn.Module()
    network.single_transformer_blocks = nn.ModuleList([block])
    backbone.pipeline = type("Pipeline", (), {"transformer": network})()
    layer = "single_transformer_blocks.0.attn"
    output, call = _observe(backbone, module, layer, hidden.shape[1] - text, hidden_states=hidden)
    torch.testing.assert_close(output, tensors["expected/hidden_states"], rtol=1e-4, atol=1e-5)
    assert call.text == slice(0, text)
    torch.testing.assert_close(probabilities(call, call.text), _expected(tensors, "cross-map"), **HALF)
    torch.testing.assert_close(probabilities(call, call.image), _expected(tensors, "self-map"), **HALF)
    torch.testing.assert_close(_dense(call.output, call.grid), _expected(tensors, "attn-out"), **HALF)
    width = call.projection.shape[1]
    assert torch.equal(call.projection, block.proj_out.weight[:, :width])
