"""Several words for a class, words for the background, and how they are dealt out to prompts."""

from itertools import chain

import numpy as np
import pytest

from goca.data.base import Sample
from goca.data.classes import ClassTable
from goca.data.name_lists import worded
from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.data.sizes import to_pixels
from goca.prompts import Classes, TextSegment, Vocabulary
from goca.prompts.caption import parse
from goca.segmentor import Segmentor

VOC = worded(ClassTable.load("voc"), "voc", "sclip")
PERSON, CAT = 15, 8


def test_every_word_is_asked_for_once_and_words_of_a_class_stay_apart(text_axes) -> None:
    prompts = Vocabulary()(None, VOC, text_axes["clip"])
    asked = [entity for prompt in prompts for entity in prompt.entities]
    words = list(chain.from_iterable(VOC.words(class_id) for class_id in range(1, 21)))
    assert [entity.text for entity in asked if entity.class_id is not None] == words
    assert [entity.text for entity in asked if entity.class_id is None] == list(VOC.background_words)
    assert all(any(entity.class_id is None for entity in prompt.entities) for prompt in prompts)
    assert max(len(prompt.entities) for prompt in prompts) - min(len(prompt.entities) for prompt in prompts) <= 2
    asking = [prompt for prompt in prompts if PERSON in prompt.class_tokens]
    words_each = [len(prompt.alternatives.get(PERSON, (prompt.class_tokens[PERSON],))) for prompt in asking]
    assert sum(words_each) == len(VOC.words(PERSON)) == 7
    for prompt in prompts:
        for class_id, found in prompt.alternatives.items():
            assert sorted(chain.from_iterable(found)) == list(prompt.class_tokens[class_id])
        assert CAT not in prompt.alternatives


def test_one_word_for_each_class_is_asked_for_as_ever(text_axes) -> None:
    table = ClassTable.load("voc")
    short = (TextSegment(text_axes["clip"][0].tokenizer, 30),)
    plain = Vocabulary()(None, table, short)
    assert all(not prompt.alternatives and not prompt.background_groups for prompt in plain)
    assert [text for prompt in plain for text in prompt.text.split(", ")] == [words[0] for words in table.synonyms[1:]]
    assert Vocabulary(background_words=False)(None, worded(table, "voc"), short) == plain


def test_the_classes_in_the_label_have_all_their_words(text_axes) -> None:
    sample = Sample("a", np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), (CAT, PERSON))
    (prompt,) = Classes()(sample, VOC, text_axes["clip"])
    assert prompt.text == ", ".join(("cat", *VOC.words(PERSON)))
    assert prompt.background_groups == ()  # the method is told what is there; the background has no words of its own
    (plain,) = Classes()(sample, ClassTable.load("voc"), text_axes["clip"])
    assert plain.text == "cat, person"
    assert Classes()(Sample("b", sample.image, sample.label, ()), VOC, text_axes["clip"]) == ()


def test_a_word_without_a_token_is_named_and_the_class_keeps_its_others(text_axes) -> None:
    table = worded(ClassTable.from_names(["cat, ☃", "dog"]), "mine")
    table = ClassTable(**{**vars(table), "asked": ((), ("cat", "☃"), ("dog",))})
    (prompt,) = Vocabulary()(None, table, text_axes["bert"])
    assert list(prompt.class_tokens) == [1, 2]
    assert prompt.warnings == ("not looked for, as no token is left for them: '☃'",)


def test_the_background_can_win_where_all_names_are_given() -> None:
    """Without words its score is a constant below the best of the stretched class maps: it is predicted nowhere."""
    segmentor = Segmentor.from_config("scenes_unet_tiny")
    scenes = Scenes(protocol=Protocol("upstream", "background", "zero", "published"), count=1)
    sample, size = scenes[0], segmentor.backbone.size
    sample.pixels = to_pixels(sample.image, size)
    shares = []
    for background in ((), ("background",), ("wall", "table")):
        table = ClassTable(**{**vars(ClassTable.load("scenes")), "background_words": background})
        prompts = Vocabulary()(sample, table, segmentor.backbone.text_segments)
        (prediction,) = segmentor.predict([(sample, prompts)], len(table), has_background=True)
        at_zero = prediction.labels[segmentor.method.decision.thresholds.index(0.0)]
        shares.append(float((at_zero == 0).float().mean()))
    assert shares[0] == 0
    assert all(0 < share < 1 for share in shares[1:]), shares


@pytest.mark.parametrize("name", ["coco_stuff", "coco_stuff27"])
def test_clothes_belong_to_the_person_who_wears_them(name: str) -> None:
    """As the labels of COCO have it; a tie is labelled on its own, and a group that names it falls apart."""
    table = ClassTable.load(name)
    (person,) = table.id_of("person")
    (worn,) = parse("(person, clothes, hat)", table)
    assert (worn.text, worn.class_id) == ("person, clothes, hat", person)
    assert [entity.text for entity in parse("(person, clothes, tie)", table)] == ["person", "tie"]
