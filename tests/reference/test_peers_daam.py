"""DAAM (Tang et al., ACL 2023) and OVAM (Marcos-Manchon et al., CVPR 2024): maps of every head of a generation's forwards."""

from dataclasses import replace

import pytest
import torch

from goca.attention.call import AttentionCall
from goca.attention.mixture import MixtureStatistics
from goca.attention.readout import with_text
from goca.attention.running import RunningStatistics
from goca.method.aggregation.mixture import Mixture
from goca.method.plan import Plan
from goca.ops import resize
from tests.helpers.peer_cases import agree, agree_where_given, layer_call, peer_cases
from tests.helpers.reference_cases import Case


def _daam_layers(case: Case) -> list[dict]:
    options = case.options
    layers = [layer for layer in case.layers if layer["factor"] != 8]
    if "layer_idx" in options:
        layers = [layer for layer in layers if layer["layer_idx"] == options["layer_idx"]]
    return [layer for layer in layers if "factors" not in options or layer["factor"] in options["factors"]]


def _heat_maps(case: Case, drawing: bool = False) -> torch.Tensor:
    """Of statistics that are told the number of forwards, or of those that add up while a picture is drawn."""
    options, layers = case.options, _daam_layers(case)
    mixture = Mixture(
        cross_layers=tuple(layer["name"] for layer in layers),
        weigh="pair",
        resize="bicubic",
        clamp=True,
        feature_size=int(options["latent_hw"] ** 0.5),
    )
    plan = Plan({layer["name"]: "" for layer in layers})
    running = RunningStatistics(mixture, plan, time=100)
    statistics = running if drawing else MixtureStatistics(mixture, plan, passes=options["steps"])
    for step in range(options["steps"]):
        running.begin(time=step)
        for layer in layers:
            call = layer_call(case, layer, f"step{step}/")
            if len(call.query) == 2:
                call = call.image_at(1)  # the conditional half
            else:  # without guidance the released code takes half of the heads for the unconditional batch
                half = slice(layer["heads"] // 2, None)
                call = replace(call, query=call.query[:, half], key=call.key[:, half])
            if "head_idx" in options:
                call = call.head_at(options["head_idx"])
            statistics.observe(call)
        if drawing:
            running.end()
    maps = running.finish()[0] if drawing else statistics.finish().token_maps
    return maps[0] * options["steps"]  # a sum over steps in the released code


@pytest.mark.parametrize("drawing", [False, True], ids=["", "while drawing"])
@pytest.mark.parametrize("case", peer_cases("a", "daam"))
def test_daam(case: Case, drawing: bool):
    heat = _heat_maps(case, drawing)[: case.options["tokens_kept"]]
    if case.options.get("normalize"):
        heat = heat / (heat[1:-1].sum(0) + 1e-6)
    if "heat_maps" in case.expected:
        agree(case, "heat_maps", heat)
    for word, positions in case.options["word_positions"].items():
        name = word.replace(" ", "_")
        one = heat[positions].mean(0)
        agree_where_given(case, f"word/{name}", one)
        if "image_size_wh" not in case.options:
            continue
        # The released code takes (width, height) for (rows, columns); the size is an argument here.
        large = resize(one, tuple(case.options["image_size_wh"]), "bicubic")
        agree_where_given(case, f"expand_absolute/{name}", large)
        stretched = (large - large.min()) / (large.max() - large.min() + 1e-8)
        agree_where_given(case, f"expand/{name}", stretched)
        agree_where_given(case, f"mask/{name}", stretched > case.options["threshold"])


@pytest.mark.parametrize("case", peer_cases("a", "ovam"))
def test_ovam(case: Case):
    """Keys of another text on stored queries; sums over steps, heads or layers are our means times their numbers."""
    options, names = case.options, [layer["name"] for layer in case.layers]
    half = int(options["batch_half"].startswith("conditional"))
    summed = options["heads"] == "sum"
    mixture = Mixture(
        cross_layers=tuple(names),
        weigh="pair" if summed else "layer",
        score="softmax" if options["softmax_over"] else "logits",
        feature_size=max(layer["h"] for layer in case.layers),
    )
    statistics = MixtureStatistics(mixture, Plan(dict.fromkeys(names, "")), passes=options["steps"])
    for step in range(options["steps"]):
        for layer in case.layers:
            stored = [case.inputs[f"image{i}/step{step}/{layer['name']}/query"][half] for i in range(options["images"])]
            query = torch.stack(stored)
            call = AttentionCall(
                layer["name"], (layer["h"],) * 2, query, query, query.shape[-1] ** -0.5, text=slice(None), value=query
            )
            weight = case.inputs[f"{layer['name']}/to_k"]
            statistics.observe(with_text(call, lambda text, weight=weight: text @ weight.T, case.inputs["text"][None]))
    maps = statistics.finish().token_maps
    layers, heads = len(names), sum(layer["heads"] for layer in case.layers)
    maps = maps * (heads if summed else layers) * (options["steps"] if options["steps_reduction"] == "sum" else 1)
    maps = maps / (1 if options["layers"] == "sum" else layers)
    if "expand_size" in options:
        maps = resize(maps, tuple(options["expand_size"]))
    agree(case, "maps", maps)
    if "image_size_wh" in options:
        large = resize(maps, tuple(options["image_size_wh"]))
        agree(case, "expanded", ((large - large.min()) / (large.max() - large.min() + 1e-8))[0])
        for token in options["tokens"]:
            one = resize(maps[0, token], (32, 32))
            agree(case, f"resized/{token}", one)
            for threshold in options["thresholds"]:
                agree(case, f"mask/{token}/{threshold}", one / one.max() > threshold)
