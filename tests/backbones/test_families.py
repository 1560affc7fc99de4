"""Every family on a small pipeline of the real classes: spans, masks, probabilities, batches, and the main job itself."""

import numpy as np
import pytest
import torch

from goca import config
from goca.attention.call import probabilities
from goca.attention.features import dense_feature
from goca.attention.statistics import AttentionStatistics
from goca.attention.tap import AttentionTap
from goca.data.sizes import KeepAspect
from goca.errors import ModelError
from goca.method import plan_layers
from goca.ops import map_grid
from goca.prompts import from_text
from goca.runs.evaluation import evaluate
from goca.segmentor import Segmentor
from tests.helpers.oracle import aggregate, attention_maps
from tests.helpers.saved_pipeline import goca_aggregation
from tests.helpers.tiny_pipelines import FAMILIES, family_overrides, tiny_backbone, tiny_pipeline

TEXTS = ["circle, grass", "a heart on snow, moon"]
SIZE = 32
UNUSED = {}  # how a text lies in a pipeline that has encoded nothing yet


@pytest.fixture(scope="module", params=list(FAMILIES))
def backbone(request):
    loaded = tiny_backbone(request.param).load(tiny_pipeline(request.param))
    UNUSED[request.param] = _tokens(loaded)
    return loaded


def _tokens(backbone):
    return [segment.tokens(text) for segment in backbone.text_segments for text in TEXTS]


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def forward(backbone, pixels):
    """One bare forward with everything observed: raw calls, canonical calls, and both outputs."""
    raws, calls = {}, {}
    with torch.inference_mode():
        latents = backbone.encode_image(pixels)
        noisy = backbone.add_noise(latents, torch.randn(latents.shape, generator=torch.Generator().manual_seed(2)))
        conditioning = backbone.conditioning(TEXTS)
        plain = backbone.denoise(noisy, conditioning)

        def observe(raw):
            call = backbone.canonical(raw, latents.shape[-2:])
            if call is not None:  # else the text's own call, where a layer makes one for each part of its sequence
                raws[raw.layer], calls[raw.layer] = raw, call

        with AttentionTap(backbone.attention_modules, observe):
            observed = backbone.denoise(noisy, conditioning)
    return raws, calls, plain, observed


def _statistics(backbone):
    aggregation = goca_aggregation(backbone)
    return AttentionStatistics(aggregation, plan_layers(backbone, aggregation, backbone.layers.affinity))


def _text_length(backbone):
    if backbone.name == "sd3_without_t5":
        return 77 + backbone.text_length  # T5's part of the axis is there, but zeros
    return max(segment.start + segment.length for segment in backbone.text_segments)


def _row(backbone):
    return FAMILIES[backbone.name]


def test_observing_changes_no_bit_of_the_output(forward):
    _, _, plain, observed = forward
    assert torch.equal(plain, observed)


def test_the_models_own_projection_weighs_heads_as_a_product_of_our_own_does(backbone, pixels, monkeypatch):
    own, known = [], backbone._projections
    add = known.add
    monkeypatch.setattr(known, "add", lambda call, raw: own.append(add(call, raw)) or own[-1])
    with_it = backbone.observe(pixels, TEXTS, ["a", "b"], 0, _statistics(backbone))
    for call in own:
        if call is not None and call.projected is not None:
            expected = torch.nn.functional.linear(call.output.transpose(1, 2).flatten(2), call.projection, call.bias)
            torch.testing.assert_close(call.projected, expected, rtol=1e-4, atol=1e-5, msg=call.layer)
    assert all(known._agreed.values())  # of no family's processor is anything added in between
    monkeypatch.setattr(known, "weights", lambda statistics: {})
    without = backbone.observe(pixels, TEXTS, ["a", "b"], 0, _statistics(backbone))
    for layer, weights in without.head_weights.items():
        torch.testing.assert_close(with_it.head_weights[layer], weights, rtol=1e-3, atol=1e-5, msg=layer)


