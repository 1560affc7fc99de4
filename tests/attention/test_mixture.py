"""Mixtures of layers against a plain implementation that holds every head's map."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goca.attention.call import AttentionCall
from goca.attention.mixture import MixtureStatistics, collector
from goca.attention.readout import with_text
from goca.errors import ModelError
from goca.method.aggregation import Aggregation
from goca.method.aggregation.concepts import ConceptMaps
from goca.method.aggregation.mixture import Mixture, stage_weights
from goca.method.plan import Plan
from goca.ops import multiplies_half, resize

TOKENS = 5
SIDES = {"down.0": 8, "down.1": 4, "mid.0": 2, "up.0": 4, "up.1": 8}


def _calls(seed: int, joint: bool = False, heads: int = 2) -> list[AttentionCall]:
    """A small network's cross-attention, or joint attention on one grid, in the order of the forward."""
    generator = torch.Generator().manual_seed(seed)
    calls = []
    for name, side in SIDES.items():
        side = 4 if joint else side
        keys = TOKENS + (side * side if joint else 0)
        query = torch.randn(2, heads, side * side, 3, generator=generator)
        key = torch.randn(2, heads, keys, 3, generator=generator)
        text = slice(side * side, keys) if joint else slice(None)
        image = slice(0, side * side) if joint else None
        calls.append(AttentionCall(name, (side, side), query, key, 3**-0.5, text, image, value=key, output=query))
    return calls


def _heads(call: AttentionCall, score: str = "softmax") -> torch.Tensor:
    """(B, H, n, h, w) of the text's keys."""
    values = call.query @ call.key.transpose(-1, -2) * call.scale
    if score == "text":
        values = values[..., call.text].softmax(-1)
    else:
        values = {"softmax": values.softmax(-1), "exp": values.exp(), "logits": values}[score][..., call.text]
    return values.transpose(-1, -2).unflatten(-1, call.grid)


def _run(mixture: Mixture, passes: list[list[AttentionCall]], max_bytes: int = 2**26) -> torch.Tensor:
    plan = Plan(dict.fromkeys(SIDES, ""))
    statistics = MixtureStatistics(mixture, plan, max_bytes, len(passes))
    for calls in passes:
        for call in calls:
            statistics.observe(call)
    observation = statistics.finish()
    assert sum(float(weight[0]) for weight in observation.layer_weights.values()) == pytest.approx(1)
    return observation.token_maps


def _mixture(**options) -> Mixture:
    return Mixture(cross_layers=("*",), feature_size=8, **options)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from(["softmax", "text", "exp", "logits"]), st.booleans(), st.sampled_from([300, 2**26]))
def test_equal_layers(seed: int, score: str, joint: bool, max_bytes: int):
    calls = _calls(seed, joint)
    expected = torch.stack([resize(_heads(call, score).mean(1), (8, 8)) for call in calls]).mean(0)
    torch.testing.assert_close(_run(_mixture(score=score), [calls], max_bytes), expected)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3))
def test_every_head_clamped_after_the_sum_over_passes(seed: int, passes: int):
    several = [_calls(seed + 1000 * number) for number in range(passes)]
    parts = []
    for calls in zip(*several, strict=True):
        mean = torch.stack([_heads(call) for call in calls]).mean(0)
        parts.append(torch.stack([resize(head, (8, 8), "bicubic").clamp(min=0) for head in mean.unbind(1)]))
    expected = torch.cat(parts).mean(0)
    torch.testing.assert_close(_run(_mixture(weigh="pair", resize="bicubic", clamp=True), several), expected)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.sampled_from(["none", "spatial_sum"]), st.sampled_from(["nearest", "bilinear"]))
