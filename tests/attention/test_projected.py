"""The O that the model computes anyway: which calls come with it, and that heads' weights are the same with and without."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from goca.attention.call import AttentionCall
from goca.attention.reductions import head_weights
from goca.attention.tap import AttentionTap
from goca.method.aggregation.heads import projected_back


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Attention(24, heads=3, dim_head=8).requires_grad_(False)


def _flat(output):
    return output.transpose(1, 2).flatten(2)


def test_a_call_is_reported_with_what_its_projection_made_of_it(layer):
    seen, states = [], torch.randn(2, 5, 24)
    with AttentionTap({"layer": layer}, seen.append, projections={"layer": layer.to_out[0].weight}):
        found = layer(states)
    assert torch.equal(found, layer(states))
    (raw,) = seen
    assert torch.equal(raw.projected, layer.to_out[0](_flat(raw.output)))
    assert raw.rows(slice(1, 2)).projected.shape == (1, 5, 24)


def test_other_layers_are_reported_at_once_and_without(layer):
    seen = []
    with AttentionTap({"layer": layer}, seen.append, projections={"another": layer.to_out[0].weight}):
        layer(torch.randn(1, 4, 24))
    assert seen[0].projected is None


class TwoCalls(nn.Module):
    """Attends twice before it projects, as with an image prompt, or never projects."""

    def __init__(self, layer, projects):
        super().__init__()
        self.layer, self.projects = layer, projects

    def forward(self, states):
        query = states.unflatten(2, (3, 8)).transpose(1, 2)
        total = sum(nn.functional.scaled_dot_product_attention(query, query, query) for _ in range(2))
        return self.layer.to_out[0](_flat(total)) if self.projects else total


@pytest.mark.parametrize("projects", [True, False])
def test_no_call_is_lost_where_a_layer_projects_late_or_never(layer, projects):
    seen, module = [], TwoCalls(layer, projects)
    with AttentionTap({"layer": module}, seen.append, projections={"layer": layer.to_out[0].weight}):
        module(torch.randn(1, 4, 24))
    assert [raw.turn for raw in seen] == [0, 1]
    assert [raw.projected is not None for raw in seen] == [False, projects]


def test_nested_taps_are_both_told(layer):
    inner, outer, weights = [], [], {"layer": layer.to_out[0].weight}
    with AttentionTap({"layer": layer}, outer.append, projections=weights), AttentionTap({"layer": layer}, inner.append):
        layer(torch.randn(1, 4, 24))
    assert inner[0].projected is None
    assert outer[0].projected is not None


@pytest.mark.parametrize("pixels", [4, 60], ids=["more channels", "more pixels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["dot_product", "dot_product_clamped", "average"])
def test_heads_weigh_the_same_with_it(pixels, dtype, method):
    generator = torch.Generator().manual_seed(pixels)
    output, value = (torch.randn(2, 3, count, 8, generator=generator).to(dtype) for count in (pixels, 7))
    projection, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((24, 24), (24,)))
    call = AttentionCall("layer", (2, pixels // 2), output, value, 1.0, text=slice(0, 7), value=value, output=output)
    call = replace(call, projection=projection, bias=bias)
    known = replace(call, projected=nn.functional.linear(_flat(output), projection, bias))
    exact = torch.einsum("bsx,bsy,zx,zy->bsxy", *(2 * [_flat(output).double()]), *(2 * [projection.double()]))
    exact = exact.sum(3).unflatten(2, (3, 8)).sum(3).transpose(1, 2)  # o_h . O
    exact = exact / exact.sum(1, keepdim=True)
    plain, own = head_weights(call, method), head_weights(known, method)
    if method == "dot_product":
        assert float((own - exact).norm() / exact.norm()) < {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    if method != "dot_product" or pixels == 60:
        assert torch.equal(plain, own)
    torch.testing.assert_close(
        plain, own, rtol={torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype], atol=1e-5 if dtype == torch.float32 else 5e-2
    )


@pytest.mark.parametrize("pixels", [5, 60])  # fewer and more than channels
def test_a_processor_without_half_precision_weighs_heads_in_float32(monkeypatch, pixels):
    """There bfloat16 takes longer and is rounded: the weights are those of the same numbers in float32."""
    monkeypatch.setattr("goca.ops.multiplies_half", lambda dtype, device: False)
    generator = torch.Generator().manual_seed(0)
    output, projection, projected = (
        torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in ((1, 3, pixels, 8), (24, 24), (1, pixels, 24))
    )
    for known in (None, projected):
        found = projected_back(output, projection, known)
        wide = None if known is None else known.float()
        torch.testing.assert_close(found, projected_back(output.float(), projection.float(), wide), atol=0, rtol=0)
