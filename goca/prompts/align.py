"""From entities to positions on the text axis, by the tokenizers' own character offsets."""

from __future__ import annotations

from collections.abc import Sequence

from goca.prompts.caption import text_of
from goca.prompts.prompt import Entity, Prompt, TextSegment
from goca.prompts.segments import Token

# Tokens that carry no meaning of their own. They are compared with whole tokens, as in the authors' captioner: a final "a" that
# the tokenizer splits off ("spatul|a") is left out too.
STOP_TOKENS = frozenset({"a", "an", "the", "and", ",", ".", "-"})
_BETWEEN = frozenset(" ,")  # between two entities; a tokenizer may join these to a neighbouring word


def align(entities: Sequence[Entity], segments: Sequence[TextSegment], text: str | None = None, apart: bool = False) -> Prompt:
    """The prompt that placed entities make, or the `text` that they are places in, aligned on every segment of the text axis.

    A position belongs to an entity when its characters lie inside the entity's. Unknown-word tokens and stop tokens belong to
    none. A class without any position is listed as lost instead of being aligned with nothing.

    Args:
        apart: entities of one class are words for it that are scored on their own; otherwise it has the positions of all.

    Raises:
        ModelError: where a segment's tokenizer has no character offsets.
    """
    text = text_of(entities) if text is None else text
    tokens = [(position, token) for segment in segments for position, token in enumerate(segment.tokens(text), segment.start)]
    labels = [""] * max(segment.start + segment.length for segment in segments)
    groups: list[list[int]] = [[] for _ in entities]
    special: dict[str, list[int]] = {}
    for position, token in tokens:
        labels[position] = token.label
        if token.kind is not None:
            special.setdefault(token.kind, []).append(position)
        elif token.label not in STOP_TOKENS and not token.unknown:
            for entity, group in zip(entities, groups, strict=True):
                if _belongs(token, entity, text):
                    group.append(position)

    classes: dict[int, list[int]] = {}
    words: dict[int, list[tuple[int, ...]]] = {}
    for entity, group in zip(entities, groups, strict=True):
        if entity.class_id is not None:
            classes.setdefault(entity.class_id, []).extend(group)
            words.setdefault(entity.class_id, []).extend([tuple(group)] if group else [])
    lost = tuple(i for i, positions in classes.items() if not positions)
    unseen = [next(entity.text for entity in entities if entity.class_id == i) for i in lost]
    if apart:
        pairs = zip(entities, groups, strict=True)
        unseen = [entity.text for entity, group in pairs if entity.class_id is not None and not group]
    padded = special.get("padding", ())
    full = [segment for segment in segments if not any(segment.start <= p < segment.start + segment.length for p in padded)]
    warnings = [
        f"the prompt has {count} tokens, {segment.length} fit"
        for segment in full
        if (count := segment.count(text)) > segment.length
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
        warnings=(
            *warnings,
            *([f"not looked for, as no token is left for them: {', '.join(map(repr, unseen))}"] if unseen else []),
        ),
        entities=tuple(entities),
        alternatives={i: tuple(found) for i, found in words.items() if apart and len(found) > 1},
    )


def fits(text: str, segments: Sequence[TextSegment]) -> bool:
    """Whether no segment cuts the text."""
    return all(segment.count(text) <= segment.length for segment in segments)


def _belongs(token: Token, entity: Entity, text: str) -> bool:
    """Whether a token's characters are an entity's; a comma that the tokenizer joined to a word may stand beside them."""
    if entity.start <= token.start < token.end <= entity.end:
        return True
    inside = text[max(token.start, entity.start) : min(token.end, entity.end)]
    outside = text[token.start : entity.start] + text[entity.end : token.end]
    return any(map(str.isalnum, inside)) and _BETWEEN.issuperset(outside)
