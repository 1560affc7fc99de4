"""The streaming statistics equal the materialising oracle on real UNet forwards, for every method and byte budget."""

from fnmatch import fnmatch

import pytest
import torch

from goca.attention.statistics import AttentionStatistics
from goca.attention.tap import AttentionTap
from goca.method import plan_layers
from goca.method.aggregation import Aggregation
from goca.method.aggregation.layers import nearest_rows, sampled_rows, standard_errors
from tests.helpers import oracle
from tests.helpers.tiny_unet import tiny_sd, tiny_sdxl, tiny_unet_backbone

TEXTS = ["circle, grass", "a heart on snow"]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def recorded(request):
    """A backbone, its pixels, and every canonical call of one forward."""
    backbone = tiny_unet_backbone(tiny_sd() if request.param == "sd" else tiny_sdxl())
    # Fresh weights attend almost evenly; larger query projections make maps that differ between heads, layers and pixels.
    for module in backbone.attention_modules.values():
        module.to_q.weight.mul_(6)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    calls = {}

    class Recorder:
        plan = plan_layers(backbone, _aggregation())

        def observe(self, call):
            calls[call.layer] = call

        def finish(self):
            return None

    backbone.observe(pixels, TEXTS, ["a", "b"], 0, Recorder())
    return backbone, pixels, calls


def _aggregation(**options):
    settings = {
        "heads": "dot_product",
        "layers": "dot_product",
        "cross_layers": ("*attn2",),
        "reference": "up_blocks.0*transformer_blocks.0.attn2",
        "feature_size": 16,
    }
    return Aggregation(**{**settings, **options})


def _expected(backbone, calls, aggregation):
    plan = plan_layers(backbone, aggregation)
    reference = None
    if plan.reference:
        query = calls[plan.reference].query
        reference = query.transpose(2, 3).flatten(1, 2).unflatten(2, calls[plan.reference].grid)
        reference = reference[:, :1] if aggregation.reference_channels == "first" else reference
    cross = {name: calls[name] for name in plan.cross}
    return oracle.aggregate(aggregation, cross, {name: calls[own] for name, own in plan.cross.items()}, reference)


@pytest.mark.parametrize("head_method", oracle.HEAD_METHODS)
@pytest.mark.parametrize("layer_method", [*oracle.LAYER_METHODS, "average"])
@pytest.mark.parametrize("max_bytes", [2**28, 6000])
def test_equals_the_oracle(recorded, head_method, layer_method, max_bytes):
    backbone, pixels, calls = recorded
    aggregation = _aggregation(heads=head_method, layers=layer_method)
    statistics = AttentionStatistics(aggregation, plan_layers(backbone, aggregation), max_bytes)
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, statistics)
    token_maps, weights = _expected(backbone, calls, aggregation)
    torch.testing.assert_close(seen.token_maps, token_maps, rtol=1e-4, atol=1e-6)
    for name, weight in weights.items():
        torch.testing.assert_close(seen.layer_weights[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"renormalize": True}, {"layers": "mse"}, {"reference_channels": "first"}])
@pytest.mark.parametrize("reference", ["up_blocks.0*blocks.0.attn2", "up_blocks.1*", "down_blocks.1*blocks.0.attn2"])
def test_layer_weights_for_coarser_and_finer_references(recorded, options, reference):
    backbone, pixels, calls = recorded
    aggregation = _aggregation(reference=reference, **options)
    if not any(fnmatch(name, reference) for name in calls):
        pytest.skip("this UNet has no attention there")
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, AttentionStatistics(aggregation, plan_layers(backbone, aggregation)))
    _, weights = _expected(backbone, calls, aggregation)
    for name, weight in weights.items():
        torch.testing.assert_close(seen.layer_weights[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [10_000, 50, 7, 1])
def test_layer_weights_of_sampled_rows_are_those_of_these_rows_alone(recorded, rows):
    backbone, pixels, calls = recorded
    aggregation = _aggregation(rows=rows)
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, AttentionStatistics(aggregation, plan_layers(backbone, aggregation)))
    _, weights = _expected(backbone, calls, aggregation)
    for name, weight in weights.items():
        torch.testing.assert_close(seen.layer_weights[name], weight, rtol=1e-5, atol=1e-6)


