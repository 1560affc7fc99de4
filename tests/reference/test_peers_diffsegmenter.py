"""DiffSegmenter (Wang et al. 2023): a forward per class, min-max per resolution, one product with the finest self-attention."""

import pytest
import torch

from goca.attention.mixture import MixtureStatistics
from goca.attention.statistics import Observation
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration, ClassMaps
from goca.method.decision import Decision
from goca.method.plan import Plan
from goca.method.refinement import RefinementContext, Round, Rounds
from goca.prompts.emphasis import away_from
from tests.helpers.peer_cases import agree, layer_call, peer_cases
from tests.helpers.prompts import plain_prompt
from tests.helpers.reference_cases import Case

CASES = peer_cases("a", "diffsegmenter", option="token_positions")
WEIGHTED = peer_cases("a", "diffsegmenter", option="weight")


def _observation(case: Case, number: int) -> Observation:
    cross = [layer["name"] for layer in case.layers if layer["kind"] == "cross"]
    finest = max(layer["h"] for layer in case.layers if layer["kind"] == "cross")
    sides = {int(side): weight for side, weight in case.options["group_weights"].items()}
    weights = {finest // side: weight for side, weight in sides.items() if side <= finest}
    own = tuple(layer["name"] for layer in case.layers if layer["kind"] == "self")
    mixture = Mixture(cross_layers=tuple(cross), weigh="level", weights=weights, normalise="minmax")
    statistics = MixtureStatistics(mixture, Plan(dict.fromkeys(cross, ""), self_attention=own))
    for layer in case.layers:
        statistics.observe(layer_call(case, layer, f"class{number}/"))
    return statistics.finish()


def _class_maps(case: Case, number: int, observation: Observation) -> tuple[ClassMaps, ClassMaps]:
    levels = [(part[0], weight) for part, weight in observation.level_maps]
    tokens = tuple(case.options["token_positions"][number])
    prompt = plain_prompt({case.options["class_ids"][number]: tokens}, text_tokens=len(levels[0][0]))
    maps = Calibration(steps=())(observation.token_maps[0], prompt, levels)
    context = RefinementContext((64, 64), observation.self_attention(0))
    return maps, Rounds((Round(factors=(1,)),)).refine(maps, context)


@pytest.mark.parametrize("case", CASES)
def test_diffsegmenter(case: Case):
    refined = []
    for number in range(len(case.options["class_ids"])):
        observation = _observation(case, number)
        before, after = _class_maps(case, number, observation)
        agree(case, f"fused/{number}", before.scores[0])
        agree(case, f"refined/{number}", after.scores[0])
        refined.append(after)
    joined = ClassMaps(
        tuple(range(1, len(refined) + 1)),  # in the list's order, as ties go to the first of the list
        torch.cat([part.scores for part in refined]),
        refined[0].supporting,
        torch.cat([part.raw for part in refined]),
    )
    size = tuple(case.options["image_size_hw"])
    thresholds = tuple(case.options["thresholds"])
    decision = Decision(rule="constant", thresholds=thresholds, stretch=True)
    scores = torch.cat([band for _, band in decision.score_bands(joined.scores, size)], 1)
    agree(case, "scores", scores)
    names = torch.tensor([0, *case.options["class_ids"]])
    for threshold, label in zip(thresholds, decision(joined, size, len(names)), strict=True):
        agree(case, f"label/{threshold}", names[label.long()])


@pytest.mark.parametrize("case", CASES)
def test_levels_are_kept_apart(case: Case):
    observation = _observation(case, 0)
    tokens = case.options["token_positions"][0]
    for maps, weight in observation.level_maps:
        group = maps[0, tokens].mean(0)
        stretched = (group - group.min()) / (group.max() - group.min()) * weight
        matches = [side for side, given in case.options["group_weights"].items() if abs(given - weight) < 1e-6]
        distances = [float((stretched - case.expected[f"weighted_{side}/0"]).abs().max()) for side in matches]
        assert min(distances) < 1e-5


@pytest.mark.parametrize("case", WEIGHTED)
def test_prompt_weight(case: Case):
    plain, empty = case.inputs["plain"][None], case.inputs["empty"][None]
    rows = zip(plain[0], case.expected["weighted"], strict=True)
    hit = [i for i, (a, b) in enumerate(rows) if not torch.allclose(a, b, atol=1e-5)]
    agree(case, "weighted", away_from(plain, empty, tuple(hit), case.options["weight"])[0])
