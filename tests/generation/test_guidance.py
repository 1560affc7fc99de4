"""The hook on unmodified diffusers pipelines: plain where the rate is 1, S-CFG's arithmetic elsewhere, in every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from goca.errors import ConfigError, ModelError
from goca.generation import guidance as module
from goca.generation.guidance import PlainGuidance, RegionGuidance, RegionGuide, check_method
from goca.generation.pipeline import Generator, Request
from goca.generation.roles import token_roles
from goca.method.refinement import PAMR, Refinements
from goca.ops import aspect_grid
from tests.helpers.generation_families import FAMILIES, drawing_backbone, region_method
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline

REQUESTS = [Request("a", "moon, grass", 1), Request("b", "star, brick, sky", 2)]
STEPS = 2


def draw(backbone, guidance, requests=REQUESTS, watch=None, **options):
    generator = Generator(backbone, guidance, region_method(backbone), **{"steps": STEPS, **options})
    generator.prepare()
    return [np.asarray(image) for image in generator(requests, watch)]


@pytest.fixture(scope="module")
def sd():
    return drawing_backbone("sd")


@pytest.mark.parametrize("family", FAMILIES)
def test_with_rate_1_pictures_are_those_of_the_pipeline_itself(family):
    backbone = drawing_backbone(family)
    ours = draw(backbone, RegionGuidance("goca", 5.0, limits=(1.0, 1.0)))
    other = draw(backbone, RegionGuidance("goca", 5.0))
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.denoiser.modules()]
    assert not any(hooks)
    options = {}
    if "pixart" in family:
        options = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": backbone.text_length}
    if family == "hunyuan_dit":
        options = {"use_resolution_binning": False}
    if family in ("sd3", "aura_flow"):
        options = {"max_sequence_length": backbone.text_length}
    theirs = backbone.pipeline(
        [request.text for request in REQUESTS],
        negative_prompt=["", ""],
        height=64,
        width=64,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(request.seed) for request in REQUESTS],
        **options,
    ).images
    for a, b, c in zip(ours, theirs, other, strict=True):
        assert np.array_equal(a, np.asarray(b))
        assert not np.array_equal(c, np.asarray(b))


def test_regions_have_the_shape_of_the_picture(sd):
    seen = []
    (picture, _) = draw(sd, RegionGuidance("goca", 5.0), watch=lambda _, step: seen.append(step), size=(32, 64))
    assert picture.shape[:2] == (32, 64)
    for step in seen:
        height, width = step.rate.shape
        assert width == 2 * height
        assert step.regions.tokens.shape[1:] == step.regions.foreground.shape == aspect_grid((height, width), 16)
        assert step.regions.tokens.any()


@pytest.mark.parametrize("family", ["sd", "pixart_sigma"])
def test_the_pipeline_ends_up_with_rate_times_scale(family):
    """What reaches the scheduler is eps_uncond + scale * rate * (eps_cond - eps_uncond)."""
    backbone, seen, rates = drawing_backbone(family), [], []
    handle = backbone.denoiser.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    scheduler = backbone.pipeline.scheduler
    step, given = type(scheduler).step, []
    generator = Generator(backbone, RegionGuidance("goca", 3.0), region_method(backbone), steps=1, scheduler="own")
    generator.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(scheduler),
            "step",
            lambda self, noise, *args, **kwargs: given.append(noise) or step(self, noise, *args, **kwargs),
        )
        generator(REQUESTS, lambda picture, one: rates.append(one.rate))
    handle.remove()
    unconditional, conditional = seen[0].chunk(2)  # this hook ran first and saw the model's own prediction
    expected = unconditional + 3.0 * torch.stack(rates)[:, None] * (conditional - unconditional)
    if family == "pixart_sigma":
        expected = expected.chunk(2, dim=1)[0]
    torch.testing.assert_close(given[0], expected, atol=1e-5, rtol=1e-4)


def test_a_picture_is_the_same_in_any_batch(sd):
    together = draw(sd, RegionGuidance("goca", 3.0))
    alone = [draw(sd, RegionGuidance("goca", 3.0), [request])[0] for request in REQUESTS]
    for a, b in zip(together, alone, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def test_regions_follow_the_words_and_the_limits(sd):
    steps = []
    draw(sd, RegionGuidance("goca", 5.0, limits=(0.9, 1.2)), watch=lambda picture, step: steps.append((picture, step)))
    assert [picture for picture, _ in steps] == [0, 1] * STEPS
    for picture, step in steps:
        roles = token_roles(REQUESTS[picture].text, sd.text_segments)
        owners = step.regions.tokens.flatten(1).any(1).nonzero().flatten().tolist()
        assert set(owners) <= set(roles.competing)
        assert step.rate.shape == (32, 32) and 0.9 <= step.rate.min() <= step.rate.max() <= 1.2


def test_regions_are_found_every_so_many_calls(sd, monkeypatch):
    found = []
    real = module.find_regions
    monkeypatch.setattr(module, "find_regions", lambda *args: found.append(1) or real(*args))
    draw(sd, RegionGuidance("goca", 3.0, every=2), REQUESTS[:1], steps=5)
    assert len(found) == 3


@pytest.fixture
def scheduled(sd):
    """`sd`, whose scheduler is put back."""
    own = sd.pipeline.scheduler
    yield sd
    sd.pipeline.scheduler = own


@pytest.mark.parametrize("scheduler", ["own", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_picture_is_the_same_in_any_batch_with_any_scheduler(scheduled, scheduler):
    options = {"size": (32, 96), "scheduler": scheduler}
    together = draw(scheduled, RegionGuidance("goca", 3.0), **options)
    for picture, request in zip(together, REQUESTS, strict=True):
        (alone,) = draw(scheduled, RegionGuidance("goca", 3.0), [request], **options)
        assert picture.shape == (32, 96, 3) and np.abs(picture.astype(int) - alone).max() <= 1


def test_a_scheduler_of_second_order_makes_more_calls(scheduled):
    seen = []
    draw(
        scheduled, RegionGuidance("goca", 3.0), watch=lambda _, step: seen.append(step.index), scheduler="HeunDiscreteScheduler"
    )
    generator = Generator(scheduled, PlainGuidance("cfg", 3.0), region_method(scheduled), steps=STEPS, scheduler="own")
    assert STEPS <= max(seen) < generator.calls == 2 * STEPS


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart_sigma"])
def test_oblong_pictures_and_a_negative_prompt_for_each(family):
    backbone, rates = drawing_backbone(family), []
    fog = replace(REQUESTS[0], negative="sky")
    guided = draw(
        backbone, RegionGuidance("goca", 3.0), [fog, REQUESTS[1]], lambda _, one: rates.append(one.rate), size=(32, 96)
    )
    without = draw(backbone, RegionGuidance("goca", 3.0), size=(32, 96))
    assert [picture.shape for picture in guided] == [(32, 96, 3)] * 2 and rates[0].shape[1] == 3 * rates[0].shape[0]
    assert not np.array_equal(guided[0], without[0]) and np.array_equal(guided[1], without[1])


def test_what_cannot_be_guided_by_regions_is_refused(sd):
    flux = tiny_backbone("flux_dev").load(tiny_pipeline("flux_dev"))
    with pytest.raises(ModelError, match=r"FluxPipeline.*distilled"):
        Generator(flux, RegionGuidance("goca", 3.0), region_method(flux)).prepare()
    with pytest.raises(ValueError, match="scale above 1"):
        RegionGuidance("goca", 1.0)
    with pytest.raises(ConfigError, match="multiples of"):
        draw(sd, PlainGuidance("cfg", 3.0), size=(33, 64))
    with pytest.raises(ConfigError, match="DDIMScheduler"):
        draw(sd, PlainGuidance("cfg", 3.0), scheduler="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(ConfigError, match=r"pipeline_options: guidance_scale, sharpness cannot be set.*cross_attention_kwargs"):
        draw(sd, PlainGuidance("cfg", 3.0), options={"sharpness": 2, "guidance_scale": 1})
    with pytest.raises(ConfigError, match=r"scheduler_options: karras is unknown to DDIMScheduler.*beta_end"):
        draw(sd, PlainGuidance("cfg", 3.0), scheduler_options={"karras": True})
    with pytest.raises(ConfigError, match="name a scheduler"):
        draw(sd, PlainGuidance("cfg", 3.0), scheduler="own", scheduler_options={"beta_end": 0.1})
    with pytest.raises(ModelError, match="no word"):
        draw(sd, RegionGuidance("goca", 3.0), [Request("a", "", 1)])


def test_refinements_that_need_the_image_are_refused(sd):
    with pytest.raises(ConfigError, match="no image"):
        check_method(replace(region_method(sd), refinement=Refinements((PAMR(),))), sd)


def test_a_pipeline_without_two_halves_is_named(sd):
    guide = RegionGuide(sd, region_method(sd), RegionGuidance("goca", 3.0), [token_roles("moon", sd.text_segments)])
    with guide, pytest.raises(ModelError, match="both halves"):
        sd.denoiser(torch.zeros(1, 4, 16, 16), 0, encoder_hidden_states=torch.zeros(1, 20, 16))
    assert not sd.denoiser._forward_hooks
