"""Watching every family draw: not a bit of the picture changes, and every row of the batch is taken for what it is."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from goca.backbones.auto import text_to_image_name
from goca.backbones.unet import UNetBackbone
from tests.helpers.drawing import PROMPT, draw, drawing, embedded, watching
from tests.helpers.tiny_pipelines import FAMILIES, tiny_backbone

DISTILLED = ("flux2_dev", "hunyuan_image")  # no negative prompt; the small HunyuanImage has no guider

OTHER = "star, sky"
# Here a text alone is not read as beside a prompt: padding that draws attention is as long as the prompt's, or rotary positions
# are such that the text cannot be moved.
PLACED = ("kandinsky5", "ernie_image")
UNETS = [family for family, row in FAMILIES.items() if issubclass(row.adapter, UNetBackbone)]
TRANSFORMERS = [family for family in FAMILIES if family not in UNETS]
POOLED = (
    "text_embedder.linear_2",
    "pooled_embedder.linear_2",
    "extra_embedder.linear_2",
)  # of the whole text, into every layer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_is_the_same_and_the_words_are_found(family, monkeypatch):
    pipeline = drawing(family)
    call, options = embedded(pipeline, family)
    if family == "prx":
        monkeypatch.setattr(pipeline.text_preprocessor, "clean_text", str.lower)
    plain = draw(pipeline, family, **call)
    before = dict(vars(pipeline))
    watch = watching(family, pipeline, negative=True, **options)
    with watch as seen:
        watched = draw(pipeline, family, **call)
    assert torch.equal(plain, watched)
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in watch.denoiser.modules())
    assert {name: value for name, value in vars(pipeline).items() if before.get(name) is not value}.keys() <= {
        "_num_timesteps", "_guidance_scale", "_current_timestep", "_joint_attention_kwargs", "_attention_kwargs",
    }  # fmt: skip
    height, width = seen.only.size
    assert width == 2 * height
    assert len(seen.steps) == 2
    assert list(seen.words) == ["circle", "grass"]
    assert seen.words["circle"].values.shape == (8, 16)
    assert sum(seen.layers.values()) == pytest.approx(1)
    shares = seen.only.token_maps.sum(0)
    assert (shares <= 1 + 1e-5).all()
    picture = np.zeros((height, width, 3), np.uint8)
    assert set(np.unique(seen.segmentation(picture).label_map)) <= {1, 2}
    if family in DISTILLED:
        return
    if family == "flux2_klein":  # its negative prompt is always empty
        assert seen.negative.only.text == ""
    elif family != "prx":
        assert list(seen.negative.words) == ["dog"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_half_is_read_in_its_own_rows(family, monkeypatch):
    """Independent of any order: the keys that the negative half is read with change when the negative prompt does."""
    if family in (*DISTILLED, "flux2_klein", "prx"):
        pytest.skip("its negative prompt cannot be given")
    pipeline = drawing(family)

    def first_maps(negative):
        watch = watching(family, pipeline, negative=True, steps=8)
        with watch as seen:
            draw(pipeline, family, negative_prompt=negative)
        return seen.words["circle"].steps[0], seen.negative.only.token_maps  # later steps have been guided by the other half

    (prompt_a, negative_a), (prompt_b, negative_b) = first_maps("dog"), first_maps("cat")
    torch.testing.assert_close(prompt_a, prompt_b, rtol=1e-4, atol=1e-6)
    assert negative_a.shape != negative_b.shape or (negative_a - negative_b).abs().max() > 1e-6


@pytest.mark.parametrize("family", ["sd", "flux_dev", "z_image", "qwen_image", "lumina2", "hidream_i1"])
def test_pictures_of_a_batch_are_those_of_their_own_prompts(family):
    """Two prompts, two pictures each: as if each prompt had been drawn alone."""
    pipeline = drawing(family)
    prompts = ["circle, grass", "a heart on snow"]
    noises = [torch.Generator().manual_seed(seed) for seed in range(4)]
    options = {"num_images_per_prompt": 2, "negative_prompt": ["", ""], "generator": noises}
    with watching(family, pipeline, steps=8, reads=("star",)) as seen:
        draw(pipeline, family, prompt=list(prompts), **options)  # Z-Image writes its template into the list
    assert [list(picture.words) for picture in seen] == [["circle", "grass"]] * 2 + [["heart", "snow"]] * 2
    with watching(family, pipeline, steps=8, reads=("star",)) as alone:
        draw(
            pipeline, family, prompt=prompts[1], negative_prompt="",
            generator=torch.Generator().manual_seed(3),
        )  # fmt: skip
    for found, expected in (
        (seen[3].words["heart"], alone.words["heart"]),
        (seen.reads["star"][3].words["star"], alone.reads["star"].words["star"]),
    ):
        torch.testing.assert_close(found.steps[0], expected.steps[0], rtol=2e-3, atol=1e-5)


VARIANTS = [
    ("sd", "StableDiffusionImg2ImgPipeline"),
    ("sd", "StableDiffusionInpaintPipeline"),
    ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
    ("sdxl", "StableDiffusionXLInpaintPipeline"),
    ("kolors", "KolorsImg2ImgPipeline"),
    ("sd3", "StableDiffusion3Img2ImgPipeline"),
    ("flux_dev", "FluxImg2ImgPipeline"),
    ("flux_dev", "FluxInpaintPipeline"),
    ("qwen_image", "QwenImageImg2ImgPipeline"),
    ("qwen_image", "QwenImageInpaintPipeline"),
    ("z_image", "ZImageImg2ImgPipeline"),
    ("z_image", "ZImageInpaintPipeline"),
]


@pytest.mark.parametrize(("family", "variant"), VARIANTS)
def test_image_to_image_and_inpainting(family, variant):
    import diffusers

    kind = getattr(diffusers, variant)
    text_to_image = drawing(family)
    assert text_to_image_name(kind) == type(text_to_image).__name__
    parts = {name: part for name, part in text_to_image.components.items() if name in inspect.signature(kind).parameters}
    pipeline = kind(**parts, **({"requires_safety_checker": False} if family == "sd" else {}))
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.arange(32 * 64 * 3, dtype=np.uint8).reshape(32, 64, 3))
    options = {"image": picture, "mask_image": picture.convert("L"), "strength": 0.6, "num_inference_steps": 4}
    plain = draw(pipeline, family, **options)
    with watching(family, pipeline) as seen:
        watched = draw(pipeline, family, **options)
    assert torch.equal(plain, watched)
    assert 2 <= len(seen.steps) <= 3  # the first steps are left out
    assert seen.words["grass"].values.shape == (8, 16)


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [("HeunDiscreteScheduler", 5), ("EulerAncestralDiscreteScheduler", 3), ("LCMScheduler", 3), ("UniPCMultistepScheduler", 3)],
)
def test_any_scheduler(scheduler, evaluations):
    """Schedulers of second order evaluate the denoiser twice a step, but for the last one."""
    import diffusers

    pipeline = drawing("sd")
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    plain = draw(pipeline, num_inference_steps=3)
    with watching("sd", pipeline, steps=4) as seen:
        watched = draw(pipeline, num_inference_steps=3)
    assert torch.equal(plain, watched)
    assert len(seen.steps) == evaluations == len(seen.words["circle"].steps)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_other_words_are_read_by_keys_of_their_own(family, monkeypatch):
    """In the first layer, which the prompt has not reached yet, they are read as if they had been the prompt."""
    pipeline = drawing(family)
    for name, module in pipeline.transformer.named_modules():
        if name.endswith(POOLED):
            torch.nn.init.zeros_(module.weight), torch.nn.init.zeros_(module.bias)
    call, options = embedded(pipeline, family)
    if family == "prx":
        monkeypatch.setattr(pipeline.text_preprocessor, "clean_text", str.lower)
    plain = draw(pipeline, family, **call)
    with watching(family, pipeline, reads=(OTHER, PROMPT), steps=8, first=True, **options) as seen:
        assert torch.equal(plain, draw(pipeline, family, **call))
    own, expected = seen.reads[PROMPT].words["circle"].steps, seen.words["circle"].steps
    torch.testing.assert_close(own, expected, rtol=2e-3, atol=1e-6)
    assert list(seen.reads[OTHER].words) == ["star", "sky"]
    if family in PLACED or family == "prx":
        return
    with watching(family, pipeline, steps=8, first=True) as alone:
        draw(pipeline, family, prompt=OTHER)
    found, expected = seen.reads[OTHER].words["star"].steps[0], alone.words["star"].steps[0]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("family", UNETS)
def test_other_words_of_unets_share_all_attention(family):
    pipeline = drawing(family)
    plain = draw(pipeline, family)
    with watching(family, pipeline, reads=(OTHER,)) as seen:
        assert torch.equal(plain, draw(pipeline, family))
    (found,) = seen.reads[OTHER]
    assert list(found.words) == ["star", "sky"]
    torch.testing.assert_close(found.token_maps.sum(0), torch.ones(8, 16))
    padding = [
        i
        for i, token in enumerate(tiny_backbone(family).borrow(pipeline).text_segments[0].tokens(OTHER))
        if token.kind == "padding"
    ]
    assert not found.token_maps[padding].any()
