"""Entities to tokens: hand-written cases per tokenizer family, and properties of any caption."""

from __future__ import annotations

import string
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goca.data.classes import ClassTable
from goca.errors import ModelError
from goca.prompts import Prompt, TextSegment, from_names, from_text
from goca.prompts.align import STOP_TOKENS, align
from goca.prompts.caption import parse, split, text_of, tidy

Axes = dict[str, tuple[TextSegment, ...]]
FAMILIES = ("clip", "t5", "bert", "bert+t5")
COCO = ClassTable.load("coco_object")


def words(prompt: Prompt, positions: Sequence[int]) -> str:
    return "".join(prompt.tokens[p] for p in positions)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("caption", "classes"),
    [
        ("Cat, dog", {"cat": "cat", "dog": "dog"}),
        ("scarf, car, carpet", {"car": "car"}),  # inside longer words
        ("bus stop, bus, stop sign", {"bus": "bus", "stop sign": "stopsign"}),  # several words, and part of other entities
        ("(person, clothes), hat, person", {"person": "personclothesperson"}),  # the same word twice
        ("(person, horse, saddle), grass", {"person": "person", "horse": "horse"}),  # a group of two classes
        ("dogs, hot dogs, DOG", {"dog": "dogsdog", "hot dog": "hotdogs"}),  # plural, upper case
        ("t-shirt, child's toy, skateboard", {"skateboard": "skateboard"}),  # hyphen, apostrophe
        ("café, naïve dog, crème, cat", {"cat": "cat"}),  # non-ASCII
        ("a cat, the dog and a bird", {}),  # no exact synonym
    ],
)
def test_class_tokens(text_axes: Axes, family: str, caption: str, classes: dict[str, str]) -> None:
    prompt = align(parse(tidy(caption), COCO), text_axes[family])
    times = len(text_axes[family])  # once per tokenizer
    expected = {COCO.id_of(name)[0]: spelled for name, spelled in classes.items()}
    found = {i: words(prompt, positions) for i, positions in prompt.class_tokens.items()}
    assert {i: sorted(spelling) for i, spelling in found.items()} == {
        i: sorted(spelling * times) for i, spelling in expected.items()
    }
    assert not prompt.warnings


def test_special_tokens_of_each_family(text_axes: Axes) -> None:
    kinds = {family: align(parse("cat, dog", COCO), text_axes[family]).special for family in FAMILIES}
    assert kinds["clip"] == {"start": (0,), "end": (4,), "padding": tuple(range(5, 77))}
    assert kinds["bert"]["start"] == (0,)
    assert "start" not in kinds["t5"]
    assert len(kinds["t5"]["end"]) == 1
    both = kinds["bert+t5"]
    assert both["start"] == (0,)
    assert [p < 77 for p in both["end"]] == [True, False]
    assert both["padding"][-1] == 332


def test_stop_tokens_are_left_out(text_axes: Axes) -> None:
    prompt = align(parse("the cat and a dog-house, sky.", COCO), text_axes["clip"])
    assert [words(prompt, group) for group in prompt.background_groups] == ["catdoghouse", "sky"]


def test_classes_beyond_the_token_limit_are_lost(text_axes: Axes) -> None:
    (axis,) = text_axes["clip"]
    short = (TextSegment(axis.tokenizer, 8),)
    entities = parse("sky, grass, cat, dog", COCO)
    prompt = align(entities, short)
    assert list(prompt.class_tokens) == [COCO.id_of("cat")[0]]
    assert prompt.lost_classes == COCO.id_of("dog")
    assert any("8 fit" in warning for warning in prompt.warnings)
    first = align(parse("sky, grass, cat, dog", COCO, classes_first=True), short)
    assert first.text == "cat, dog, sky, grass"
    assert not first.lost_classes


def test_readable_table(text_axes: Axes) -> None:
    table, (prompt,) = from_text("(Person, clothes), dog, sky.", text_axes["clip"])
    assert table.names == ("background", "person", "dog", "sky")
    rows = str(prompt).splitlines()
    assert rows[0] == "person, clothes, dog, sky"
    assert rows[1].split() == ["class", "1", "1,3", "person", "clothes"]
    assert rows[-1].split()[:2] == ["padding", "9-76"]


