"""`goca.watch` as it is used: words, pictures, files, scales, and one clear message for everything that cannot work."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

import goca
from goca.errors import ConfigError, ModelError
from goca.watching.reading import names_in
from tests.helpers.drawing import draw, drawing, watching

PICTURE = np.full((32, 64, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def pipeline():
    return drawing("sd")


@pytest.fixture(scope="module")
def seen(pipeline):
    with goca.watch(pipeline, negative=True, steps=8, layers=8) as found:
        draw(pipeline, prompt="a red circle on the grass")
    return found


def test_words_can_be_asked_for_by_any_phrase_of_the_prompt(seen):
    assert list(seen.words) == ["red", "circle", "grass"]
    both = seen.words["red circle"]
    assert len(both.positions) == len(seen.words["red"].positions) + len(seen.words["circle"].positions)
    assert all(word in seen.words for word in ("circle", "Circle", "red circle"))
    assert "dog" not in seen.words
    assert seen.words.get("dog") is None
    assert repr(seen) == "Seen(SeenPicture(64 x 32 pixels, 'a red circle on the grass', 2 evaluations))"


@pytest.mark.parametrize(
    ("prompt", "words"), [("a circle on a white background", ["circle", "white"]), ("grass, background", ["grass"])]
)
def test_a_prompt_may_speak_of_a_background(pipeline, prompt, words):
    with goca.watch(pipeline) as seen:
        draw(pipeline, prompt=prompt, num_inference_steps=1)
    assert list(seen.words) == words
    assert seen.words[words[0]].values.max() > 0
    assert seen.segmentation(PICTURE).classes.names[1:] == tuple(words)
    with pytest.raises(ConfigError, match="'background' cannot be looked for"):
        seen.words["background"]


def test_maps_become_pictures_masks_segmentations_and_files(seen, tmp_path):
    word = seen.words["circle"]
    assert word.overlay(PICTURE).size == (64, 32)
    mask = word.mask(0.5)
    assert mask.shape == (32, 64)
    assert 0 < mask.mean() < 1
    result = seen.segmentation(PICTURE, words=["circle", "grass"])
    assert result.classes.names[1:] == ("circle", "grass")
    assert result.picture().size[0] > 64
    paths = seen.view(PICTURE).save(tmp_path / "view", tensors=True)
    assert {"layers.png", "tokens_raw.png", "attention.safetensors"} <= {path.name for path in paths}
    path = seen.save(tmp_path / "new" / "circle.safetensors")
    with safe_open(path, "pt") as stored:
        assert stored.metadata()["prompt"] == "a red circle on the grass"
        torch.testing.assert_close(stored.get_tensor("token_maps"), seen.only.token_maps)
        assert stored.get_tensor("step_maps").shape[0] == 2
        positions = json.loads(stored.metadata()["words"])["circle"]
        torch.testing.assert_close(stored.get_tensor("token_maps")[positions].mean(0), word.values)
        assert [stored.metadata()["tokens"].split("\n")[position] for position in positions] == ["circle"]
        assert len(stored.metadata()["layers"].split("\n")) == len(stored.get_tensor("layer_weights"))


def test_a_pipeline_in_training_mode_with_gradients_is_left_so(pipeline):
    unet = pipeline.unet
    unet.train(), unet.requires_grad_(True)
    try:
        with goca.watch(pipeline, "preset=goca") as seen:
            draw(pipeline, num_inference_steps=1)
        assert unet.training
        assert all(parameter.requires_grad for parameter in unet.parameters())
        assert not seen.only.token_maps.requires_grad
    finally:
        unet.eval()


def test_scaled_layers_change_the_picture_and_one_changes_nothing(pipeline):
    plain = draw(pipeline)
    with goca.watch(pipeline, scale={"*attn2": 1.0}):
        same = draw(pipeline)
    with goca.watch(pipeline, scale={"*attn2": 0.0}) as seen:
        without = draw(pipeline)
    with goca.watch(pipeline):
        other_prompt = draw(pipeline, prompt="a heart")
    assert torch.equal(plain, same)
    assert not torch.equal(plain, without)
    assert seen.words["circle"].values.max() > 0
    with goca.watch(pipeline, scale={"*attn2": 0.0}):
        assert torch.equal(without, draw(pipeline, prompt="a heart"))  # the prompt has no way in
    assert not torch.equal(plain, other_prompt)


def test_presets_of_mixtures_watch_too(pipeline):
    with goca.watch(pipeline, "preset=daam", "aggregation.weights=null", steps=4) as seen:
        draw(pipeline)
    torch.testing.assert_close(seen.words["circle"].steps.mean(0).shape, torch.Size([4, 8]))
    assert seen.segmentation(PICTURE).label_map.shape == (32, 64)


def test_what_was_seen_can_be_asked_for_between_steps(pipeline):
    counts = []

    def look(pipe, step, time, values):
        counts.append((len(seen.steps), float(seen.words["circle"].values.max())))
        return values

    with goca.watch(pipeline) as seen:
        draw(pipeline, callback_on_step_end=look)
    assert [count for count, _ in counts] == [1, 2]
    assert counts[1][1] == float(seen.words["circle"].values.max())


# ---------------------------------------------------------------------------------------------------------- bad input
def test_nothing_drawn(pipeline):
    with goca.watch(pipeline) as seen:
        pass
    for ask in (lambda: seen.words["circle"], lambda: seen.steps, lambda: seen[0], lambda: seen.save("x")):
        with pytest.raises(ModelError, match="nothing was drawn"):
            ask()


def test_words_that_are_not_there(seen):
    with pytest.raises(ConfigError, match="does not contain the word 'dog'"):
        seen.words["dog"]
    with pytest.raises(ConfigError, match="does not contain the word 'dog'"):
        seen.segmentation(PICTURE, words=["dog"])
    with pytest.raises(ConfigError, match="not the same"):
        seen.segmentation(PICTURE.transpose(1, 0, 2).copy())


def test_what_was_not_asked_for(pipeline):
    with goca.watch(pipeline) as seen:
        draw(pipeline)
    for ask, message in (
        (lambda: seen.negative, "negative=True"),
        (lambda: seen.words["circle"].steps, "steps=32"),
        (lambda: seen.words["circle"].layers, "layers=32"),
    ):
        with pytest.raises(ConfigError, match=message):
            ask()
    with goca.watch(pipeline, negative=True) as seen:
        draw(pipeline, guidance_scale=1.0)
    with pytest.raises(ModelError, match="without classifier-free guidance"):
        _ = seen.negative


def test_two_pictures_have_to_be_told_apart(pipeline, tmp_path):
    with goca.watch(pipeline, negative=True) as seen:
        draw(pipeline, prompt=["circle", "grass"], negative_prompt=["", ""])
    with safe_open(seen.negative.save(tmp_path / "negative.safetensors"), "pt") as stored:  # of texts without words
        assert stored.metadata()["1/words"] == "{}"
        assert stored.get_tensor("1/token_maps").shape[0] == len(stored.metadata()["1/tokens"].split("\n"))
    with pytest.raises(ConfigError, match=r"seen\[0\]"):
        _ = seen.words
    assert list(seen[1].words) == ["grass"]


def test_arguments_that_cannot_be(pipeline):
    for options, message in (
        ({"steps": 0}, "steps: give the shorter side"),
        ({"layers": True}, "layers: give the shorter side"),
        ({"scale": 0.5}, "scale: give globs"),
        ({"scale": {"*attn2": [1.0, 2.0, 3.0]}}, "heads of"),
        ({"scale": {"*attn2": float("nan")}}, "heads of"),
        ({"reads": " , "}, "has no words"),
        ({"reads": [3]}, "reads: give a text"),
        ({"prompt": 3}, "prompt: give a text"),
    ):
        with pytest.raises(ConfigError, match=message):
            goca.watch(pipeline, **options)
    with pytest.raises(ModelError, match="no layer of this model matches"):
        goca.watch(pipeline, scale={"nothing*": 0.0})
    with pytest.raises(ConfigError, match="aggregation"):
        goca.watch(pipeline, "aggregation=nonsense")
    with pytest.raises(ConfigError, match="takes a diffusers pipeline"):
        goca.watch(pipeline.unet)
    with pytest.raises(ConfigError, match="model=sd35 is not of the family of StableDiffusionPipeline"):
        goca.watch(pipeline, "model=sd35")
    with pytest.raises(ConfigError, match="give settings as"):
        goca.watch(pipeline, ["preset=goca"])


@pytest.mark.parametrize("override", ["views=noises", "passes.timesteps=[5]"])
def test_what_the_drawing_decides_is_not_taken(pipeline, override):
    with pytest.raises(ConfigError, match="the drawing itself says at which noise levels"):
        goca.watch(pipeline, override)


def test_a_pipeline_in_memory_takes_no_weights(pipeline):
    with pytest.raises(ModelError, match=r"model.lora: a pipeline in memory is taken as it is"):
        goca.Segmentor.from_pipeline(pipeline, "model.lora=nowhere")
    with pytest.raises(ModelError, match=r"model.file: a pipeline in memory is taken as it is"):
        goca.watch(pipeline, "model.file=nowhere.safetensors")


def test_a_pipeline_of_somebodys_own(pipeline):
    """It stands for the one it extends; one with another loop is refused."""

    class Mine(type(pipeline)):
        def __call__(self, prompt, **options):
            return super().__call__(prompt=prompt, **options)

    class Other(type(pipeline)):
        def __call__(self, prompt):
            self.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(1, 20, 16))

    parts = {**pipeline.components, "requires_safety_checker": False}
    mine = Mine(**parts)
    with goca.watch(mine) as seen:
        mine("circle, grass", num_inference_steps=1, output_type="latent", height=32, width=32)
    assert list(seen.words) == ["circle", "grass"]
    other = Other(**parts)
    with pytest.raises(ModelError, match="the call of Other has no loop"), goca.watch(other):
        other("circle")


def test_a_family_that_nobody_knows():
    unknown = SimpleNamespace(components={}, config={})
    with pytest.raises(ModelError, match="which no adapter takes"):
        goca.watch(unknown)


def test_two_watches_at_once(pipeline):
    with goca.watch(pipeline), pytest.raises(ModelError, match="being watched already"), goca.watch(pipeline):
        pass
    with goca.watch(pipeline):
        pass  # the first is gone


def test_two_calls_in_one_watch(pipeline):
    with goca.watch(pipeline):
        draw(pipeline)
        with pytest.raises(ModelError, match="a second time"):
            draw(pipeline)


def test_embeddings_in_place_of_a_prompt(pipeline):
    embeds = pipeline.encode_prompt("circle, grass", "cpu", 1, True, "")
    given = {"prompt": None, "negative_prompt": None, "prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}
    with pytest.raises(ConfigError, match="embeddings in place of a prompt"), goca.watch(pipeline):
        draw(pipeline, **given)
    with goca.watch(pipeline, prompt="circle, grass") as seen:
        draw(pipeline, **given)
    assert list(seen.words) == ["circle", "grass"]
    with pytest.raises(ModelError, match="prompt for each"), goca.watch(pipeline, prompt=["circle"] * 3):
        draw(pipeline, **given)


def test_a_denoiser_that_is_run_by_itself(pipeline):
    with pytest.raises(ModelError, match="outside of its pipeline's call"), goca.watch(pipeline):
        pipeline.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(1, 20, 16))


def test_a_pipeline_that_is_moved_meanwhile(pipeline):
    def move(pipe, step, time, values):
        moved = copy.copy(pipe.unet)  # whose weights the pipeline keeps
        moved._modules = {name: copy.deepcopy(module).to("meta") for name, module in pipe.unet._modules.items()}
        pipe.unet._modules, kept["modules"] = moved._modules, pipe.unet._modules
        return values

    kept = {}
    try:
        with pytest.raises(ModelError, match="moved from cpu to meta"), goca.watch(pipeline):
            draw(pipeline, callback_on_step_end=move)
    finally:
        pipeline.unet._modules = kept["modules"]
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipeline.unet.modules())


def test_after_an_exception_everything_is_as_it_was(pipeline):
    plain = draw(pipeline)

    def fail(*_):
        raise KeyboardInterrupt

    handle = pipeline.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt), goca.watch(pipeline):
        draw(pipeline)
    handle.remove()
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipeline.unet.modules())
    with goca.watch(pipeline) as seen:
        assert torch.equal(plain, draw(pipeline))
    assert len(seen.steps) == 2


def test_attention_that_cannot_be_seen(pipeline):
    pipeline.unet.compile()
    try:
        with pytest.raises(ModelError, match="compiled"), goca.watch(pipeline):
            pass
    finally:
        pipeline.unet._compiled_call_impl = None
    unet = pipeline.unet
    pipeline.unet = torch.compile(unet)  # compiles when it is first called
    try:
        with pytest.raises(ModelError, match="compiled"):
            goca.watch(pipeline)
    finally:
        pipeline.unet = unet
    pipeline.enable_attention_slicing()
    try:
        with pytest.raises(ModelError, match="cannot be observed"), goca.watch(pipeline):
            draw(pipeline)
    finally:
        pipeline.disable_attention_slicing()
        from diffusers.models.attention_processor import AttnProcessor2_0

        pipeline.unet.set_attn_processor(AttnProcessor2_0())
    flux = drawing("flux_dev")
    for module in flux.transformer.modules():
        if hasattr(getattr(module, "processor", None), "_attention_backend"):
            module.processor._attention_backend = "_native_npu"
            break
    with pytest.raises(ModelError, match="backend _native_npu"), watching("flux_dev", flux):
        pass


def test_prompts_that_differ_between_text_encoders():
    sdxl = drawing("sdxl")
    with pytest.raises(ConfigError, match="prompt_2 differs"), watching("sdxl", sdxl):
        draw(sdxl, prompt_2="a star")


def test_which_words_a_prompt_has():
    assert names_in("cat, hot dog") == ("cat", "hot dog")
    assert names_in("a cat on the grass, highly detailed, 4k") == ()
