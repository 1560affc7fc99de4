"""CLIPer (ICCV 2025), NERVE (arXiv 2511.08248) and MaskDiffusion (arXiv 2403.11194): what the diffusion model does in them."""

import math
from dataclasses import replace

import pytest
import torch

from goca.attention.call import AttentionCall, exponentials
from goca.attention.mixture import MixtureStatistics
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration, ClassMaps
from goca.method.plan import Plan
from goca.method.refinement import HeadChain, RefinementContext
from goca.method.refinement.global_walk import WeighedHeads, head_entropies, walk
from goca.method.refinement.prototype import peaked, prototype_scores
from goca.method.scored import Scored, class_scores
from tests.helpers.explicit_heads import ExplicitHeads
from tests.helpers.peer_cases import agree, peer_cases
from tests.helpers.prompts import plain_prompt
from tests.helpers.reference_cases import Case

COMBINE = {"SFSA": "chain", "mean": "mean", "selection": "select"}


@pytest.mark.parametrize("case", peer_cases("b", "cliper_refinement"))
def test_cliper(case: Case):
    options, maps = case.options, case.inputs["maps"]
    grid = tuple(options["grid"])
    count = options["layers"]
    # The first listed layer is the last one of the model, and its heads stand leftmost.
    layers = {f"up.{count - 1 - i}": ExplicitHeads(heads, grid) for i, heads in enumerate(case.inputs["attention"])}
    context = RefinementContext(grid, dict(reversed(layers.items())))
    combine = COMBINE[options["refinement"]]
    chain = HeadChain(options["attention_thr"], combine=combine, head=options["attention_idx"] if combine == "select" else 0)
    ids = tuple(range(1, len(maps) + 1))
    refined = chain.refine(ClassMaps(ids, maps, torch.zeros(maps.shape[-2:]), maps), context)
    agree(case, "refined", refined.scores)
    if not options["out"]:
        return
    size = tuple(options["out"])
    agree(case, "final_score", class_scores(refined))
    decision = Scored(options["score_threshold"], (options["bkg_thre"],), options["is_normalize"])
    scaled = replace_stretch(decision).score_bands(refined, size)
    agree(case, "scaled", torch.cat([band for _, band in scaled], 1))
    agree(case, "labels", decision(refined, size, len(maps) + 1)[0])


def replace_stretch(decision: Scored) -> Scored:
    return replace(decision, stretch=False)


@pytest.mark.parametrize("case", peer_cases("b", "nerve_walk"))
def test_nerve(case: Case):
    """Not the authors' code, of which there is none: the recursion as the paper's pages print it."""
    options, scores, layer = case.options, case.inputs["scores"], ExplicitHeads(case.inputs["attention"])
    layer.grid = (1, layer.maps.shape[-1])
    agree(case, "entropy", head_entropies(layer, 2**20))
    attention = WeighedHeads([layer], case.inputs["head_weights"], 2**20)

    def local(values: torch.Tensor) -> torch.Tensor:
        return case.inputs["local"] @ values

    agree(case, "walk", walk(scores, attention, local, options["alpha"], options["beta"], options["steps"]))
    enough = max(400, math.ceil(math.log(1e-12) / math.log(options["alpha"]))) if 0 < options["alpha"] < 1 else 400
    agree(case, "limit", walk(scores, attention, local, options["alpha"], options["beta"], enough))


@pytest.mark.parametrize("case", peer_cases("b", "maskdiffusion_store"))
def test_exponentials_of_logits(case: Case):
    inputs, heads = case.inputs, case.options["heads"]
    parts = {"q": inputs["x"] @ inputs["to_q"].T, "k": inputs["context"] @ inputs["to_k"].T}
    query, key = (parts[name].unflatten(-1, (heads, -1)).transpose(1, 2) for name in "qk")
    call = AttentionCall("layer", (1, query.shape[2]), query, key, case.options["head_dim"] ** -0.5, text=slice(None))
    agree(case, "stored", exponentials(call, slice(None))[case.options["cond_half"]])


@pytest.mark.parametrize("case", peer_cases("b", "maskdiffusion_prototypes"))
def test_maskdiffusion(case: Case):
    options = case.options
    listed = list(enumerate(zip(options["places"], options["sides"], strict=True)))
    coarse = {
        f"{i}_{place}_{side}": side for i, (place, side) in listed if side <= options["res"] and place in options["order"]
    }
    mixture = Mixture(cross_layers=tuple(coarse), weigh="pair", score="exp")
    statistics = MixtureStatistics(mixture, Plan(dict.fromkeys(coarse, "")), size=tuple(options["small"]))
    for name, side in coarse.items():
        stored = case.inputs[name]
        logits = stored.clamp(min=torch.finfo(stored.dtype).tiny).log()[
            None
        ]  # (1, heads, side^2, T), the queries; keys pick one each
        key = torch.eye(logits.shape[-1]).expand(1, logits.shape[1], -1, -1)
        statistics.observe(AttentionCall(name, (side, side), logits, key, 1.0, text=slice(None), value=key, output=logits))
    tokens = statistics.finish().token_maps[0]
    agree(case, "aggregated", tokens.permute(1, 2, 0))
    classes = {i + 1: (1 + 2 * i,) for i in range(options["classes"])}
    maps = Calibration(steps=())(tokens, plain_prompt(classes, len(tokens)))
    size, stride = tuple(options["size"]), options["stride"]
    agree(case, "maps", peaked(maps.scores, size)[None, :, ::stride, ::stride])
    scores = prototype_scores(maps.scores, [case.inputs["features"][0]], size, max_bytes=2**20)
    agree(case, "scores", scores[None, :, ::stride, ::stride])
    agree(case, "labels", scores.argmax(0))