def test_every_attention_layer_is_seen_and_image_queries_fill_its_grid(backbone, forward):
    raws, calls, *_ = forward
    assert set(raws) == set(backbone.attention_modules)
    for layer, call in calls.items():
        assert call.query.shape[2] == call.grid[0] * call.grid[1], layer
        assert (call.text is not None) == backbone.is_text_layer(layer), layer


def test_text_keys_are_as_many_as_the_text_axis_is_long(backbone, forward):
    _, calls, *_ = forward
    for call in calls.values():
        if call.text is not None:
            keys = len(range(*call.text.indices(call.key.shape[2])))
            assert (call.text_axis or keys) == _text_length(backbone)
            assert keys <= _text_length(backbone)


def test_probabilities_are_those_of_an_explicit_softmax_over_the_whole_sequence(forward):
    """The reference is the model's own output: probabilities times values must give what the layer computed."""
    _, calls, *_ = forward
    for layer, call in calls.items():
        explicit = attention_maps(call)  # (B, H, S, n), the whole sequence
        output = explicit @ call.value.float() * (1 if call.gate is None else call.gate)
        torch.testing.assert_close(output, call.output.float(), rtol=1e-4, atol=1e-5, msg=layer)
        for part in (call.text, call.image):
            if part is not None:
                torch.testing.assert_close(probabilities(call, part), explicit[..., part])
        if call.text is not None and call.image is not None:
            both = probabilities(call, call.text).sum(-1) + probabilities(call, call.image).sum(-1)
            extra = call.text.start if call.text.start and call.text.stop <= call.image.start else 0
            assert (both <= 1 + 1e-5).all()
            if not extra:
                torch.testing.assert_close(both, torch.ones_like(both))


def test_head_contributions_add_up_to_the_output_projection(backbone, forward):
    """W^O is the right matrix: the sum of z_h W_h over heads is what the projection makes of the layer's output."""
    _, calls, *_ = forward
    for layer, call in calls.items():
        flat = call.output.transpose(1, 2).flatten(2)
        module = backbone.attention_modules[layer]
        # Single-stream blocks of Flux share the output layer with their MLP: attention's columns come first.
        linear = getattr(module, "to_out", None) or getattr(module, "out_layer", None)
        linear = linear or backbone.denoiser.get_submodule(layer.rpartition(".")[0]).proj_out
        linear = linear if isinstance(linear, torch.nn.Linear) else linear[0]
        padded = torch.cat([flat, flat.new_zeros(*flat.shape[:2], linear.in_features - flat.shape[-1])], dim=-1)
        expected = linear(padded) - (0 if linear.bias is None else linear.bias)
        torch.testing.assert_close(flat @ call.projection.T, expected, rtol=1e-4, atol=1e-5)


def test_a_text_position_of_the_prompt_is_the_same_position_among_the_keys(backbone, pixels, forward):
    """Changing the embedding of one position changes, in the first layer, the keys of that position and of no other."""
    _, calls, *_ = forward
    first = next(layer for layer, call in calls.items() if call.text is not None)
    call = calls[first]
    position = 3
    seen = []
    refiners = {name: backbone.denoiser.get_submodule(name) for name in _row(backbone).refined}
    with torch.inference_mode():
        conditioning = dict(backbone.conditioning(TEXTS))
        changed = conditioning["encoder_hidden_states"].clone()
        changed[:, position] += 1
        latents = backbone.encode_image(pixels)
        for name in refiners:  # they mix tokens on purpose, each keeping its place
            backbone.denoiser.set_submodule(name, torch.nn.ModuleList())
        for states in (conditioning["encoder_hidden_states"], changed):
            with AttentionTap({first: backbone.attention_modules[first]}, lambda raw: seen.append(raw)):
                backbone.denoise(latents, {**conditioning, "encoder_hidden_states": states})
        for name, blocks in refiners.items():
            backbone.denoiser.set_submodule(name, blocks)
    before, after = (raw.key for raw in seen if raw.query.shape[2] >= call.query.shape[2] and raw.key.shape == call.key.shape)
    moved = (before - after).abs().amax((0, 1, 3)) > 0  # (keys,)
    assert moved[call.text].nonzero().flatten().tolist() == [position]


