"""What a flow model's denoiser is given: by its own pipeline, and by the adapter at the same place of the schedule."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from goca.backbones.mixins import FlowMatching
from tests.helpers.drawing import draw, drawing, embedded
from tests.helpers.tiny_pipelines import FAMILIES, tiny_backbone, tiny_pipeline

STEPS, TIMESTEP = 1000, 100
HEIGHT, WIDTH = 32, 64
FLOW = [family for family, row in FAMILIES.items() if issubclass(row.adapter, FlowMatching)]
# Pixels that a latent pixel is wide, and channels, where the pipeline takes them from elsewhere than the small autoencoder.
LATENTS = {"fibo": (16, 4), "qwen_image_21": (16, 4), "longcat_image": (2, 16)}
IN_THE_MODELS_TYPE = ("kandinsky5", "hunyuan_image")  # their pipelines round times to it, and the models take no other
DEPENDS_ON_STEPS = ("flux2_dev", "flux2_klein")  # their shift, for which the adapter takes the pipelines' usual number


class Recorder:
    """Stands in for a denoiser's forward: keeps what it is given, and answers with its first output again."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        self.forward, self.output, self.calls = denoiser.forward, None, []
        self.signature = inspect.signature(denoiser.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(dict(self.signature.bind(*args, **kwargs).arguments))
        if self.output is None:
            self.output = self.forward(*args, **kwargs)
        return self.output


class Stepped(tuple):
    """What a scheduler's step gives, both ways: the latents as they were."""

    def __new__(cls, sample: torch.Tensor) -> "Stepped":
        return super().__new__(cls, (sample,))

    @property
    def prev_sample(self) -> torch.Tensor:
        return self[0]


def _told(call: dict[str, Any]) -> torch.Tensor:
    (name,) = [name for name in call if name in ("timestep", "timesteps", "t")]
    return torch.as_tensor(call[name]).flatten()[0]


@pytest.fixture(scope="module", params=FLOW)
def both(request) -> Any:
    """Family, the pipeline's sigma and call there, the adapter's calls in float32 and bfloat16, the adapter and its latents."""
    family = request.param
    pipeline = drawing(family)
    if isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler) and not pipeline.scheduler.config.use_dynamic_shifting:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift=3.0)
    patch = pytest.MonkeyPatch()
    recorder = Recorder(pipeline.transformer)
    patch.setattr(pipeline.transformer, "forward", recorder)
    patch.setattr(pipeline.scheduler, "step", lambda output, time, sample, *rest, **options: Stepped(sample))
    call, _ = embedded(pipeline, family)
    draw(pipeline, family, **call, num_inference_steps=STEPS, guidance_scale=1.0, true_cfg_scale=1.0)
    per_step = len(recorder.calls) // STEPS
    assert per_step in (1, 2)
    theirs = recorder.calls[per_step * (STEPS - TIMESTEP)]
    backbone = tiny_backbone(family).borrow(pipeline)
    backbone.timestep = TIMESTEP
    sigma = float(pipeline.scheduler.sigmas[STEPS - TIMESTEP])
    recorder.calls.clear()
    recorder.output = None
    factor, channels = LATENTS.get(family, (backbone.compression, backbone.latent_shape[0]))
    noisy = torch.zeros(1, channels, HEIGHT // factor, WIDTH // factor)
    with torch.inference_mode():
        conditioning = backbone.conditioning(["circle, grass"])
        backbone.denoise(noisy, conditioning)
        float32 = recorder.calls[-1]
        backbone.denoise(noisy.bfloat16(), conditioning)  # nothing is computed any more
    yield family, sigma, theirs, (float32, recorder.calls[-1]), backbone, noisy
    patch.undo()


def test_the_noise_level_is_the_pipelines(both) -> None:
    family, sigma, _, _, backbone, noisy = both
    if family in DEPENDS_ON_STEPS:
        pytest.skip("its shift depends on the number of steps")
    assert backbone._sigma(noisy) == pytest.approx(sigma, rel=1e-4)


def test_the_time_that_is_told_is_the_pipelines(both) -> None:
    family, _, theirs, (ours, half), *_ = both
    if family in DEPENDS_ON_STEPS:
        pytest.skip("its shift depends on the number of steps")
    whole = not _told(theirs).is_floating_point() or family == "sana"  # a scheduler that counts in whole time steps
    assert float(_told(ours)) == pytest.approx(float(_told(theirs)), rel=1e-4, abs=1.0 if whole else 0)
    assert _told(half).dtype == (torch.bfloat16 if family in IN_THE_MODELS_TYPE else torch.float32)


@pytest.mark.parametrize("name", ["img_ids", "txt_ids", "position_ids"])
def test_positions_are_the_pipelines_in_half_precision_too(both, name) -> None:
    """bfloat16 knows whole numbers up to 256, and a picture or a text may have more rows or words."""
    family, _, theirs, (ours, half), *_ = both
    if name not in theirs:
        pytest.skip(f"{family} has no {name}")
    expected, found = (call[name].reshape(-1, call[name].shape[-1]).float() for call in (theirs, ours))
    if family == "longcat_image" and name == "img_ids":  # they begin behind the text, which is shorter in the small model
        expected, found = expected - expected[0], found - found[0]
    both_have = min(len(expected), len(found))
    if name == "txt_ids":  # a small model's text may be shorter
        expected, found = expected[:both_have], found[:both_have]
    if name == "position_ids":  # text, then image
        expected, found = expected[-both_have:], found[-both_have:]
    torch.testing.assert_close(found, expected)
    assert half[name].dtype != torch.bfloat16
    assert torch.equal(half[name], ours[name])


@pytest.mark.parametrize("family", ["ernie_image", "kandinsky5", "cogview4"])
def test_words_lie_where_they_are_whatever_side_the_tokenizer_pads(family: str) -> None:
    """These pipelines pad by themselves, or not at all, and a published tokenizer may pad on the other side."""
    found = []
    for side in ("right", "left"):
        pipeline = tiny_pipeline(family)
        tokenizer = getattr(pipeline.tokenizer, "tokenizer", pipeline.tokenizer)
        tokenizer.padding_side = side
        backbone = tiny_backbone(family).load(pipeline)
        with torch.inference_mode():
            states = backbone.conditioning(["circle, grass"])["encoder_hidden_states"]
        (segment,) = backbone.text_segments
        found.append((segment.tokens("circle, grass"), states))
    (tokens, states), (others, other_states) = found
    assert tokens == others
    torch.testing.assert_close(states, other_states)


def test_latents_of_kandinsky5_are_scaled_and_not_shifted() -> None:
    """As its pipeline takes them back: divided by the factor alone, whatever shift the autoencoder's configuration has."""
    pipeline = tiny_pipeline("kandinsky5")
    pipeline.vae.register_to_config(shift_factor=0.1)
    backbone = tiny_backbone("kandinsky5").load(pipeline)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        torch.testing.assert_close(backbone.encode_image(pixels), expected)
