"""Streaming statistics equal the materialising oracle whatever the shapes, masks, dtypes and byte budgets."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goca.attention.call import AttentionCall
from goca.attention.kernels import attention_with_lse
from goca.attention.statistics import AttentionStatistics
from goca.method import Plan
from goca.method.aggregation import Aggregation
from tests.helpers import oracle
from tests.helpers.processors import float_types

GRIDS = [(2, 2), (4, 4), (3, 5), (6, 10), (8, 8)]
MASKS = ["none", "boolean", "additive", "per head"]


def _mask(kind: str, images: int, n_heads: int, keys: int, text: slice, generator: torch.Generator) -> torch.Tensor | None:
    """A mask of some text keys, never of all; models mask no image keys."""
    keep = torch.ones(images, 1, 1, keys, dtype=torch.bool)
    keep[..., text] = torch.rand(keep[..., text].shape, generator=generator) < 0.7
    keep[..., 0] = True
    if kind == "boolean":
        return keep
    if kind == "additive":
        return torch.where(keep, 0.0, -1e4)
    return torch.randn(images, n_heads, 1, keys, generator=generator) if kind == "per head" else None


def _call(layer, grid, keys, text, image, draw, n_heads, width, dtype, generator, mask="none"):
    """A call with random operands, its output and log-sum-exp as a model's own kernel gives them."""
    images, pixels = draw, grid[0] * grid[1]
    query = torch.randn(images, n_heads, pixels, width, generator=generator).to(dtype)
    key = torch.randn(images, n_heads, keys, width, generator=generator).to(dtype)
    # Positive, so that no head's weight is negative: weights that nearly cancel would amplify rounding without limit.
    value = torch.rand(images, n_heads, keys, width, generator=generator).to(dtype)
    masked = _mask(mask, images, n_heads, keys, text or slice(0), generator)
    output, lse = attention_with_lse(query, key, value, attn_mask=masked.to(dtype) if mask == "per head" else masked)
    projection = torch.rand(n_heads * width + 1, n_heads * width, generator=generator).to(dtype)
    return AttentionCall(layer, grid, query, key, width**-0.5, text, image, masked, value, output, projection, lse)


shapes = st.fixed_dictionaries(
    {
        "images": st.integers(1, 3),
        "n_heads": st.integers(1, 4),
        "width": st.sampled_from([4, 8]),
        "tokens": st.integers(1, 7),
        "grids": st.lists(st.sampled_from(GRIDS), min_size=1, max_size=3),
        "mask": st.sampled_from(MASKS),
        "dtype": st.sampled_from(float_types()),
        "max_bytes": st.sampled_from([200, 5_000, 2**28]),
        "heads": st.sampled_from(sorted(oracle.HEAD_METHODS)),
        "layers": st.sampled_from([*sorted(oracle.LAYER_METHODS), "average"]),
        "renormalize": st.booleans(),
        "joint": st.booleans(),
        "size": st.sampled_from([None, (4, 9), (7, 3)]),
        "seed": st.integers(0, 2**16),
    }
)


@settings(max_examples=100, deadline=None)
@given(shapes)
def test_any_shape_agrees_with_the_oracle(case):
    generator = torch.Generator().manual_seed(case["seed"])
    shared = (case["images"], case["n_heads"], case["width"], case["dtype"], generator)
    cross, own = {}, {}
    for i, grid in enumerate(case["grids"]):
        pixels, tokens = grid[0] * grid[1], case["tokens"]
        if case["joint"]:
            text, image = slice(0, tokens), slice(tokens, tokens + pixels)
            cross[f"{i}"] = own[f"{i}"] = _call(f"{i}", grid, tokens + pixels, text, image, *shared, mask=case["mask"])
        else:
            cross[f"{i}.attn2"] = _call(f"{i}.attn2", grid, tokens, slice(None), None, *shared, mask=case["mask"])
            own[f"{i}.attn2"] = _call(f"{i}.attn1", grid, pixels, None, slice(None), *shared)
    reference = list(cross)[-1]  # the last layer: every self-attention before it has to wait
    weighted = case["layers"] != "average"
    aggregation = Aggregation(
        heads=case["heads"],
        layers=case["layers"],
        cross_layers=tuple(cross),
        reference=reference if weighted else None,
        feature_size=6,
        renormalize=case["renormalize"],
    )
    plan = Plan({name: own[name].layer for name in cross}, reference if weighted else None)
    statistics = AttentionStatistics(aggregation, plan, case["max_bytes"], size=case["size"])
    for name, call in cross.items():
        for seen in {id(own[name]): own[name], id(call): call}.values():
            statistics.observe(seen)
    found = statistics.finish()

    query = cross[reference].query.float()
    feature = query.transpose(2, 3).flatten(1, 2).unflatten(2, cross[reference].grid)
    token_maps, weights = oracle.aggregate(aggregation, cross, own, feature, case["size"])
    for name, weight in weights.items():
        torch.testing.assert_close(found.layer_weights[name], weight, rtol=1e-5, atol=1e-6)
    half = case["dtype"] != torch.float32  # the model's own output, from which head weights come, is rounded then
    torch.testing.assert_close(found.token_maps, token_maps, rtol=5e-2 if half else 1e-4, atol=1e-2 if half else 1e-6)
