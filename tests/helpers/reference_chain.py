"""The chain from attention to class maps in the terms of the reference cases, built of goca's own functions."""

import math

import torch
from torch import Tensor

from goca.method.aggregation import heads, layers, maps
from goca.method.calibration import PlainGroups
from tests.helpers.reference_cases import Case

HEADS = {
    "average": "average",
    "dot-product": "dot_product_clamped",
    "dot-product w/o clamp": "dot_product",
    "l2-norm": "l2_norm",
    "cosine": "cosine",
    "cosine + VW": "cosine_vw",
    "dot-product + VW": "dot_product_vw",
}
LAYERS = {"vanilla": "average", "dot-product similarity": "dot_product", "mse": "mse", "iou-like": "iou"}
CHAINS = {  # upstream's name: our chain
    "raw": (),
    "per-token renorm": ("max",),
    "per-token renorm+": ("minmax",),
    "sum-1 rescaling": ("per_pixel",),
    "sum-1 rescaling + per-token renorm": ("per_pixel", "max"),
    "sum-1 rescaling + per-token renorm+": ("per_pixel", "minmax"),
    "sum-1 rescaling + per-token renorm x raw": ("per_pixel", "max", "times_raw"),
    "sum-1 rescaling + per-token renorm+ x raw": ("per_pixel", "minmax", "times_raw"),
    "sum-1 rescaling + per-token renorm+ x raw + renorm": ("per_pixel", "minmax", "times_raw", "minmax"),
}


def prompt_of(case: Case) -> PlainGroups:
    """The case's classes and background groups, as calibration reads a prompt."""
    return PlainGroups(
        class_tokens={class_id: tuple(tokens) for class_id, tokens in case.objects},
        background_groups=tuple(tuple(tokens) for tokens in case.background_objects),
        content=tuple(case.rescaling_token_id),
    )


def layer_map(case: Case, name: str) -> Tensor:
    """(S, n) of one layer, heads weighted as the case says."""
    attention = case.inputs[f"{name}-cross-map"]
    output = case.inputs.get(f"{name}-cross-special-post-value")
    method = HEADS[case.options["head_method"]]
    if output is None or method == "average":
        weights = heads.average(attention, attention, attention)
    else:
        count = attention.shape[1]
        z = output.unflatten(2, (count, -1)).transpose(1, 2)
        value = case.inputs[f"{name}-cross-special-value"][None]
        weights = heads.METHODS[method](z, case.inputs[f"{name}-cross-special-weight"], value)
    return maps.weigh_heads(attention, weights)


def layer_names(case: Case) -> list[str]:
    return [name.removesuffix("-cross-map") for name in case.map_layers]


def square_grid(pixels: int) -> tuple[int, int]:
    return (math.isqrt(pixels), math.isqrt(pixels))


def layer_weights(case: Case, channels: str) -> Tensor:
    """(1, L), normalised."""
    method = LAYERS[case.options["layer_method"]]
    if method == "average":
        return torch.full((1, len(case.map_layers)), 1 / len(case.map_layers))
    feature = case.inputs[case.options["ref_layer"]]
    feature = feature[:, :1] if channels == "first" else feature
    reference, target = layers.reference_affinity(feature), (feature.shape[2], feature.shape[3])
    found = []
    for name in layer_names(case):
        attention = case.inputs[f"{name}-self-map"].mean(1)
        grid = square_grid(attention.shape[1])
        attention = layers.resize_keys(attention[:, layers.nearest_rows(grid, target)], grid, target)
        found.append(layers.METHODS[method].weight(layers.METHODS[method].partial(reference, attention)))
    return layers.normalised(torch.stack(found, dim=-1))


def aggregated(case: Case, weights: Tensor) -> Tensor:
    """(1, n, f, f)."""
    size = (case.size, case.size)
    total = torch.zeros(1)
    for name, weight in zip(layer_names(case), weights[0], strict=True):
        found = layer_map(case, name)
        total = total + weight * maps.resize_map(found, square_grid(found.shape[1]), size)
    return maps.share_out(total)
