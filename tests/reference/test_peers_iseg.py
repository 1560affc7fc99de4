"""iSeg (Sun et al. 2024): maps divided by their sum, pixels clustered, self-attention sharpened and applied many times."""

import pytest
import torch

from goca.attention.mixture import MixtureStatistics
from goca.attention.statistics import Observation
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration
from goca.method.clusters import cluster
from goca.method.decision import Decision
from goca.method.plan import Plan
from goca.method.refinement import EntropyAffinity, RefinementContext
from goca.ops import minmax, resize
from tests.helpers.peer_cases import agree, layer_call, peer_cases
from tests.helpers.prompts import plain_prompt
from tests.helpers.reference_cases import Case


def _observation(case: Case) -> Observation:
    options = case.options
    cross = [layer for layer in case.layers if layer["kind"] == "cross" and options["group_weights"][str(layer["h"])]]
    finest = max(layer["h"] for layer in cross)
    factors = {side: finest // side for side in {layer["h"] for layer in cross}}
    heads = "mean"
    if options["heads"] != "all":
        heads = {factor: tuple(options[f"heads_{side}"]) for side, factor in factors.items()}
    mixture = Mixture(
        cross_layers=tuple(layer["name"] for layer in cross),
        weigh="level",
        weights={factor: options["group_weights"][str(side)] for side, factor in factors.items()},
        heads=heads,
        normalise="spatial_sum",
    )
    own = tuple(layer["name"] for layer in case.layers if layer["kind"] == "self")
    statistics = MixtureStatistics(mixture, Plan({layer["name"]: "" for layer in cross}, self_attention=own))
    for layer in case.layers:
        statistics.observe(layer_call(case, layer))
    return statistics.finish()


@pytest.mark.parametrize("case", peer_cases("a", "iseg"))
def test_iseg(case: Case):
    options, observation = case.options, _observation(case)
    tokens = observation.token_maps[0]
    if "fused_tokens" in case.expected:
        agree(case, "fused_tokens", tokens)
    if options["cluster"]:
        agree(case, "clusters", cluster(tokens))
    ids = range(1, len(options["class_order"]) + 1)  # in the list's order, as ties go to the first of the list
    prompt = plain_prompt(dict(zip(ids, map(tuple, options["token_positions"]), strict=True)), len(tokens))
    steps = ("cluster",) if options["cluster"] else ()
    maps = Calibration(steps=(), token_steps=steps)(tokens, prompt)
    agree(case, "cross_selected", maps.scores)
    context = RefinementContext((64, 64), observation.self_attention(0))
    heads = tuple(options["self_heads_at_64"])
    refinement = EntropyAffinity(options["entropy"], options["iterations"], heads=heads)
    maps = refinement.refine(maps, context)
    at_test_size = minmax(resize(maps.scores, (options["test_mask_size"],) * 2))
    agree(case, "att_map", at_test_size)
    decision = Decision(
        rule="constant" if options["background"] else "complement",
        thresholds=(options["background"],),
        ties="class" if options["background"] else "background",
        stretch=True,
    )
    # The released code resizes twice, to 512 pixels and then to the label's size.
    labels = decision(maps.with_stack(at_test_size), tuple(options["gt_hw"]), len(ids) + 1)
    names = torch.tensor([0, *(index + 1 for index in options["class_order"])])
    agree(case, "label", names[labels[0].long()])


@pytest.mark.parametrize("max_bytes", [2**22, 2**28])
@pytest.mark.parametrize("case", peer_cases("a", "iseg")[:1])
def test_rows_are_kept_or_computed_again(case: Case, max_bytes: int):
    own = _observation(case).self_attention(0)
    maps = Calibration(steps=())(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), plain_prompt({1: (0,)}, 3))
    context = RefinementContext((64, 64), own, max_bytes=max_bytes)
    refined = EntropyAffinity(0.1, 1, heads=(1, 2)).refine(maps, context).scores[0].flatten()
    ((_, attention),) = [(name, layer) for name, layer in own.items() if layer.grid == (64, 64)]
    plain = torch.stack(list(attention.head_rows(torch.arange(4096), [1, 2]))).mean(0)
    plain = plain / plain.amax(0)
    plain = (plain + 0.1 * (1 + plain.log()) / torch.tensor(10.0).log()).clamp(min=0)
    plain = plain / plain.sum(1, keepdim=True)
    start = maps.scores[0].flatten()
    start = (start - start.min()) / (start - start.min()).sum()
    expected = plain @ start
    expected = expected - expected.min()
    torch.testing.assert_close(refined, expected / expected.sum(), atol=1e-8, rtol=1e-4)
