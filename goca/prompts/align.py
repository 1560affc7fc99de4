"""From entities to positions on the text axis, by the tokenizers' own character offsets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from goca.errors import ModelError
from goca.prompts.caption import text_of
from goca.prompts.prompt import Entity, Prompt, TextSegment

# Tokens that carry no meaning of their own. They are compared with whole tokens, as in the authors' captioner: a final "a" that
# the tokenizer splits off ("spatul|a") is left out too.
STOP_TOKENS = frozenset({"a", "an", "the", "and", ",", ".", "-"})
_BETWEEN = frozenset(" ,")  # between two entities; a tokenizer may join these to a neighbouring word


class _Token(NamedTuple):
    """One position: the characters [start, end) of the text, or the kind of special token it is."""

    position: int
    start: int
    end: int
    label: str
    kind: str | None = None
    unknown: bool = False


def align(entities: Sequence[Entity], segments: Sequence[TextSegment], text: str | None = None) -> Prompt:
    """The prompt that placed entities make, or the `text` that they are places in, aligned on every segment of the text axis.

    A position belongs to an entity when its characters lie inside the entity's. Unknown-word tokens and stop tokens belong to
    none. A class without any position is listed as lost instead of being aligned with nothing.

    Raises:
        ModelError: where a segment's tokenizer has no character offsets.
    """
    text = text_of(entities) if text is None else text
    tokens = [token for segment in segments for token in _tokens(text, segment)]
    labels = [""] * max(segment.start + segment.length for segment in segments)
    groups: list[list[int]] = [[] for _ in entities]
    special: dict[str, list[int]] = {}
    for token in tokens:
        labels[token.position] = token.label
        if token.kind is not None:
            special.setdefault(token.kind, []).append(token.position)
        elif token.label not in STOP_TOKENS and not token.unknown:
            for entity, group in zip(entities, groups, strict=True):
                if _belongs(token, entity, text):
                    group.append(token.position)

    classes: dict[int, list[int]] = {}
    for entity, group in zip(entities, groups, strict=True):
        if entity.class_id is not None:
            classes.setdefault(entity.class_id, []).extend(group)
    lost = tuple(i for i, positions in classes.items() if not positions)
    padded = special.get("padding", ())
    full = [segment for segment in segments if not any(segment.start <= p < segment.start + segment.length for p in padded)]
    warnings = [
        f"the prompt has {count} tokens, {segment.length} fit"
        for segment in full
        if (count := _count(text, segment)) > segment.length
    ]
    return Prompt(
        text=text,
        tokens=tuple(labels),
        class_tokens={i: tuple(sorted(positions)) for i, positions in classes.items() if positions},
        background_groups=tuple(
            tuple(group) for entity, group in zip(entities, groups, strict=True) if entity.class_id is None and group
        ),
        special={kind: tuple(positions) for kind, positions in special.items()},
        lost_classes=lost,
        warnings=(*warnings, *([f"no token for classes {', '.join(map(str, lost))}"] if lost else [])),
        entities=tuple(entities),
    )


def fits(text: str, segments: Sequence[TextSegment]) -> bool:
    """Whether no segment cuts the text."""
    return all(_count(text, segment) <= segment.length for segment in segments)


def _tokens(text: str, segment: TextSegment) -> Iterator[_Token]:
    """The padded and truncated tokens of a segment."""
    rows = _encode(text, segment)
    openings = (segment.tokenizer.bos_token_id, segment.tokenizer.cls_token_id)
    unknown_id = segment.tokenizer.unk_token_id
    for position, (token_id, name, (start, end), is_special, is_text) in enumerate(rows, segment.start):
        if is_special:
            kind = "padding" if not is_text else "start" if token_id in openings else "end"
            yield _Token(position, 0, 0, name, kind)
            continue
        while start < end and text[start].isspace():  # sentencepiece counts the space before a word as part of it
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        # A lone "▁" (sentencepiece's space) claims the first character of the word after it.
        unknown = token_id == unknown_id or name.strip("▁") == ""
        yield _Token(position, start, end, text[start:end] or name, unknown=unknown)


def _encode(text: str, segment: TextSegment) -> Iterator[tuple[int, str, tuple[int, int], int, int]]:
    """Id, name, character offsets, special and not padding, per token, exactly as the backbone encodes the text."""
    encodings = segment.tokenizer(text, padding="max_length", truncation=True, max_length=segment.length).encodings
    if encodings is None:
        name = type(segment.tokenizer).__name__
        raise ModelError(f"{name} is a slow tokenizer and gives no character offsets; load its fast version")
    (one,) = encodings
    return zip(one.ids, one.tokens, one.offsets, one.special_tokens_mask, one.attention_mask, strict=True)


def _belongs(token: _Token, entity: Entity, text: str) -> bool:
    """Whether a token's characters are an entity's; a comma that the tokenizer joined to a word may stand beside them."""
    if entity.start <= token.start < token.end <= entity.end:
        return True
    inside = text[max(token.start, entity.start) : min(token.end, entity.end)]
    outside = text[token.start : entity.start] + text[entity.end : token.end]
    return any(map(str.isalnum, inside)) and _BETWEEN.issuperset(outside)


def _count(text: str, segment: TextSegment) -> int:
    """Tokens of the text before any limit, special tokens included."""
    return len(segment.tokenizer(text, verbose=False)["input_ids"])
