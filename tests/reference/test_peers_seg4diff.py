"""Seg4Diff (Kim et al., NeurIPS 2025): one block's joint attention from image to text, read by the classes' own tokens."""

import pytest
import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0

from goca.attention.call import AttentionCall
from goca.attention.mixture import MixtureStatistics
from goca.attention.tap import AttentionTap, RawCall
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration
from goca.method.decision import Decision
from goca.method.plan import Plan
from tests.helpers.peer_cases import agree, peer_cases
from tests.helpers.prompts import plain_prompt
from tests.helpers.reference_cases import Case


def _layer(case: Case) -> Attention:
    weights = {name.removeprefix("weight/"): value for name, value in case.inputs.items() if name.startswith("weight/")}
    width, heads = weights["to_q.weight"].shape[1], case.options["heads"]
    layer = Attention(
        width,
        heads=heads,
        dim_head=weights["to_q.weight"].shape[0] // heads,
        added_kv_proj_dim=case.inputs["encoder_hidden_states"].shape[-1],
        context_pre_only=False,
        out_dim=width,
        bias=True,
        qk_norm=case.options["qk_norm"],
        eps=1e-6,
        processor=JointAttnProcessor2_0(),
    )
    layer.load_state_dict(weights)
    return layer.eval()


@torch.no_grad()
@pytest.mark.parametrize("case", peer_cases("b", "seg4diff_joint_map"))
def test_joint_map(case: Case):
    options, layer, seen = case.options, _layer(case), []
    with AttentionTap({"attn": layer}, seen.append):
        image, text = layer(case.inputs["hidden_states"], encoder_hidden_states=case.inputs["encoder_hidden_states"])
    agree(case, "image_out", image)
    agree(case, "text_out", text)
    call = _canonical(seen[0], options["image_tokens"], options["clip_tokens"])
    score = "text" if options["softmax_i2t_only"] else "softmax" if options["softmax"] else "logits"
    mixture = Mixture(cross_layers=("attn",), score=score, heads="max" if options["max_head"] else "mean")
    statistics = MixtureStatistics(mixture, Plan({"attn": "attn"}))
    if options["max_head"]:
        found = statistics.layer_map(call)
    elif options["head"] is not None:
        found = statistics.layer_map(call, [options["head"]])
    elif options["keep_head"]:
        found = torch.stack([statistics.layer_map(call, [head]) for head in range(options["heads"])], 1)
    else:
        found = statistics.layer_map(call)
    agree(case, "attn_cache", found)


def _canonical(raw: RawCall, pixels: int, tokens: int) -> AttentionCall:
    return AttentionCall(
        "attn",
        (1, pixels),
        raw.query[:, :, :pixels],
        raw.key,
        raw.scale,
        text=slice(pixels, pixels + tokens),
        image=slice(0, pixels),
    )


@pytest.mark.parametrize("case", peer_cases("b", "seg4diff_ovss"))
def test_named_classes(case: Case):
    options, cache = case.options, case.inputs["attn_cache"]
    side = options["grid"]
    if options["backbone"] == "FluxBackbone":  # text first there
        cache = cache[..., -side * side :, : -side * side]
    if cache.ndim == 5:
        # Where heads are kept, the released code has them side by side on the tokens' axis, and reads its beginning: head 0.
        cache = cache.permute(0, 1, 3, 2, 4).flatten(3)
    tokens = cache[0].mean(0).T.unflatten(1, (side, side))
    positions, first = {}, options["first_token"]
    for class_id, count in zip(options["present"], options["tokens_per_class"], strict=True):
        positions[class_id + 1] = tuple(p for p in range(first, first + count) if p < len(tokens))
        first += count
    calibration = Calibration(
        steps=("stretch_softly",) if options["norm_after_merge"] else (),
        token_steps=("stretch",) if options["norm_before_merge"] else (),
        parity=True,  # classes beyond the prompt's end are NaN, which wins
    )
    maps = calibration(tokens, plain_prompt(positions, len(tokens)))
    agree(case, "class_maps", maps.scores)
    size = (options["out_height"], options["out_width"])
    decision = Decision(absent_classes="zero")
    if "sem_seg" in case.expected:
        agree(case, "sem_seg", torch.cat([band for _, band in decision.score_bands(maps.scores, size)], 1))
    labels = decision(maps, size, options["num_classes"] + 1, has_background=False)[0]
    agree(case, "labels", labels.long() - 1)
