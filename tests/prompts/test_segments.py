"""Prompts inside templates: where the words lie, whatever stands around them and wherever padding goes."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goca.backbones.text import after_prefix, chat_segment, user_message
from goca.errors import ModelError
from goca.prompts import from_text
from goca.prompts.segments import DecodedSegment, PiecesSegment, TemplateSegment, TextSegment
from goca.scenes.tokenizer import small_t5_tokenizer
from tests.helpers.tokenizers import (
    small_chat_tokenizer,
    small_chatglm_tokenizer,
    small_gemma_tokenizer,
    small_llama_tokenizer,
    small_mistral_tokenizer,
    small_qwen_tokenizer,
)

TOKENIZERS = {
    "qwen": small_qwen_tokenizer(),
    "chat": small_chat_tokenizer(),
    "mistral": small_mistral_tokenizer(),
    "gemma": small_gemma_tokenizer(),
    "llama": small_llama_tokenizer(),
    "t5": small_t5_tokenizer(),
}
WORDS = st.text(st.sampled_from(string.ascii_lowercase + "  ,.()é\U0001f600"), min_size=1, max_size=30)
ENDS = st.text(st.sampled_from(string.ascii_letters + " \n:{}<|>"), max_size=12)


def _characters(segment, text):
    """The characters of the prompt that some position claims, other than spaces; each position's must read as its label."""
    claimed = set()
    for token in segment.tokens(text):
        if token.kind is None and not token.unknown:
            if token.end > token.start:
                assert token.label == text[token.start : token.end]
            claimed |= set(range(token.start, token.end))
    return {place for place in claimed if not text[place].isspace()}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=WORDS, before=ENDS, after=ENDS, side=st.sampled_from([None, "left", "right"]))
def test_positions_are_the_tokens_of_the_rendered_text(name, text, before, after, side):
    """The oracle tokenizes the whole text once more and looks at characters alone."""
    tokenizer, length = TOKENIZERS[name], 200
    segment = TemplateSegment(tokenizer, length, render=lambda words: before + words + after, side=side)
    found = segment.tokens(text)
    whole = before + text + after
    options = {"padding_side": side} if side else {}
    plain = tokenizer(whole, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True, **options)
    assert segment.ids(text) == plain["input_ids"]
    assert len(found) == length
    inside = range(len(before), len(before) + len(text))
    for token, (start, end), real in zip(found, plain["offset_mapping"], plain["attention_mask"], strict=True):
        assert (token.kind == "padding") == (not real)
        if token.kind is None:  # then it has a letter of the prompt, or only spaces
            assert {place - len(before) for place in range(start, end) if place in inside} >= set(range(token.start, token.end))
        elif token.kind == "template":
            assert any(place not in inside for place in range(start, end)) or start == end
    if segment.count(text) <= length and name in ("qwen", "chat", "mistral") and not any(e.strip() for e in (before, after)):
        assert _characters(segment, text) == {place for place, letter in enumerate(text) if not letter.isspace()}


@settings(max_examples=30, deadline=None)
@given(text=WORDS, dropped=st.integers(0, 6), length=st.integers(4, 12))
def test_what_is_dropped_before_the_prompt_moves_every_position(text, dropped, length):
    tokenizer, template = TOKENIZERS["qwen"], "{}ab"
    whole = TemplateSegment(tokenizer, dropped + length, render=lambda words: words + "ab")
    assert after_prefix(tokenizer, template, length, dropped).tokens(text) == whole.tokens(text)[dropped:]