def test_the_prompt_is_aligned_on_the_tokens_that_the_encoders_get(backbone):
    """Token ids that enter the text encoders are, position by position, those of the backbone's text segments."""
    entered = {}
    handles = []
    for name, component in backbone.pipeline.components.items():
        if name.startswith("text_encoder") and component is not None:

            def hook(module, args, kwargs, name=name):
                entered[name] = args[0] if args else kwargs["input_ids"]

            handles.append(component.register_forward_pre_hook(hook, with_kwargs=True))
    text = "a Heart on snow, moon"
    backbone.encode_text([text])
    for handle in handles:
        handle.remove()
    padding = {
        getattr(tokenizer, "pad_token_id", None) for tokenizer in (segment.tokenizer for segment in backbone.text_segments)
    }
    rows = [[i for i in ids[0].tolist() if i not in padding] for ids in entered.values()]
    for segment in backbone.text_segments:
        expected = [i for i in segment.ids(text) if i not in padding]
        # A template's ends may be tokenized apart, and its tokens stand around the prompt's then.
        assert any(expected == row[first : first + len(expected)] for row in rows for first in range(len(row)))


def test_a_word_of_the_prompt_begins_where_its_embedding_does(backbone):
    """Independent of templates and offsets: with another word in its place, a causal encoder's states differ from there on."""
    if not _row(backbone).causal:
        pytest.skip("each of this encoder's states knows the whole text")
    _, (prompt,) = from_text("circle, grass", backbone.text_segments)
    texts = ("circle, grass", "circle, heart")  # as many letters, should each be a token
    states = [backbone.conditioning([text])["encoder_hidden_states"][0] for text in texts]
    padding = prompt.special.get("padding", ())  # on the left it may look at everything
    differs = [i for i in (states[0] != states[1]).flatten(1).any(-1).nonzero().flatten().tolist() if i not in padding]
    assert prompt.class_tokens[2][0] == differs[0]
    assert prompt.tokens[differs[0]] in ("grass", "g")


def test_words_lie_where_they_do_before_a_pipeline_has_encoded_anything_too(backbone, forward, request):
    """Some pipelines change the settings of their tokenizer when they first encode a prompt."""
    assert _tokens(backbone) == UNUSED[request.node.callspec.params["backbone"]]


def test_padding_gets_what_the_model_gives_it(backbone, forward):
    """Masked padding gets nothing; where a family does not mask, padding takes part like any token."""
    _, calls, *_ = forward
    segment, second = backbone.text_segments[-1], 1
    kinds = [token.kind for token in segment.tokens(TEXTS[second])]
    padding = [segment.start + i for i, kind in enumerate(kinds) if kind == "padding"]
    masked = _row(backbone).masked
    assert padding
    for call in calls.values():
        if call.text is not None:
            shares = probabilities(call, call.text)[second]
            share = shares[:, :, [i for i in padding if i < shares.shape[-1]]].sum()
            assert (share == 0) == masked


def test_a_batch_of_two_is_two_runs_of_one(backbone, pixels):
    together = backbone.observe(pixels, TEXTS, ["a", "b"], 0, _statistics(backbone))
    assert together.token_maps.shape == (2, _text_length(backbone), 16, 16)
    torch.testing.assert_close(together.token_maps.sum(1), torch.ones(2, 16, 16))
    for i, (text, image_id) in enumerate(zip(TEXTS, "ab", strict=True)):
        alone = backbone.observe(pixels[i : i + 1], [text], [image_id], 0, _statistics(backbone))
        torch.testing.assert_close(alone.token_maps[0], together.token_maps[i], rtol=1e-3, atol=1e-6)


