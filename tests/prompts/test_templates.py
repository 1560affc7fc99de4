"""Prompts as sentences, per class, without words, and as concepts; emphasis on class tokens."""

import pytest
import torch

from goca.data.classes import ClassTable
from goca.prompts import Concepts, Template, TextSegment, Unprompted
from goca.prompts.emphasis import Emphasis
from goca.scenes.tokenizer import small_clip_tokenizer

TABLE = ClassTable.from_names(["circle", "square", "grass"])


def _segments() -> tuple[TextSegment, ...]:
    return (TextSegment(small_clip_tokenizer(), 77),)


def _words(prompt, class_id: int) -> str:
    return "".join(prompt.tokens[p] for p in prompt.class_tokens[class_id])


def test_a_sentence_around_the_names():
    (prompt,) = Template(names="all", before="a picture of ", between=" and ", after=" outside")(None, TABLE, _segments())
    assert prompt.text == "a picture of circle and square and grass outside"
    assert [_words(prompt, i) for i in (1, 2, 3)] == ["circle", "square", "grass"]
    assert prompt.background_groups == ()


def test_a_prompt_for_every_class():
    emphasis = Emphasis(1.6)
    prompts = Template(names="all", before="a ", each=True, emphasis=emphasis)(None, TABLE, _segments())
    assert [prompt.text for prompt in prompts] == ["a circle", "a square", "a grass"]
    assert [list(prompt.class_tokens) for prompt in prompts] == [[1], [2], [3]]
    assert all(prompt.emphasis == emphasis for prompt in prompts)


def test_the_last_word_of_a_name_is_emphasised_alone():
    """`dining table++` makes "table" louder; the class keeps the tokens of both words."""
    table = ClassTable.from_names(["grass circle", "square"])
    emphasis = Emphasis(1.21, "away_from_empty", words="last")
    (prompt,) = Template(names="all", before="a ", emphasis=emphasis)(None, table, _segments())
    assert _words(prompt, 1) == "grasscircle"
    assert "".join(prompt.tokens[position] for position in prompt.emphasised) == "circlesquare"
    (prompt,) = Template(names="all", before="a ", emphasis=Emphasis(1.6))(None, table, _segments())
    assert "".join(prompt.tokens[position] for position in prompt.emphasised) == "grasscirclesquare"


def test_emphasis_of_a_text_that_is_not_the_one_read_is_refused():
    with pytest.raises(ValueError, match="reads=names reads those of another"):
        Template(reads="names", emphasis=Emphasis(1.6))


def test_another_text_is_read():
    (prompt,) = Template(names="all", before="a picture of ", reads="names")(None, TABLE, _segments())
    assert (prompt.text, prompt.reads) == ("a picture of circle, square, grass", "circle, square, grass")
    assert [_words(prompt, i) for i in (1, 2, 3)] == ["circle", "square", "grass"]


def test_no_words():
    (prompt,) = Unprompted()(None, TABLE, _segments())
    assert prompt.text == "" and not prompt.class_tokens


def test_concepts_are_numbered_with_their_distractors():
    (prompt,) = Concepts(names="all", distractors=("sky", "grass"))(None, TABLE, _segments())
    assert prompt.concepts == ("circle", "square", "grass", "sky")
    assert prompt.class_tokens == {1: (0,), 2: (1,), 3: (2,)} and prompt.background_groups == ((3,),)


@pytest.mark.parametrize("way", ["scale", "away_from_empty"])
def test_emphasis_leaves_other_tokens_alone(way: str):
    embeddings, empty = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    changed = Emphasis(2.0, way)(embeddings, (1, 3), empty)
    start = torch.zeros(3) if way == "scale" else empty[0, 1]
    torch.testing.assert_close(changed[0, 1], start + 2 * (embeddings[0, 1] - start))
    assert torch.equal(changed[:, [0, 2]], embeddings[:, [0, 2]])
