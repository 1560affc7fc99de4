"""Concepts go along a forward of every family whose text has a branch of its own, and change nothing of it."""

import pytest
import torch

from goca import config
from goca.attention.concept_maps import ConceptStatistics
from goca.errors import ModelError
from goca.method import plan_layers
from goca.method.aggregation.concepts import ConceptMaps
from goca.prompts.prompt import Prompt
from goca.segmentor import Segmentor
from tests.helpers.tiny_pipelines import FAMILIES, tiny_backbone, tiny_pipeline

TAKERS = sorted(name for name, row in FAMILIES.items() if row.adapter.takes_concepts and name != "sd3_without_t5")
WORDS = ("circle", "heart", "grass")


def _aggregation(backbone):
    return ConceptMaps(cross_layers=backbone.layers.cross, feature_size=16)


@pytest.mark.parametrize("family", TAKERS)
def test_every_concept_has_a_map_and_shares_add_up(family):
    backbone = tiny_backbone(family).load(tiny_pipeline(family))
    aggregation = _aggregation(backbone)
    statistics = ConceptStatistics(aggregation, plan_layers(backbone, aggregation))
    prompt = Prompt(text="circle, grass", tokens=WORDS, class_tokens={1: (0,), 2: (1,)}, concepts=WORDS)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = backbone.observe(pixels, [prompt.text], ["a"], 0, statistics, prompts=[prompt]).token_maps
    assert maps.shape == (1, len(WORDS), 16, 16)
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 16, 16))
    assert (maps.std((2, 3)) > 0).all()


@pytest.mark.parametrize("family", ["flux2_dev", "flux2_klein"])
def test_a_concept_of_flux2_is_its_words_last_token(family):
    """Padded on the left, as in dev, that is the position before the last, as published; else found where the word is."""
    backbone = tiny_backbone(family).load(tiny_pipeline(family))
    with torch.inference_mode():
        states = backbone.conditioning(["heart"])["encoder_hidden_states"]
        noisy = torch.zeros(1, *backbone.latent_shape)
        branch = backbone.text_branch(["heart"], backbone.conditioning(["circle, grass"]), noisy)
        entered = branch.start()
        expected = backbone.denoiser.context_embedder(states)
    place = (entered - expected).abs().amax(-1).argmin().item()
    torch.testing.assert_close(entered[:, 0], expected[:, place])
    labels = [token.label for token in backbone.text_segments[0].tokens("heart")]
    assert labels[place] in ("heart", "t")
    if family == "flux2_dev":
        assert place == backbone.text_length - 2


def test_models_in_fluxs_blocks_without_pooled_text_take_none():
    backbone = tiny_backbone("ovis_image").load(tiny_pipeline("ovis_image"))
    with pytest.raises(ModelError, match="aggregation=concepts: this model lacks the text branch"):
        plan_layers(backbone, _aggregation(backbone))


def test_a_refinement_that_wants_features_is_refused_before_the_first_image():
    segmentor = Segmentor.build(config.compose(["model=scenes_mmdit", "preset=concept_attention", "refinement=prototype"]))
    with pytest.raises(ModelError, match="aggregation=concepts keeps no features"):
        segmentor.plan()