def test_names_and_captions_of_a_user(text_axes: Axes) -> None:
    _, (prompt,) = from_text("cat, sofa", text_axes["clip"], classes=["cat"])
    assert (prompt.class_tokens, prompt.background_groups) == ({1: (1,)}, ((3,),))
    table, (prompt,) = from_names(["polar bear", "ice"], text_axes["clip"])
    assert table.names[1:] == ("polar bear", "ice")
    assert prompt.class_tokens == {1: (1, 2), 2: (4,)}


def test_unknown_words_are_no_class_tokens(text_axes: Axes) -> None:
    _, (prompt,) = from_text("☃, cat", text_axes["bert"])
    assert prompt.lost_classes == (1,)
    assert list(prompt.class_tokens) == [2]


def test_slow_tokenizers_are_refused(text_axes: Axes) -> None:
    class Slow:
        def __call__(self, *_: object, **__: object) -> object:
            return type("Encoding", (), {"encodings": None})()

    with pytest.raises(ModelError, match="Slow is a slow tokenizer"):
        align(parse("cat", COCO), (TextSegment(Slow(), 77),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("caption", "parts"),
    [
        ("grass, (zebra), tree, sky", ["grass", "(zebra)", "tree", "sky"]),
        ("(car), (car), tree", ["(car)", "(car)", "tree"]),
        ("(cat, (dog, collar)), wall", ["(cat, (dog, collar))", "wall"]),
        ("cat), dog", ["cat)", "dog"]),
        (" , ,", []),
    ],
)
def test_split(caption: str, parts: list[str]) -> None:
    assert split(caption) == parts


NOUNS = st.sampled_from(
    [word for synonyms in COCO.synonyms for word in synonyms] + ["sky", "carpet", "scarf", "ice-cream", "café", "the a"]
)
CAPTIONS = st.lists(
    st.one_of(NOUNS, st.lists(NOUNS, min_size=1, max_size=3).map(lambda n: f"({', '.join(n)})")), max_size=14
).map(", ".join)
NOISE = st.text(
    st.sampled_from(string.ascii_letters + ",,,(()).-'  \n\u00e9\u00ad\u200b\U0001f600\u4e2d"), max_size=60
) | st.text(max_size=40)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(caption=CAPTIONS, background=st.booleans(), first=st.booleans())
def test_class_tokens_lie_inside_the_words_of_their_class(
    text_axes: Axes, family: str, caption: str, background: bool, first: bool
) -> None:
    """Independent of the aligner's bookkeeping: characters are taken from the tokenizers again."""
    entities = parse(caption, COCO, background_token=background, classes_first=first)
    prompt = align(entities, text_axes[family])
    inside = {i: {c for e in entities if e.class_id == i for c in range(e.start, e.end)} for i in prompt.class_tokens}
    offsets = {}
    for segment in text_axes[family]:
        encoding = segment.tokenizer(prompt.text, return_offsets_mapping=True, truncation=True, max_length=segment.length)
        offsets |= dict(enumerate(encoding["offset_mapping"], segment.start))
    for class_id, positions in prompt.class_tokens.items():
        assert positions == tuple(sorted(set(positions)))
        for position in positions:
            characters = {c for c in range(*offsets[position]) if prompt.text[c] not in " ,"}
            assert characters
            assert characters <= inside[class_id]
            assert prompt.tokens[position] not in STOP_TOKENS
    groups = [*prompt.class_tokens.values(), *prompt.background_groups]
    assert len(prompt.content) == sum(map(len, groups))  # no position has two owners
    assert not set(prompt.content) & {p for positions in prompt.special.values() for p in positions}
    assert {e.class_id for e in entities} - {None} == set(prompt.class_tokens) | set(prompt.lost_classes)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(caption=NOISE)
def test_any_text_becomes_a_prompt(text_axes: Axes, family: str, caption: str) -> None:
    for text in (caption, tidy(caption)):
        entities = parse(text, COCO, missing=(1, 2))
        prompt = align(entities, text_axes[family])
        assert prompt.text == text_of(entities)
        assert len(prompt.tokens) == sum(segment.length for segment in text_axes[family])
        assert str(prompt)