@settings(max_examples=30, deadline=None)
@given(text=WORDS)
def test_compact_text_comes_before_its_padding_whatever_the_side(text):
    rows = [
        TemplateSegment(TOKENIZERS["gemma"], 60, render=lambda words: "on " + words, compact=True, side=side).tokens(text)
        for side in ("left", "right")
    ]
    assert rows[0] == rows[1]
    kinds = [token.kind == "padding" for token in rows[0]]
    assert kinds == sorted(kinds)


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.sampled_from("aBİß, ΣŁx"), min_size=1, max_size=12))
def test_lower_casing_keeps_every_words_own_characters(text):
    """Lower case can have more letters than the text."""
    segment = TemplateSegment(TOKENIZERS["qwen"], 80, render=lambda words: "x: " + words, lower=True)
    assert segment.ids(text) == TemplateSegment(TOKENIZERS["qwen"], 80, render=lambda words: "x: " + words).ids(text.lower())
    assert _characters(segment, text) == {place for place, letter in enumerate(text) if not letter.isspace()}


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.sampled_from("ab' \"é"), max_size=20), cut=st.integers(1, 4))
def test_pieces_are_located_in_the_whole(text, cut):
    pieces = PiecesSegment(TOKENIZERS["qwen"], 64, split=lambda words: [words[i : i + cut] for i in range(0, len(words), cut)])
    assert _characters(pieces, text) == {place for place, letter in enumerate(text) if not letter.isspace()}
    assert pieces.count(text) == sum(token.kind is None for token in pieces.tokens(text))


@settings(max_examples=40, deadline=None)
@given(text=st.text(st.sampled_from(string.ascii_lowercase + "  ,.é\U0001f600"), max_size=30))
def test_pieces_of_a_slow_tokenizer_are_found_in_the_text(text):
    """Letters that the vocabulary has are each claimed by one piece, in order; bytes of others by none."""
    segment = DecodedSegment(small_chatglm_tokenizer(), 80)
    found = [token for token in segment.tokens(text) if token.kind is None and not token.unknown]
    assert all(token.label == text[token.start : token.end] for token in found)
    places = [place for token in found for place in range(token.start, token.end)]
    assert places == sorted(set(places))
    assert set(places) >= {place for place, letter in enumerate(text) if letter in string.ascii_lowercase}


def test_a_chat_names_the_users_words_alone():
    """The same word in a system message is not a token of the class."""
    segment = chat_segment(
        TOKENIZERS["mistral"],
        120,
        lambda text: [
            {"role": "system", "content": [{"type": "text", "text": "cross moon"}]},
            {"role": "user", "content": [{"type": "text", "text": text}]},
        ],
        bare=True,
    )
    table, (prompt,) = from_text("moon, cross", [segment])
    spelled = ["".join(prompt.tokens[p] for p in prompt.class_tokens[i]) for i in (1, 2)]
    assert spelled == ["moon", "cross"]
    assert prompt.special["template"][0] > 0  # padding on the left comes before the template
    assert table.names[1:] == ("moon", "cross")


def test_a_word_lies_in_every_span_of_the_axis():
    """Models whose text comes from several encoders, or several times, have one segment for each."""
    chat = chat_segment(TOKENIZERS["chat"], 60, user_message, add_generation_prompt=True)
    again = TemplateSegment(TOKENIZERS["gemma"], 30, start=84)
    _, (prompt,) = from_text("moon", [TextSegment(TOKENIZERS["t5"], 24, start=60), chat, again])
    spans = [sum(first <= p < last for p in prompt.class_tokens[1]) for first, last in ((0, 60), (60, 84), (84, 114))]
    assert spans == [4, 1, 4]


def test_a_template_that_changes_the_words_is_refused():
    segment = TemplateSegment(TOKENIZERS["qwen"], 30, render=lambda text: text[::-1])
    with pytest.raises(ModelError, match="words cannot be located"):
        segment.tokens("moon")


def test_a_processor_leaves_out_a_start_token_that_its_template_writes():
    class Processor:
        tokenizer = TOKENIZERS["mistral"]
        apply_chat_template = staticmethod(tokenizer.apply_chat_template)

    def messages(text):
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]

    assert chat_segment(Processor(), 20, messages, bare=True).bare
    Processor.apply_chat_template = staticmethod(lambda chat, **_: "[INST]" + chat[0]["content"][0]["text"])
    assert not chat_segment(Processor(), 20, messages, bare=True).bare
