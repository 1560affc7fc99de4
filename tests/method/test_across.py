"""Several prompts of one image taken as one: what the classes then share, by explicit sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goca import config
from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.errors import ConfigError
from goca.method.across import side_by_side
from goca.method.calibration import Calibration
from goca.prompts.prompt import Prompt
from goca.prompts.sources import Vocabulary
from goca.scenes.generator import TEST_SEEDS, scene
from goca.segmentor import Segmentor


def _prompt(first: int, classes: int, background: bool = True) -> Prompt:
    """Start, one token for each class and one for the background, then padding."""
    tokens = ("<start>", *(f"word{first + i}" for i in range(classes)), *(["background"] if background else []), "<pad>")
    return Prompt(
        text="",
        tokens=tokens,
        class_tokens={first + i: (1 + i,) for i in range(classes)},
        background_groups=((1 + classes,),) if background else (),
        special={"start": (0,), "padding": (len(tokens) - 1,)},
    )


def _maps(prompt: Prompt, seed: int, size=(5, 4)) -> torch.Tensor:
    """Shares of the prompt's tokens at each pixel."""
    return torch.rand(len(prompt.tokens), *size, generator=torch.Generator().manual_seed(seed)).softmax(0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 99))
def test_joint_rescaling_divides_by_what_the_content_of_all_prompts_holds(counts, seed):
    prompts = [_prompt(1 + sum(counts[:number]), count) for number, count in enumerate(counts)]
    maps = [_maps(prompt, seed + number) for number, prompt in enumerate(prompts)]
    joined, groups = side_by_side(maps, prompts, "joint")
    found = Calibration(steps=("per_pixel",))(joined, groups)
    total = sum(own[list(prompt.content)].sum(0) for own, prompt in zip(maps, prompts, strict=True))
    assert found.ids == tuple(range(1, 1 + sum(counts)))
    expected = [
        own[tokens[0]] / total for own, prompt in zip(maps, prompts, strict=True) for tokens in prompt.class_tokens.values()
    ]
    torch.testing.assert_close(found.scores, torch.stack(expected))
    background = torch.stack([own[prompt.background_groups[0][0]] / total for own, prompt in zip(maps, prompts, strict=True)])
    torch.testing.assert_close(found.supporting, background.amax(0))
    torch.testing.assert_close(found.scores.sum(0) + background.sum(0), torch.ones(5, 4))


@pytest.mark.parametrize(("how", "places"), [("sink", (0, -1)), ("anchor", (-2,))])
def test_a_prompt_is_measured_by_what_its_sink_or_its_anchor_holds(how, places):
    """Scaling one prompt's word logits against its sink by any factor is what a single softmax over all words would give."""
    prompts = [_prompt(1, 3), _prompt(4, 2)]
    maps = [_maps(prompt, number) for number, prompt in enumerate(prompts)]
    joined, _ = side_by_side(maps, prompts, how)
    first, second = joined.split([len(prompt.tokens) for prompt in prompts])
    held = [own[list(places)].sum(0) for own in (first, second)]
    torch.testing.assert_close(held[0], held[1])  # the reference holds the same in both
    for own, before in ((first, maps[0]), (second, maps[1])):  # and odds within a prompt are as they were
        torch.testing.assert_close(own / own.sum(0), before / before.sum(0))


def test_sinks_give_what_one_softmax_over_all_words_would():
    generator = torch.Generator().manual_seed(0)
    sink, words = torch.randn(1, 6, 6, generator=generator), torch.randn(5, 6, 6, generator=generator)
    one = torch.cat([sink, words]).softmax(0)[1:]
    prompts = [Prompt("", ("s", "a", "b"), {1: (1,), 2: (2,)}, special={"start": (0,)})]
    prompts.append(Prompt("", ("s", "c", "d", "e"), {3: (1,), 4: (2,), 5: (3,)}, special={"start": (0,)}))
    maps = [torch.cat([sink, part]).softmax(0) for part in words.split([2, 3])]
    joined, groups = side_by_side(maps, prompts, "sink")
    found = Calibration(steps=("per_pixel",))(joined, groups).scores
    torch.testing.assert_close(found, one / one.sum(0))


def test_prompts_without_a_sink_stay_as_they_are():
    prompts = [Prompt("", ("a", "b"), {1: (0,), 2: (1,)}), Prompt("", ("c", "s"), {3: (0,)}, special={"end": (1,)})]
    maps = [torch.rand(2, 3, 3), torch.cat([torch.rand(1, 3, 3), torch.zeros(1, 3, 3)])]
    joined, _ = side_by_side(maps, prompts, "sink")
    assert torch.equal(joined, torch.cat(maps))


def test_a_class_that_two_prompts_name_keeps_its_words_apart():
    prompts = [_prompt(1, 2), _prompt(2, 1)]
    _, groups = side_by_side([_maps(prompt, 0) for prompt in prompts], prompts, "joint")
    assert groups.class_tokens == {1: (1,), 2: (2, 6)}
    assert groups.alternatives == {2: ((2,), (6,))}
    assert groups.background_groups == ((3,), (7,))
    assert groups.content == (1, 2, 3, 6, 7)


def test_an_anchor_has_to_be_in_every_prompt():
    prompts = [_prompt(1, 2), _prompt(3, 2, background=False)]
    with pytest.raises(ConfigError, match=r"prompts.across=anchor needs a background word in every prompt"):
        side_by_side([_maps(prompt, 0) for prompt in prompts], prompts, "anchor")


def test_a_segmentor_takes_several_prompts_as_one_where_they_say_so():
    segmentor = Segmentor.from_config("scenes_unet_tiny")
    table, drawn = ClassTable.load("scenes"), scene(TEST_SEEDS[0])
    sample = Sample("a", drawn.image, None, (), pixels=segmentor.pixels(drawn.image))
    found = {}
    for across in ("each", "joint", "sink", "anchor"):
        for words in (table.names[1:3], table.names[1:9]):
            halves = words[: len(words) // 2], words[len(words) // 2 :]
            sources = [Vocabulary(words=part, background_token=True, across=across) for part in halves]
            prompts = [prompt for source in sources for prompt in source(None, table, segmentor.backbone.text_segments)]
            one = tuple(prompts) if len(words) > 2 else (prompts[0],)
            (prediction,) = segmentor.predict([(sample, one)], len(table), False)
            found[across, len(one)] = prediction.maps
    assert len({maps.ids for (_, count), maps in found.items() if count == 2}) == 1
    for across in ("joint", "sink", "anchor"):
        assert torch.equal(found[across, 1].scores, found["each", 1].scores)  # a single prompt is what it always was
        assert not torch.equal(found[across, 2].scores, found["each", 2].scores)
    assert not torch.equal(found["joint", 2].scores, found["sink", 2].scores)


def test_an_anchor_needs_the_word_in_the_configuration():
    with pytest.raises(ConfigError, match="set background_token=true"):
        config.build(config.compose(["prompts=vocabulary", "prompts.across=anchor"]), "prompts")
