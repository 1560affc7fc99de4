"""Attention backends that the tap cannot see are set aside for the observed forward, and come back."""

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2AttnProcessor

from goca.attention.backends import visible_backends
from goca.attention.statistics import AttentionStatistics
from goca.attention.tap import AttentionTap
from goca.errors import ModelError
from goca.method import plan_layers
from tests.helpers.saved_pipeline import TEXTS, goca_aggregation
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Flux2Attention(8, heads=2, dim_head=4)


def _seen(layer):
    calls = []
    with torch.no_grad(), AttentionTap({"layer": layer}, calls.append):
        output = layer(torch.ones(1, 5, 8))
    return calls, output


def test_a_models_own_backend_is_set_aside_and_put_back(layer):
    plain = layer(torch.ones(1, 5, 8))
    layer.processor._attention_backend = AttentionBackendName.FLEX
    calls, output = _seen(layer)
    assert len(calls) == 1
    assert torch.equal(output, plain)
    assert layer.processor._attention_backend == AttentionBackendName.FLEX


def test_a_backend_for_everything_is_set_aside_too(layer):
    with attention_backend("flex"):
        calls, _ = _seen(layer)
        assert len(calls) == 1
        assert "_attention_backend" not in vars(layer.processor)  # as it was: the common one again


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_backends_that_are_seen_stay(layer, backend):
    layer.processor._attention_backend = AttentionBackendName(backend)
    with visible_backends([layer]):
        assert layer.processor._attention_backend == backend
    assert len(_seen(layer)[0]) == 1


def test_it_comes_back_after_an_error(layer):
    layer.processor._attention_backend = AttentionBackendName.FLEX
    with pytest.raises(KeyError), AttentionTap({"layer": layer}, print):
        raise KeyError
    assert layer.processor._attention_backend == AttentionBackendName.FLEX


def test_calls_of_one_module_are_told_apart(layer):
    """Some models attend one segment of the sequence after the other."""
    calls = []
    with torch.no_grad(), AttentionTap({"layer": layer}, calls.append):
        for _ in range(2):
            layer(torch.ones(1, 5, 8))
    assert [call.turn for call in calls] == [0, 0]  # two runs of the module

    class Twice(Flux2AttnProcessor):
        def __call__(self, attn, hidden_states, *args):
            return torch.cat([super(Twice, self).__call__(attn, part) for part in hidden_states.split([2, 3], dim=1)], dim=1)

    layer.set_processor(Twice())
    calls, _ = _seen(layer)
    assert [(call.turn, call.query.shape[2]) for call in calls] == [(0, 2), (1, 3)]


def test_attention_that_no_backend_explains_is_one_message():
    """Slicing and xformers are processors of their own, which never call torch's attention."""
    backbone = tiny_backbone("sd").load(tiny_pipeline("sd"))
    backbone.pipeline.unet.set_attn_processor(AttnProcessor())
    aggregation = goca_aggregation(backbone)
    statistics = AttentionStatistics(aggregation, plan_layers(backbone, aggregation))
    with pytest.raises(ModelError, match=r"cannot be observed: their processor is AttnProcessor.*set_attn_processor"):
        backbone.observe(torch.zeros(1, 3, 32, 32), TEXTS[:1], ["a"], 0, statistics)
