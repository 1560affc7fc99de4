"""ELBO-T2IAlign (Zhou et al. 2025): layers weighed by stage or depth, exponents from losses, two rounds of self-attention."""

from collections.abc import Sequence

import pytest
import torch

from goca.attention.mixture import MixtureStatistics
from goca.attention.statistics import Observation
from goca.method.aggregation.mixture import Mixture, stages
from goca.method.calibration import Calibration, ClassMaps
from goca.method.decision import Decision
from goca.method.losses import class_losses, exponents, noise_error, relative
from goca.method.plan import Plan
from goca.method.refinement import RefinementContext, SelfAttention
from goca.method.refinement.propagation import Propagation
from tests.helpers.peer_cases import agree, layer_call, peer_cases
from tests.helpers.prompts import plain_prompt
from tests.helpers.reference_cases import Case


def _observation(case: Case) -> Observation:
    options = case.options
    cross = [layer for layer in case.layers if layer["kind"] in ("cross", "joint")]
    own = tuple(layer["name"] for layer in case.layers if layer["kind"] in ("self", "joint"))
    sigma = options["cross_gaussian_var"]
    mixture = Mixture(
        cross_layers=tuple(layer["name"] for layer in cross),
        weigh="depth" if sigma else "stage",
        sigma=sigma or None,
        stage_weights=None if sigma else tuple(options["cross_weight"]),
        feature_size=cross[0]["h"],
    )
    plan = Plan({layer["name"]: "" for layer in cross}, self_attention=own)
    statistics = MixtureStatistics(mixture, plan, passes=options["collect_steps"])
    for step in range(options["collect_steps"]):
        for layer in case.layers:
            statistics.observe(layer_call(case, layer, f"step{step}/"))
    return statistics.finish()


def _rounds(case: Case, attention: dict[str, SelfAttention]) -> Sequence[list[SelfAttention]]:
    """Layers of each round; those of the cases have one weight or none."""
    layers = [layer for layer in case.layers if layer["kind"] in ("self", "joint")]
    of_stage = stages([(layer["h"], layer["h"]) for layer in layers])
    assert all(len({weight for weight in row if weight}) == 1 for row in case.options["self_weight"])
    return [
        [attention[layer["name"]] for layer, stage in zip(layers, of_stage, strict=True) if row[stage]]
        for row in case.options["self_weight"]
    ]


def _refine(case: Case, observation: Observation, maps: torch.Tensor) -> torch.Tensor:
    size = (maps.shape[-2], maps.shape[-1])
    for layers in _rounds(case, observation.self_attention(0)):
        maps = Propagation(layers, size, 0, 2**26)(maps)
    return maps


@pytest.mark.parametrize("case", peer_cases("a", "elbo", option="collect_steps"))
def test_elbo(case: Case):
    options, observation = case.options, _observation(case)
    tokens = observation.token_maps[0]
    side = tokens.shape[-1]
    ids = range(1, len(options["class_ids"]) + 1)  # in the list's order, as ties go to the first of the list
    prompt = plain_prompt(dict(zip(ids, map(tuple, options["token_positions"]), strict=True)), len(tokens))
    given = dict(zip(ids, case.inputs["temperature"].tolist(), strict=True))
    maps = Calibration(steps=("stretch", "power"))(tokens, prompt, exponents=given)
    for number in range(len(maps.ids)):
        agree(case, f"cross/{number}", maps.raw[number])
        agree(case, f"calibrated/{number}", maps.scores[number])
    every = 1 if case.expected["self_attention"].shape[0] == side**2 else 17
    identity = torch.eye(side**2).view(-1, side, side)  # a map per key: the columns of the operator
    agree(case, "self_attention", _refine(case, observation, identity).flatten(1).T[::every])
    refined = maps.with_stack(_refine(case, observation, maps.scores))
    assert RefinementContext(refined.size).size == (side, side)
    thresholds = tuple(options["thresholds"])
    decision = Decision("constant", thresholds, stretch=True, ties="class", eight_bits=True)
    size = tuple(options["image_size_hw"])
    plain = Decision("constant", thresholds, stretch=True)
    agree(case, "scores", torch.cat([band for _, band in plain.score_bands(refined.scores, size)], 1))
    names = torch.tensor([0, *options["class_ids"]])
    for threshold, label in zip(thresholds, decision(refined, size, len(names)), strict=True):
        agree(case, f"label/{threshold}", names[label.long()])


@pytest.mark.parametrize("case", peer_cases("a", "elbo", option="prediction_type"))
def test_losses(case: Case):
    options, inputs = case.options, case.inputs
    parts = []
    for place, timestep in enumerate(options["timesteps"]):
        kept = inputs["alphas_cumprod"][timestep] if "alphas_cumprod" in inputs else 0.0
        noise = inputs["noise"][place]
        prediction = inputs["prediction"][:, place]
        parts.append(noise_error(prediction, noise, inputs["latent"][0], kept, options["prediction_type"]))
    agree(case, "losses", torch.stack(parts, 1))
    losses = class_losses(parts)
    agree(case, "elbo", losses)
    agree(case, "elbo_min_max", relative(losses))
    agree(case, "temperature", exponents(losses, options["strength"]))
    agree(case, "temperature_fixed", torch.full_like(losses, options["strength"]))


def test_one_class_keeps_its_map():
    maps = ClassMaps((1,), torch.rand(1, 4, 4), torch.zeros(4, 4), torch.rand(1, 4, 4))
    assert exponents(torch.tensor([0.7]), 3.0).tolist() == [1.0]
    assert maps.ids == (1,)
