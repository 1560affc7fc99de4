"""FA-Seg (Che and Nguyen 2025): keys of the class prompt on the caption's queries, powers of self-attention per resolution."""

import pytest
import torch

from goca.attention.mixture import MixtureStatistics
from goca.data.base import Sample
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration
from goca.method.decision import Decision
from goca.method.plan import Plan
from goca.method.refinement import LevelPowers, RefinementContext
from goca.method.views import View, Views
from tests.helpers.peer_cases import agree, layer_call, peer_cases
from tests.helpers.prompts import plain_prompt
from tests.helpers.reference_cases import Case


def _by_factor(case: Case, kind: str) -> dict[int, float]:
    """Weights by how often a grid fits into the finest one that the case has layers of."""
    finest = max(layer["h"] for layer in case.layers if layer["kind"] == kind)
    weights = {int(side): weight for side, weight in case.options[f"{kind}_group_weights"].items()}
    return {finest // side: weight for side, weight in weights.items() if side <= finest}


@pytest.mark.parametrize("case", peer_cases("a", "faseg", option="token_positions"))
def test_faseg(case: Case):
    options = case.options
    cross = [layer["name"] for layer in case.layers if layer["kind"] == "cross"]
    own = tuple(layer["name"] for layer in case.layers if layer["kind"] == "self")
    mixture = Mixture(cross_layers=tuple(cross), weigh="level", weights=_by_factor(case, "cross"), resize="nearest")
    statistics = MixtureStatistics(mixture, Plan(dict.fromkeys(cross, ""), self_attention=own))
    for layer in case.layers:
        statistics.observe(layer_call(case, layer, key="class_key" if layer["kind"] == "cross" else "key"))
    observation = statistics.finish()
    ids = options["labels"][1:]
    prompt = plain_prompt(dict(zip(ids, map(tuple, options["token_positions"]), strict=True)), observation.token_maps.shape[1])
    refinement = LevelPowers(_by_factor(case, "self"), power=options["power"])
    parts, before = [], []
    for flip in range(2):
        maps = Calibration(steps=())(observation.token_maps[flip], prompt)
        before.append(maps.scores)
        parts.append(refinement.refine(maps, RefinementContext((64, 64), observation.self_attention(flip))))
        for number, score in enumerate(parts[flip].scores):
            agree(case, f"fused/{flip}/{number}", score)
    agree(case, "cross", torch.stack(before))
    views = Views((View(), View(mirror=True)))
    merged = views.merge(parts, Sample("image", None, None, (), pixels=torch.zeros(3, 64, 64)))
    size = (options["output_size"],) * 2
    decision = Decision("constant", (options["threshold"],), resize="bicubic", ties="class")
    agree(case, "scores", torch.cat([band for _, band in decision.score_bands(merged.scores, size)], 1))
    agree(case, "label", decision(merged, size, 256)[0])


@pytest.mark.parametrize("case", peer_cases("a", "faseg", option="alpha_from"))
def test_the_inversion_step_changes_nothing(case: Case):
    """At time step 0 both noise levels are the same, so the released inversion returns its input: there is none here."""
    assert case.options["alpha_from"] == case.options["alpha_to"]
    agree(case, "latent", case.inputs["latent"])
