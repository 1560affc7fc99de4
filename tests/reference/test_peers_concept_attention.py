"""ConceptAttention (Helbling et al., ICML 2025) on the diffusers models themselves, which concepts do not change."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from goca import ops
from goca.attention.concepts import (
    ConceptStream,
    Flux2Branch,
    FluxBranch,
    SD3Branch,
    heat_maps,
    linear_normalised,
    scores,
)
from goca.attention.tap import AttentionTap, RawCall
from tests.helpers.peer_cases import agree_where_given as agree
from tests.helpers.peer_cases import peer_cases
from tests.helpers.reference_cases import Case

pytestmark = pytest.mark.filterwarnings("ignore")


def _weights(case: Case) -> dict[str, Tensor]:
    return {name.removeprefix("weight/"): value for name, value in case.inputs.items() if name.startswith("weight/")}


def _flux(case: Case) -> Any:
    o, weights = case.options, _weights(case)
    guided = o["guidance"] is not None
    net = diffusers.FluxTransformer2DModel(
        in_channels=o["in_channels"],
        num_layers=o["depth"],
        num_single_layers=o["single"],
        attention_head_dim=o["hidden"] // o["heads"],
        num_attention_heads=o["heads"],
        joint_attention_dim=o["context_dim"],
        pooled_projection_dim=o["pooled_dim"],
        guidance_embeds=guided,
        axes_dims_rope=tuple(o["axes_dim"]),
    )
    net.load_state_dict({key: value for key, value in weights.items() if guided or "guidance_embedder" not in key})
    return net.eval()


def _flux_arguments(case: Case, image: Tensor, time: Tensor, pooled: Tensor) -> dict[str, Any]:
    o = case.options
    rows, columns = o["grid"]
    ids = torch.cartesian_prod(*(torch.arange(float(count)) for count in (1, rows, columns)))
    guidance = None if o["guidance"] is None else torch.full_like(time, o["guidance"])
    return {
        "hidden_states": image,
        "encoder_hidden_states": case.inputs["txt"],
        "pooled_projections": pooled,
        "timestep": time,
        "img_ids": ids,
        "txt_ids": torch.zeros(case.inputs["txt"].shape[1], 3),
        "guidance": guidance,
    }


def _flux_stream(case: Case, net: Any, time: Tensor, attend: str = "both") -> ConceptStream:
    o = case.options
    extra = [] if o["guidance"] is None else [torch.full_like(time, 1000 * o["guidance"])]
    modulation = net.time_text_embed(1000 * time, *extra, torch.zeros(len(time), o["pooled_dim"]))
    return ConceptStream(FluxBranch(net, case.inputs["concepts"], modulation), attend)


def _follow(net: Any, arguments: dict[str, Any], stream: ConceptStream, image: slice) -> tuple[Tensor, list, dict[str, list]]:
    """The prediction under the tap, the stream's vectors, and the image's queries and keys before rotation."""
    found, before = [], {"norm_q": [], "norm_k": [], "norm_added_q": []}

    def observe(raw: RawCall) -> None:
        if (vectors := stream(raw, image)) is not None:
            found.append(vectors)

    hooks = []
    for block in net.transformer_blocks:
        for name, kept in before.items():
            module = getattr(block.attn, name, None)
            if module is not None:
                hooks.append(module.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out.detach())))
    modules = {f"transformer_blocks.{i}.attn": block.attn for i, block in enumerate(net.transformer_blocks)}
    with AttentionTap(modules, observe):
        prediction = net(**arguments, return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    return prediction, found, before


def _stacked(vectors: list) -> tuple[Tensor, Tensor]:
    return torch.stack([v.concepts for v in vectors]), torch.stack([v.image for v in vectors])


def _attend(options: dict[str, Any]) -> str:
    image, own = options["concept_cross_attention"], options["concept_self_attention"]
    return {(True, True): "both", (True, False): "image", (False, True): "concepts", (False, False): "neither"}[image, own]


@torch.no_grad()
@pytest.mark.parametrize("case", peer_cases("b", "concept_attention_flux"))
def test_flux(case: Case):
    o, net = case.options, _flux(case)
    time = torch.full((o["batch"],), o["timestep"])
    pooled = torch.zeros(o["batch"], o["pooled_dim"]) if o["pooled_zero"] else case.inputs["y"]
    arguments = _flux_arguments(case, case.inputs["img"], time, pooled)
    plain = net(**arguments, return_dict=False)[0]
    image = slice(o["text_tokens"], None)
    prediction, found, before = _follow(net, arguments, _flux_stream(case, net, time, _attend(o)), image)
    assert torch.equal(prediction, plain)  # concepts change nothing
    agree(case, "pred", prediction)
    concepts, images = _stacked(found)
    agree(case, "concept_vectors", concepts)
    agree(case, "image_vectors", images)
    agree(case, "concept_scores", scores(concepts, images))
    chosen, grid = o["layers"], tuple(o["grid"])
    maps = scores(concepts[chosen], images[chosen])
    agree(case, "heatmaps", heat_maps(maps).unflatten(-1, grid))
    agree(case, "heatmaps_no_softmax", heat_maps(maps, softmax=False).unflatten(-1, grid))
    normalised = scores(linear_normalised(concepts[chosen]), images[chosen])
    agree(case, "heatmaps_linear_normalised", heat_maps(normalised).unflatten(-1, grid))
    _check_baseline(case, before, maps.shape)


def _check_baseline(case: Case, before: dict[str, list], shape: torch.Size) -> None:
    """Products of queries before rotation: hooks see the image's, and the concepts' right after (their norm is the text's)."""
    o = case.options
    image = torch.stack(before["norm_q"]).flatten(-2)  # (blocks, B, S, H * d)
    concepts = torch.stack(before["norm_added_q"][1::2]).flatten(-2)
    chosen = o["layers"]
    maps = heat_maps(scores(concepts[chosen], image[chosen]))
    agree(case, "cross_attention_heatmaps", maps.unflatten(-1, tuple(o["grid"])))
    assert maps.shape[-2:] == shape[-2:]


@torch.no_grad()
@pytest.mark.parametrize("case", peer_cases("b", "concept_attention_flux_denoise"))
def test_flux_over_a_generation(case: Case):
    """Steps of a generation; heat maps are softmaxed per block and step, then averaged."""
    o, net = case.options, _flux(case)
    times = torch.linspace(1, 0, o["num_steps"] + 1)
    if o["shift"]:
        slope = (1.15 - 0.5) / (4096 - 256)
        shift = torch.tensor(slope * o["grid"][0] * o["grid"][1] + 0.5 - slope * 256).exp()
        times = shift / (shift + (1 / times - 1))
    agree(case, "timesteps", times)
    image, kept = case.inputs["img"], []
    for step in range(o["num_steps"]):
        now = times[step : step + 1]
        arguments = _flux_arguments(case, image, now, case.inputs["y"])
        stream = _flux_stream(case, net, now)
        prediction, found, _ = _follow(net, arguments, stream, slice(o["text_tokens"], None))
        image = image + (times[step + 1] - times[step]) * prediction
        if step in o["tracked_steps"]:
            concepts, images = _stacked(found)
            kept.append(scores(concepts[o["layers"]], images[o["layers"]]))
    agree(case, "image", image)
    agree(case, "heatmaps", heat_maps(torch.stack(kept)).unflatten(-1, tuple(o["grid"])))


@torch.no_grad()
@pytest.mark.parametrize("case", peer_cases("b", "concept_attention_flux2"))
def test_flux2(case: Case):
    o = case.options
    net = diffusers.Flux2Transformer2DModel(
        in_channels=o["in_channels"],
        num_layers=o["depth"],
        num_single_layers=o["depth_single_blocks"],
        attention_head_dim=o["hidden_size"] // o["num_heads"],
        num_attention_heads=o["num_heads"],
        joint_attention_dim=o["context_in_dim"],
        mlp_ratio=o["mlp_ratio"],
        axes_dims_rope=tuple(o["axes_dim"]),
        rope_theta=o["theta"],
    )
    net.load_state_dict(_weights(case))
    net.eval()
    tokens, grid = case.inputs["txt"].shape[1], tuple(o["grid"])
    place = [torch.cartesian_prod(*(torch.arange(float(n)) for n in counts)) for counts in ((1, *grid, 1), (1, 1, 1, tokens))]
    kept, cross = [], []
    for time in o["timesteps"]:
        now, guidance = torch.tensor([time]), torch.tensor([o["guidance"]])
        arguments = {
            "hidden_states": case.inputs["img"],
            "encoder_hidden_states": case.inputs["txt"],
            "timestep": now,
            "img_ids": place[0],
            "txt_ids": place[1],
            "guidance": guidance,
        }
        modulation = net.double_stream_modulation_txt(net.time_guidance_embed(1000 * now, 1000 * guidance))
        stream = ConceptStream(Flux2Branch(net, case.inputs["concepts"], modulation, o["concept_position"]))
        prediction, found, before = _follow(net, arguments, stream, slice(tokens, None))
        concepts, images = _stacked(found)
        kept.append(scores(concepts, images))
        queries = torch.stack(before["norm_added_q"][1::2])
        cross.append(scores(queries.flatten(-2), torch.stack(before["norm_k"]).flatten(-2)))
    agree(case, "pred", prediction)
    agree(case, "concept_vectors", concepts)
    agree(case, "image_vectors", images)
    agree(case, "concept_scores", kept[-1])
    agree(case, "cross_attention_scores", cross[-1])
    for name, parts in (("heatmaps", kept), ("cross_heatmaps", cross)):
        mean = heat_maps(torch.stack([part[o["layers"]] for part in parts]), softmax=False)
        maps = heat_maps(mean / o["softmax_temperature"]) if o["softmax"] else mean
        agree(case, name, maps[0].unflatten(-1, grid))


@torch.no_grad()
@pytest.mark.parametrize("case", peer_cases("b", "concept_attention_sd3"))
def test_sd3(case: Case):
    o = case.options
    names = "sample_size patch_size in_channels num_layers attention_head_dim num_attention_heads joint_attention_dim"
    names += " caption_projection_dim pooled_projection_dim out_channels pos_embed_max_size qk_norm"
    net = diffusers.SD3Transformer2DModel(**{name: o[name] for name in names.split() if name in o})
    net.load_state_dict(_weights(case))
    net.eval()
    pixels, grid = o["grid"][0] * o["grid"][1], tuple(o["grid"])
    time = torch.tensor([o["timestep"]])
    arguments = {
        "hidden_states": case.inputs["latents"],
        "encoder_hidden_states": case.inputs["prompt"],
        "pooled_projections": case.inputs["pooled"],
        "timestep": time,
    }
    modulation = net.time_text_embed(time, case.inputs["pooled"])
    stream = ConceptStream(SD3Branch(net, case.inputs["concepts"], modulation))
    text_keys: list[Tensor] = []

    def observe(raw: RawCall) -> None:
        found.append(stream(raw, slice(0, pixels)))
        products = raw.key[:, :, pixels:] @ raw.query[:, :, :pixels].transpose(-1, -2)
        text_keys.append(products.mean(1))

    found: list = []
    modules = {f"transformer_blocks.{i}.attn": block.attn for i, block in enumerate(net.transformer_blocks)}
    with AttentionTap(modules, observe):
        prediction = net(**arguments, return_dict=False)[0]
    agree(case, "pred", prediction)
    concepts, images = _stacked(found)
    agree(case, "concept_vectors", concepts)
    agree(case, "image_vectors", images)
    agree(case, "cross_attention_maps", torch.stack(text_keys))
    words = concepts[:, :, 1:]  # without the start token
    words = words / (words.norm(dim=-1, keepdim=True) + 1e-8)
    maps = scores(words, images)
    chosen = range(len(maps)) if o["layers"] is None else o["layers"]
    agree(case, "heatmaps", heat_maps(maps[list(chosen)], o["softmax"])[0].unflatten(-1, grid))


@pytest.mark.parametrize("case", peer_cases("b", "concept_attention_readout_binary", "concept_attention_readout_multi"))
def test_read_out(case: Case):
    o, grid = case.options, tuple(case.options["grid"])
    images, concepts = (case.inputs[name][:, o["layers"]] for name in ("image_vectors", "concept_vectors"))
    concepts = linear_normalised(concepts) if o["normalize_concepts"] else concepts
    maps = scores(concepts, images)  # (samples, layers, B, C, S)
    binary = "target" in o
    heat = heat_maps(maps, o["softmax"])[0] if binary else maps[:, :, 0].sum((0, 1))
    heat = heat.unflatten(-1, grid)
    if o["apply_blur"]:
        heat = ops.gaussian_blur(heat, 3, 1.0)
    agree(case, "heatmaps", heat)
    if binary:
        agree(case, "masks", heat > heat.mean((1, 2), keepdim=True))
        return
    best = heat.argmax(0)
    agree(case, "concept", best)
    ids = best.masked_fill(best < o["background_concepts"], 0)
    for number, class_id in enumerate(o["present_ids"]):  # in place, one after another, as released: ids collide with numbers
        ids[ids == o["background_concepts"] + number] = class_id
    agree(case, "voc", ids)