def test_observing_changes_no_bit_and_leaves_nothing_behind(recorded):
    backbone, pixels, _ = recorded
    aggregation = _aggregation()
    latents = backbone.encode_image(pixels)
    conditioning = backbone.conditioning(TEXTS)
    with torch.inference_mode():
        plain = backbone.denoise(latents, conditioning)
        plan = plan_layers(backbone, aggregation)
        statistics = AttentionStatistics(aggregation, plan)
        modules = {name: backbone.attention_modules[name] for name in plan.observed}
        with AttentionTap(modules, lambda raw: statistics.observe(backbone.canonical(raw, latents.shape[-2:]))):
            observed = backbone.denoise(latents, conditioning)
        after = backbone.denoise(latents, conditioning)
    assert torch.equal(plain, observed)
    assert torch.equal(plain, after)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.denoiser.modules())


def test_an_image_sees_the_same_alone_and_in_a_batch(recorded):
    backbone, pixels, _ = recorded
    aggregation = _aggregation()
    plan = plan_layers(backbone, aggregation)
    together = backbone.observe(pixels, TEXTS, ["a", "b"], 0, AttentionStatistics(aggregation, plan))
    for i, (text, image_id) in enumerate(zip(TEXTS, "ab", strict=True)):
        alone = backbone.observe(pixels[i : i + 1], [text], [image_id], 0, AttentionStatistics(aggregation, plan))
        torch.testing.assert_close(alone.token_maps[0], together.token_maps[i], rtol=1e-4, atol=1e-6)


def test_token_maps_share_out_every_pixel(recorded):
    backbone, pixels, _ = recorded
    aggregation = _aggregation()
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, AttentionStatistics(aggregation, plan_layers(backbone, aggregation)))
    assert seen.token_maps.min() >= 0
    torch.testing.assert_close(seen.token_maps.sum(1), torch.ones(2, 16, 16))


def test_nothing_of_size_heads_times_pixels_squared_is_kept(recorded):
    """While the forward runs, no tensor holds more than the byte budget of attention probabilities."""
    from torch.utils._python_dispatch import TorchDispatchMode

    backbone, pixels, _ = recorded
    aggregation = _aggregation()
    budget = 8 * 1024

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and "softmax" in str(func):
                type(self).largest = max(type(self).largest, out.numel() * 4)
            return out

    statistics = AttentionStatistics(aggregation, plan_layers(backbone, aggregation), max_bytes=budget)
    latents = backbone.encode_image(pixels)
    calls = []
    modules = {name: backbone.attention_modules[name] for name in statistics.plan.observed}
    with torch.inference_mode():
        with AttentionTap(modules, lambda raw: calls.append(backbone.canonical(raw, latents.shape[-2:]))):
            backbone.denoise(latents, backbone.conditioning(TEXTS))
        with Largest():
            for call in calls:
                statistics.observe(call)
    assert 0 < Largest.largest <= 4 * budget  # one row of all heads can exceed the budget, all rows never do