def test_levels(seed: int, normalise: str, mode: str):
    calls, weights = _calls(seed), {1: 0.2, 2: 0.7, 4: 0.1}
    expected = 0
    for factor, weight in weights.items():
        level = torch.cat([_heads(call) for call in calls if call.grid[0] == 8 // factor], 1).mean(1)
        if normalise == "spatial_sum":
            level = level / level.sum((-2, -1), keepdim=True)
        expected = expected + weight * resize(level, (8, 8), mode)
    torch.testing.assert_close(
        _run(_mixture(weigh="level", weights=weights, normalise=normalise, resize=mode), [calls]), expected
    )


def test_stages_and_depth_weigh_every_layer():
    calls = _calls(3)
    resized = torch.stack([resize(_heads(call).mean(1), (8, 8)) for call in calls])

    def mean(weights: list[float]) -> torch.Tensor:
        total = torch.tensor(weights)
        return (resized * total.view(-1, 1, 1, 1, 1)).sum(0) / total.sum()

    torch.testing.assert_close(_run(_mixture(weigh="stage", stage_weights=(1, 2, 3, 4, 5)), [calls]), mean([1, 2, 3, 4, 5]))
    gauss = [float(torch.exp(torch.tensor(-((layer - 2) ** 2) / 2.0))) for layer in range(5)]
    torch.testing.assert_close(_run(_mixture(weigh="depth", sigma=1.0), [calls]), mean(gauss))


def test_listed_heads_are_numbered_through_the_layers_of_a_level():
    calls = _calls(4)
    fine = torch.cat([_heads(call) for call in calls if call.grid == (8, 8)], 1)[:, [1, 2]].mean(1)
    mixture = _mixture(weigh="level", weights={1: 1.0}, heads={1: (1, 2)})
    torch.testing.assert_close(_run(mixture, [calls]), fine)


def test_a_single_grid_is_the_only_level():
    calls = _calls(5, joint=True)
    expected = resize(torch.cat([_heads(call) for call in calls], 1).mean(1), (8, 8))
    torch.testing.assert_close(_run(_mixture(weigh="level", weights={2: 0.3, 4: 0.7}), [calls]), expected)


def test_levels_that_the_model_lacks_are_refused():
    with pytest.raises(ModelError, match="8 x 8"):
        _run(_mixture(weigh="level", weights={16: 1.0}), [_calls(0)])
    with pytest.raises(ModelError, match="5 stages"):
        stage_weights((1.0, 2.0), [(side, side) for side in SIDES.values()])


def test_layer_weights_belong_to_one_forward():
    goca = Aggregation("average", "average", ("*",))
    with pytest.raises(ModelError, match="several time steps"):
        collector(goca, Plan(dict.fromkeys(SIDES, "")), 2**20, passes=2)


def test_another_text_is_read_off_the_queries():
    call = _calls(6)[0]
    weight = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(1))
    read = with_text(call, lambda values: values @ weight.T, text)
    key = (text @ weight.T).unflatten(-1, (2, 3)).transpose(1, 2)
    expected = (call.query @ key.transpose(-1, -2) * call.scale).softmax(-1).transpose(-1, -2).unflatten(-1, call.grid)
    torch.testing.assert_close(_heads(read), expected)


@pytest.mark.parametrize("aggregation", [_mixture(), ConceptMaps(cross_layers=("*",))], ids=["mixture", "concepts"])
@pytest.mark.parametrize(
    ("precision", "dtype", "fast", "own"),
    [
        ("auto", torch.float32, True, False), ("auto", torch.bfloat16, True, True), ("auto", torch.bfloat16, False, False),
        ("float32", torch.bfloat16, True, False), ("model", torch.bfloat16, False, True), ("model", torch.float32, False, True),
    ],
)  # fmt: skip
def test_the_precision_of_products_reaches_refinements(aggregation, precision, dtype, fast, own, monkeypatch):
    """`auto` is the model's own where the processor multiplies it; what a refinement multiplies later follows suit."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast}, raising=False)
    monkeypatch.setattr("goca.attention.call.multiplies_half", multiplies_half.__wrapped__)
    plan = Plan({"down.0": "down.0"}, self_attention=("down.0",))
    statistics = collector(aggregation, plan, 2**26, precision=precision)
    (call, *_) = _calls(0, joint=True)
    statistics.observe(replace(call, query=call.query.to(dtype), key=call.key.to(dtype)))
    assert [kept.half_products for kept in statistics._self_attention["down.0"]] == [own]


def test_heads_of_a_level_that_was_not_known_yet_are_refused():
    """Heads are chosen while the forward runs: a coarse layer in front would pass for the finest."""
    calls = list(reversed(_calls(0)[:2]))  # 4 x 4, then 8 x 8
    statistics = MixtureStatistics(
        _mixture(weigh="level", weights={1: 1.0}, heads={2: (0,)}), Plan(dict.fromkeys(("down.1", "down.0"), ""))
    )
    for call in calls:
        statistics.observe(call)
    with pytest.raises(ModelError, match=r"down\.1 runs before the finest layer"):
        statistics.finish()


def test_heads_that_a_level_lacks_are_refused():
    with pytest.raises(ModelError, match=r"level 1 has 4 heads, 0 to 3; asked for \[1, 4\]"):
        _run(_mixture(weigh="level", weights={1: 1.0}, heads={1: (1, 4)}), [_calls(0)])


def test_the_coarsest_levels():
    expected = _run(_mixture(weigh="pair", weights={2: 1.0, 4: 1.0}), [_calls(3)])
    torch.testing.assert_close(_run(_mixture(weigh="pair", coarsest=2), [_calls(3)]), expected, rtol=0, atol=0)


def test_a_masked_key_has_no_share_whatever_the_score():
    """Padding that the model masks: of the text alone, and of exponentials, as of the whole softmax."""
    mask = torch.zeros(1, 1, 1, TOKENS)
    mask[..., 3:] = -torch.inf
    calls = [replace(call, mask=mask) for call in _calls(8)]
    plain = [replace(call, key=call.key[:, :, :3], value=call.key[:, :, :3]) for call in _calls(8)]
    for score in ("softmax", "text", "exp"):
        found = _run(_mixture(score=score), [calls])
        torch.testing.assert_close(found[:, :3], _run(_mixture(score=score), [plain]))
        assert not found[:, 3:].any()


def test_records_say_which_heads_counted():
    calls = _calls(9)
    mixture = _mixture(weigh="level", weights={1: 1.0, 2: 1.0}, heads={1: (0,)})
    statistics = MixtureStatistics(mixture, Plan(dict.fromkeys(SIDES, "")))
    for call in calls:
        statistics.observe(call)
    found = statistics.finish()
    weights = {name: float(weight[0]) for name, weight in found.layer_weights.items()}
    assert weights == pytest.approx({"down.0": 0.5, "up.1": 0, "down.1": 0.25, "up.0": 0.25, "mid.0": 0})
    heads = {name: weight[0].tolist() for name, weight in found.head_weights.items()}
    assert heads == {"down.0": [1, 0], "up.1": [0, 0], "down.1": [0.5, 0.5], "up.0": [0.5, 0.5], "mid.0": [0.5, 0.5]}


def test_clamped_heads_of_joint_attention_keep_the_texts_columns_alone():
    """A view of a block of probabilities would keep the image's columns, which are most of them, in memory."""
    call = _calls(2, joint=True)[0]
    statistics = MixtureStatistics(_mixture(weigh="pair", clamp=True), Plan({"down.0": ""}), max_bytes=2000)
    kept = statistics._heads(call)
    assert kept.untyped_storage().nbytes() == 4 * kept.numel()
    torch.testing.assert_close(kept.transpose(-1, -2).unflatten(-1, call.grid), _heads(call))


@pytest.mark.parametrize(
    "options",
    [
        {"weigh": "level", "weights": {1: 1.0}, "heads": {1: (-1,)}},
        {"weigh": "level", "weights": {1: float("nan")}},
        {"weigh": "level", "weights": {1: 1.0, 2: -1.0}},
        {"weigh": "stage", "stage_weights": (0.0, 0.0)},
        {"score": "logits", "share_out": True},
        {"score": "logits", "weigh": "level", "weights": {1: 1.0}, "normalise": "spatial_sum"},
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict):
    with pytest.raises(ValueError, match=r"heads|weights|logits"):
        _mixture(**options)