def _oblong(backbone):
    """(height, width) of the largest picture, twice as wide as it is high, that the small model's positions allow."""
    wide = (backbone.longest_side or 2 * SIZE) >= 2 * SIZE
    return (SIZE, 2 * SIZE) if wide else (SIZE // 2, SIZE)


def test_a_picture_that_is_not_square_gives_maps_of_its_shape_and_the_explicit_formulas_values(backbone):
    """The streaming statistics equal the materialising oracle, on grids with two sides, for every family."""
    height, width = _oblong(backbone)
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1
    aggregation, size, calls = goca_aggregation(backbone), map_grid((height, width), SIZE, 16), {}

    class Recorder(AttentionStatistics):
        def observe(self, call):
            calls[call.layer] = call
            super().observe(call)

    plan = plan_layers(backbone, aggregation)
    seen = backbone.observe(pixels, TEXTS, ["a", "b"], 0, Recorder(aggregation, plan, size=size))
    assert seen.token_maps.shape[2:] == size == (height // 2, width // 2)
    for layer, call in calls.items():
        assert call.grid[1] == 2 * call.grid[0], layer
        assert call.query.shape[2] == call.grid[0] * call.grid[1], layer
    feature = dense_feature(calls[plan.reference], plan.feature_kind).float()
    cross = {name: calls[name] for name in plan.cross}
    expected, weights = aggregate(aggregation, cross, {name: calls[own] for name, own in plan.cross.items()}, feature, size)
    for name, weight in weights.items():
        torch.testing.assert_close(seen.layer_weights[name], weight, rtol=1e-4, atol=1e-6)
    tokens = expected.shape[1]  # the text axis may be longer than what a prompt fills
    torch.testing.assert_close(seen.token_maps[:, :tokens], expected, rtol=1e-3, atol=1e-5)


def test_tokens_lie_row_by_row(backbone):
    """A change in the upper right corner of the latents changes most the token at the end of the first row."""
    height, width = _oblong(backbone)
    with torch.inference_mode():
        latents = backbone.encode_image(torch.zeros(1, 3, height, width))
        convolves = backbone.denoiser_name == "unet"
        patch = 1 if convolves else backbone.patch
        changed = latents.clone()
        changed[..., :patch, -patch:] += 3
        conditioning, found = backbone.conditioning(TEXTS[:1]), []
        for shown in (latents, changed):
            first = {}

            def observe(raw, first=first, shown=shown):
                call = backbone.canonical(raw, shown.shape[-2:])
                if call is not None and not first:
                    first[call.grid] = call.query

            with AttentionTap(backbone.attention_modules, observe):
                backbone.denoise(shown, conditioning)
            found.append(first)
    ((seen, query),) = found[0].items()
    moved = (query - found[1][seen]).abs().sum((0, 1, 3)).unflatten(0, seen)
    row, column = divmod(int(moved.argmax()), seen[1])
    reach = 3 if convolves else 0  # cells over which a change has spread before the first attention
    assert seen[1] == 2 * seen[0]
    assert row <= reach and column >= seen[1] - 1 - reach


def test_sizes_beyond_the_positions_are_refused(backbone):
    if backbone.longest_side is None:
        pytest.skip("positions are computed for any size")
    rule = KeepAspect(longest=10**6)
    assert max(rule.fit((10, 10_000), backbone.limits)) == backbone.longest_side
    size, backbone.size = backbone.size, backbone.longest_side + backbone.size_multiple
    try:
        with pytest.raises(ModelError, match=f"end at {backbone.longest_side} px"):
            backbone.adopt(backbone.pipeline, encoders_left_out=False)
    finally:
        backbone.size = size
        backbone.adopt(backbone.pipeline, encoders_left_out=False)


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "pipeline"
    tiny_pipeline(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.mark.slow
def test_the_main_job_ends_with_a_number(saved, tmp_path):
    family, folder = saved
    cfg = config.compose([*family_overrides(family, folder), "dataset=scenes", "figures.count=0"])
    summary = evaluate(cfg, tmp_path)
    assert 0 <= summary["miou"] <= 100
    assert summary["images"] == 2


def test_an_image_of_odd_size_is_segmented_by_words(saved):
    family, folder = saved
    cfg = config.compose(family_overrides(family, folder))
    segmentor = Segmentor.build(cfg)
    segmentor.backbone.load()
    image = np.random.default_rng(0).integers(0, 255, (37, 51, 3), dtype=np.uint8)
    result = segmentor.segment(image, ["circle", "grass"])
    assert result.label_map.shape == (37, 51)
    assert set(np.unique(result.label_map)) <= {1, 2}