@pytest.mark.parametrize("max_bytes", [2**28, 40_000], ids=["rows kept", "rows computed again"])
@pytest.mark.parametrize("reference", ["up_blocks.0*blocks.0.attn2", "up_blocks.1*"])
def test_self_attention_for_refinements_is_that_of_the_model(recorded, max_bytes, reference):
    backbone, pixels, calls = recorded
    if not any(fnmatch(name, reference) for name in calls):
        pytest.skip("this UNet has no attention there")
    names = tuple(name for name in backbone.attention_modules if name.endswith("attn1"))
    aggregation = _aggregation(reference=reference)
    plan = plan_layers(backbone, aggregation, self_attention=names)
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, AttentionStatistics(aggregation, plan, max_bytes))
    assert bool(seen.known_rows) == (max_bytes == 2**28)
    for image in range(2):
        for name, attention in seen.self_attention(image).items():
            expected = oracle.attention_maps(calls[name]).mean(1)[image]
            for index in (torch.arange(len(expected)), torch.tensor([3, 0, 2])):
                torch.testing.assert_close(attention.rows(index), expected[index], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("max_bytes", [2**28, 1500])
@pytest.mark.parametrize("reference", ["up_blocks.0*blocks.0.attn2", "down_blocks.1*blocks.0.attn2"])
def test_standard_errors_of_sampled_weights_are_those_of_the_rows(recorded, reference, max_bytes):
    """From every layer's whole attention: how far the rows of the sample are from adding the same shares of their sum."""
    backbone, pixels, calls = recorded
    aggregation = _aggregation(rows=12, reference=reference)
    plan = plan_layers(backbone, aggregation)
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, AttentionStatistics(aggregation, plan, max_bytes))
    query, grid = calls[plan.reference].query, calls[plan.reference].grid
    rows = sampled_rows(grid, 12)
    flat = query.transpose(2, 3).flatten(1, 2)
    affinity = torch.softmax(flat.transpose(1, 2) @ flat / flat.shape[1] ** 0.5, -1)[:, rows]
    added = []
    for own in plan.cross.values():
        attention = oracle.attention_maps(calls[own])[..., calls[own].image].mean(1)
        found = (affinity * oracle.resized_self_attention(attention, calls[own].grid, grid)[:, rows]).sum(-1)
        if max_bytes > 1500:  # rows that meet in a row of a coarser layer are taken together, and count alike
            sources = nearest_rows(calls[own].grid, grid)[rows]
            found = torch.stack([found[:, sources == source].mean(1) for source in sources], 1)
        added.append(found)
    shares = torch.stack(added).double()  # (L, B, r)
    for place, name in enumerate(plan.cross):
        for image in range(2):
            total = shares[:, image].sum()
            weight = shares[place, image].sum() / total
            residuals = (shares[place, image] - weight * shares[:, image].sum(0)) / total
            error = (12 * residuals.var(correction=1) * (1 - 12 / (grid[0] * grid[1]))).sqrt()
            assert float(seen.layer_weight_errors[name][image]) == pytest.approx(float(error), rel=1e-3)


def test_all_rows_have_no_error_and_one_row_and_other_methods_none_that_is_known(recorded):
    backbone, pixels, _ = recorded
    unsampled = ({"rows": "all"}, {"rows": 10_000}, {"layers": "average", "reference": None})
    for options in (*unsampled, {"rows": 1}, {"layers": "iou", "rows": 12}):
        aggregation = _aggregation(**options)
        statistics = AttentionStatistics(aggregation, plan_layers(backbone, aggregation))
        assert backbone.observe(pixels, TEXTS, ["a", "b"], 0, statistics).layer_weight_errors == {}


def test_the_standard_error_is_how_far_samples_are_from_all_rows():
    """Rows of which a few weigh much, as attention has them, and much of it in all layers at once: 4,000 samples drawn."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(3, 600, generator=generator) + 4 * torch.rand(600, generator=generator) ** 8
    samples = torch.stack([rows[:, torch.randperm(600, generator=generator)[:90]] for _ in range(4000)])
    errors = samples.sum(-1) / samples.sum((1, 2))[:, None] - rows.sum(-1) / rows.sum()
    told = standard_errors(samples, 600)
    torch.testing.assert_close(told.square().mean(0).sqrt(), errors.square().mean(0).sqrt(), rtol=0.05, atol=0)
    assert float((errors.abs() < 2 * told).float().mean()) > 0.93
