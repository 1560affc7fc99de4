"""What a person types as words: split, understood, or refused with one message; nothing is lost without a word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goca.errors import ConfigError, GocaError
from goca.observe import read_image, read_prompt
from goca.prompts import TextSegment, from_names, from_text
from goca.prompts.caption import split, tidy
from goca.scenes.tokenizer import small_clip_tokenizer
from goca.segmentor import Segmentor

AXIS = (TextSegment(small_clip_tokenizer(), 77),)


def names(words: str) -> tuple[str, ...]:
    return from_text(words, AXIS)[0].names[1:]


@pytest.mark.parametrize(
    ("words", "classes"),
    [
        ("a cross and a moon over a brick wall", ("cross", "moon", "brick", "wall")),
        ("a star on a wall", ("star", "wall")),
        ("Star", ("star",)),
        ("a star", ("star",)),
        ("star, cross", ("star", "cross")),
        ("(star, cross), moon", ("star", "moon")),
        ("brick wall, star.", ("brick wall", "star")),
        ("star，cross、（moon, ring）", ("star", "cross", "moon")),
        ("星, 月", ("星", "月")),
    ],
)
def test_sentences_are_split_and_captions_are_not(words: str, classes: tuple[str, ...]) -> None:
    assert names(words) == classes
    assert read_prompt(words, (), AXIS)[0].names[1:] == classes  # `observe` and `segment` agree


def test_a_sentence_is_said_to_be_one() -> None:
    (prompt,) = from_text("a cross over a wall", AXIS)[1]
    assert prompt.text == "a cross over a wall"
    assert prompt.warnings[0].startswith("read as a sentence, in which 'cross', 'wall' are looked for; put commas")
    assert from_text("a star", AXIS)[1][0].warnings == ()
    assert from_text("star, cross", AXIS)[1][0].warnings == ()


def test_a_sentence_may_speak_of_a_background_which_is_left_out_and_said_to_be() -> None:
    """What describes a picture to a model; a text of words to look for asks for it, and is refused."""
    for sentence, classes in (("a star on a white background", ("star", "white")), ("a star and a Background", ("star",))):
        table, prompt = read_prompt(sentence, (), AXIS)
        assert table.names[1:] == classes
        assert prompt.text == sentence
        assert prompt.warnings[-1].startswith("'background' is not looked for")
    with pytest.raises(ConfigError, match="'background' cannot be looked for"):  # where it is asked for
        read_prompt("a star on a background", ("star", "background"), AXIS)


def test_the_longest_name_owns_its_place_in_a_sentence() -> None:
    text = "a red circle and a circle on grass"
    table, prompt = read_prompt(text, ("circle", "red circle"), AXIS)
    of = {table.names[i]: "".join(prompt.tokens[p] for p in positions) for i, positions in prompt.class_tokens.items()}
    assert of == {"red circle": "redcircle", "circle": "circle"}
    assert not set(prompt.class_tokens[1]) & set(prompt.class_tokens[2])
    with pytest.raises(ConfigError, match=r"does not contain the word 'circle' besides in 'red circle'$"):
        read_prompt("a red circle on grass", ("circle", "red circle"), AXIS)
    assert read_prompt("a red circle on grass", ("circle",), AXIS)[0].names[1:] == ("circle",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("(star, cross, moon", "opens a bracket that it does not close"),
        ("star), cross", "closes a bracket at character 5"),
        ("", "names nothing to look for"),
        (" , ()", "names nothing to look for"),
        ("the over", "names nothing to look for"),
        (None, "given as text, or as a list of names; got None"),
        (3, "got 3"),
        (float("nan"), "got nan"),
        (b"star", "got b'star'"),
        ("background, star", "'background' cannot be looked for"),
        ("a star and a background", "'background' cannot be looked for"),
    ],
)
def test_texts_that_cannot_be_understood_are_one_message(words: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")) as caught:
        from_text(words, AXIS)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (None, "got None"),
        (7, "got 7"),
        ([], "empty"),
        (["star", None], "the list holds None"),
        (["star", 7], "the list holds 7"),
        (["star", ""], "no name"),
        (["background", "star"], "pass a threshold for it, such as background=0.2"),
        (["star", " Background "], "'Background' cannot be looked for"),
    ],
)
def test_lists_that_cannot_be_understood_are_one_message(words: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_names(words, AXIS)  # type: ignore[arg-type]


def test_words_beyond_the_token_limit_are_named() -> None:
    words = [f"star{'abcdefghij'[i // 3]}{'xyz'[i % 3]}" for i in range(30)]
    table, (prompt,) = from_text(", ".join(words), AXIS)
    lost = [table.names[i] for i in prompt.lost_classes]
    assert lost
    count, unseen = prompt.warnings
    assert count.endswith("tokens, 77 fit")
    assert unseen == f"not looked for, as no token is left for them: {', '.join(map(repr, lost))}"
    several = from_names(words, AXIS)[1]  # a list takes as many forwards as it needs
    assert len(several) > 1
    assert not any(prompt.lost_classes for prompt in several)


@given(st.text(max_size=60))
def test_any_text_is_understood_or_one_error(text: str) -> None:
    """Classes are the parts between the commas of a tidy caption, or words of the sentence; an independent split agrees."""
    try:
        table, (prompt,) = from_text(text, AXIS)
    except GocaError:
        return
    if "," in tidy(text) and "(" not in text and ")" not in text:
        parts = [part.strip() for part in tidy(text).removesuffix(".").lower().split(",")]
        assert set(table.names[1:]) == {part for part in parts if part} == set(split(tidy(text).removesuffix(".").lower()))
    assert len(prompt.class_tokens) + len(prompt.lost_classes) == len(table) - 1


@pytest.fixture(scope="module")
def segmentor() -> Segmentor:
    return Segmentor.from_config("scenes_unet_tiny")


SCENE = read_image("scenes:3").pixels


@pytest.mark.slow
def test_one_word_alone_has_a_usual_threshold_and_is_told_of_it(segmentor: Segmentor, caplog: pytest.LogCaptureFixture) -> None:
    whole = segmentor.segment(SCENE, ["circle"])
    assert (whole.label_map == 1).all()
    assert "background=True" in whole.warnings[-1]
    assert whole.warnings[-1] in caplog.text
    part = segmentor.segment(SCENE, ["circle"], background=True)
    assert 0 < (part.label_map == 1).mean() < 0.9
    assert part.warnings == ()
    shares = [(segmentor.segment(SCENE, ["circle"], background=tau).label_map == 1).mean() for tau in (0, 0.5, 1)]
    assert shares[0] > 0.99 >= shares[1] == (part.label_map == 1).mean() >= shares[2]


@pytest.mark.slow
def test_results_show_themselves_in_a_line_and_can_be_compared(segmentor: Segmentor) -> None:
    one, other = (segmentor.segment(SCENE, "circle, grass") for _ in range(2))
    assert repr(one).startswith("Segmentation(64 x 64 pixels: ")
    assert "circle" in repr(one)
    assert "\n" not in repr(one) + repr(one.prediction) + repr(segmentor)
    assert max(map(len, (repr(one), repr(one.prediction)))) < 200
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert "scenes_unet_tiny" in repr(segmentor)


@pytest.mark.slow
@pytest.mark.parametrize("background", ["a", float("nan"), float("inf"), [0.1]])
def test_a_background_that_is_no_threshold_is_one_message(segmentor: Segmentor, background: object) -> None:
    with pytest.raises(ConfigError, match="background is a threshold such as"):
        segmentor.segment(SCENE, "circle, grass", background=background)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("image", [None, 3, np.zeros((0, 0, 3), np.uint8), [[]], object()])
def test_what_is_no_picture_is_one_message(segmentor: Segmentor, image: object) -> None:
    with pytest.raises(GocaError) as caught:
        segmentor.segment(image, "circle, grass")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
