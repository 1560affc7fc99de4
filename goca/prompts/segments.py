"""Stretches of the text axis: which characters of the prompt each of its positions stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from goca.errors import ModelError

_GAP = 8  # characters that may lie between two pieces of a text: spaces, or letters that became bytes


class Token(NamedTuple):
    """One position of the text axis: the characters [start, end) of the prompt, or the kind of special token it is."""

    start: int
    end: int
    label: str
    kind: str | None = None  # start, end, padding, template
    unknown: bool = False


class _Row(NamedTuple):
    """A token as the tokenizer gives it; offsets count in the text that it was given."""

    token_id: int
    name: str
    start: int
    end: int
    special: bool
    real: bool  # no padding


@dataclass(frozen=True)
class TextSegment:
    """A stretch of the attention's text axis that one tokenizer fills with the bare prompt.

    Args:
        tokenizer: a fast tokenizer (only these know character offsets).
        length: padded length in tokens, special tokens included.
        start: first position on the text axis.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int
    start: int = 0

    def tokens(self, text: str) -> list[Token]:
        """The segment's positions, padded and truncated exactly as the backbone encodes the text: `length` of them.

        Raises:
            ModelError: a tokenizer without character offsets.
        """
        return [self._token(row, text, 0) for row in self._encode(text, self.length)]

    def ids(self, text: str) -> list[int]:
        """Token ids as they enter the text encoder, before any are left out."""
        return [row.token_id for row in self._encode(text, self.length)]

    def count(self, text: str) -> int:
        """Tokens of the text before any limit, special tokens included."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    @property
    def _options(self) -> dict[str, Any]:
        return {}

    def _encode(self, text: str, length: int) -> Iterator[_Row]:
        return self._encoded(text, {"padding": "max_length", "truncation": True, "max_length": length, **self._options})

    def _encoded(self, text: str, options: dict[str, Any]) -> Iterator[_Row]:
        encodings = self.tokenizer(text, **options).encodings
        if encodings is None:
            name = type(self.tokenizer).__name__
            raise ModelError(f"{name} is a slow tokenizer and gives no character offsets; load its fast version")
        (one,) = encodings
        columns = (one.ids, one.tokens, one.offsets, one.special_tokens_mask, one.attention_mask)
        for token_id, name, (start, end), special, real in zip(*columns, strict=True):
            yield _Row(token_id, name, start, end, bool(special), bool(real))

    def _token(self, row: _Row, text: str, first: int) -> Token:
        """A row whose offsets count from `first`, the place of the prompt in what the tokenizer was given."""
        if row.special or not row.real:
            if not row.real:
                return Token(0, 0, row.name, "padding")
            openings = (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id)
            return Token(0, 0, row.name, "start" if row.token_id in openings else "end")
        start, end = max(row.start - first, 0), min(row.end - first, len(text))
        while start < end and text[start].isspace():  # sentencepiece counts the space before a word as part of it
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        # A lone "▁" (sentencepiece's space) claims the first character of the word after it.
        unknown = row.token_id == self.tokenizer.unk_token_id or row.name.strip("▁") == ""
        return Token(start, end, text[start:end] or row.name, unknown=unknown)


@dataclass(frozen=True)
class TemplateSegment(TextSegment):
    """A stretch that is filled with the prompt inside a template: a chat's turns, a system message, an instruction.

    Tokens outside the prompt are special tokens of the kind `template`, and so is one that holds characters of both.

    Args:
        render: the prompt -> the whole text that the pipeline gives to the tokenizer.
        encoded: padded length of the whole text in tokens; 0 is `length`.
        kept: positions of the encoded text that lie on the text axis, in their order; empty: the first `length`.
        compact: the pipeline takes real tokens alone, so that padding, wherever it was, comes after them.
        bare: the tokenizer adds no special tokens of its own, as the template writes them.
        lower: the pipeline lower-cases the prompt, and it alone.
        side: on which the pipeline pads, where it does not ask the tokenizer.

    >>> import string
    >>> from goca.scenes.tokenizer import small_t5_tokenizer
    >>> segment = TemplateSegment(small_t5_tokenizer(), 4, render=lambda text: f"on {text} grass", kept=range(1, 5))
    >>> [(token.label, token.kind) for token in segment.tokens("moon")]
    [('moon', None), ('▁grass', 'template'), ('</s>', 'end'), ('<pad>', 'padding')]
    """

    render: Callable[[str], str] = str
    encoded: int = 0
    kept: Sequence[int] = ()
    compact: bool = False
    bare: bool = False
    lower: bool = False
    side: Literal["left", "right"] | None = None

    def tokens(self, text: str) -> list[Token]:
        if self.lower:  # lower case can have more letters
            places = [place for place, letter in enumerate(text) for _ in letter.lower()]
            tokens = replace(self, lower=False).tokens(text.lower())
            return [token._replace(**_moved(token, places, text)) if token.kind is None else token for token in tokens]
        first = self._place(text)
        rows = self._rendered(text)
        if self.compact:
            rows.sort(key=lambda row: not row.real)
        kept = self.kept or range(self.length)
        return [self._placed(rows[position], text, first) for position in kept]

    def ids(self, text: str) -> list[int]:
        text = text.lower() if self.lower else text
        return [row.token_id for row in self._rendered(text)]

    def _rendered(self, text: str) -> list[_Row]:
        """Every token of the template with the prompt in it, padding included."""
        return list(self._encode(self.render(text), self._padded))

    def count(self, text: str) -> int:
        """Tokens of the text and of what is kept of its template, before any limit."""
        whole = len(self.tokenizer(self.render(text), verbose=False, add_special_tokens=not self.bare)["input_ids"])
        return whole - (self._padded - self.length)

    @property
    def _options(self) -> dict[str, Any]:
        side = {"padding_side": self.side} if self.side else {}
        return {**side, "add_special_tokens": False} if self.bare else side

    @property
    def _padded(self) -> int:
        return self.encoded or (max(self.kept) + 1 if self.kept else self.length)

    def _place(self, text: str) -> int:
        """Where the prompt begins in the rendered text; negative where the template strips leading spaces off."""
        mark = "\ue000"  # for private use: no template has it
        before, found, _ = self.render(mark).partition(mark)
        stripped = text.strip()
        leading = len(text) - len(text.lstrip())
        rendered = self.render(text)
        for first in (len(before), len(before) - leading):
            if found and rendered.startswith(stripped, first + leading):
                return first
        raise ModelError("the pipeline's template does not hold the prompt as it is written, so its words cannot be located")

    def _placed(self, row: _Row, text: str, first: int) -> Token:
        outside = row.end <= first or row.start >= first + len(text)
        if row.real and not row.special and (outside or self._straddles(row, text, first)):
            return Token(0, 0, row.name, "template")
        return self._token(row, text, first)

    def _straddles(self, row: _Row, text: str, first: int) -> bool:
        """Whether characters of the template other than spaces are in the token."""
        rendered = self.render(text)
        beside = rendered[row.start : min(row.end, first)] + rendered[max(row.start, first + len(text)) : row.end]
        return bool(beside.strip())


@dataclass(frozen=True)
class SuffixSegment(TemplateSegment):
    """A template whose end is tokenized apart and comes after the padding.

    Args:
        suffix: that end.

    >>> from goca.scenes.tokenizer import small_t5_tokenizer
    >>> segment = SuffixSegment(small_t5_tokenizer(), 5, encoded=3, kept=range(5), suffix="grass")
    >>> [(token.label, token.kind) for token in segment.tokens("moon")]
    [('moon', None), ('</s>', 'end'), ('<pad>', 'padding'), ('▁grass', 'template'), ('</s>', 'end')]
    """

    suffix: str = ""

    def _rendered(self, text: str) -> list[_Row]:
        outside = len(self.render(text))
        ends = (row._replace(start=outside, end=outside) for row in self._encoded(self.suffix, self._options))
        return [*super()._rendered(text), *ends]


def _moved(token: Token, places: Sequence[int], text: str) -> dict[str, Any]:
    """A token of the lower-cased text on the characters that it was made of."""
    if token.start == token.end:
        return {}
    start, end = places[token.start], places[token.end - 1] + 1
    return {"start": start, "end": end, "label": text[start:end]}


@dataclass(frozen=True)
class PiecesSegment(TextSegment):
    """A stretch whose text the pipeline cuts into pieces that are tokenized one by one, such as quoted words by letter.

    Args:
        split: prompt -> its pieces, which joined are the prompt.
    """

    split: Callable[[str], Sequence[str]] = lambda text: [text]

    def tokens(self, text: str) -> list[Token]:
        rows = self._rows(text)[: self.length]
        padding = [Token(0, 0, str(self.tokenizer.pad_token), "padding")] * (self.length - len(rows))
        words = [self._token(row, text, 0) for row in rows]
        return [*padding, *words] if self.tokenizer.padding_side == "left" else [*words, *padding]

    def ids(self, text: str) -> list[int]:
        rows = [row.token_id for row in self._rows(text)[: self.length]]
        padding = [self.tokenizer.pad_token_id] * (self.length - len(rows))
        return [*padding, *rows] if self.tokenizer.padding_side == "left" else [*rows, *padding]

    def count(self, text: str) -> int:
        return len(self._rows(text))

    def _rows(self, text: str) -> list[_Row]:
        rows: list[_Row] = []
        first = 0
        for piece in self.split(text):
            for row in self._encoded(piece, {"add_special_tokens": False}):
                rows.append(row._replace(start=row.start + first, end=row.end + first))
            first += len(piece)
        return rows


@dataclass(frozen=True)
class DecodedSegment(TextSegment):
    """A stretch of a slow sentencepiece tokenizer: its pieces, one after the other, are looked up in the text.

    A piece that is not found, as the tokenizer's normalisation may have changed it, belongs to no word.
    """

    def tokens(self, text: str) -> list[Token]:
        ids = self.ids(text)
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        special = {self.tokenizer.convert_tokens_to_ids(mark) for mark in ("[gMASK]", "sop")}
        cursor, found = 0, []
        for token_id, piece in zip(ids, pieces, strict=True):
            if token_id == self.tokenizer.pad_token_id:
                found.append(Token(0, 0, str(self.tokenizer.pad_token), "padding"))
            elif token_id in special:
                found.append(Token(0, 0, piece, "start"))
            else:
                token = _matched(piece, text, cursor)
                cursor = max(cursor, token.end)
                found.append(token)
        return found

    def ids(self, text: str) -> list[int]:
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self.length}
        return list(self.tokenizer(text, **options)["input_ids"])


def _matched(piece: str, text: str, cursor: int) -> Token:
    """A sentencepiece token at its characters, which begin at or soon after `cursor`."""
    word = piece.replace("▁", " ").strip()
    start = text.find(word, cursor, cursor + len(word) + _GAP) if word else -1
    if start < 0:  # a lone space, or a byte of a letter that has no piece
        return Token(cursor, cursor, piece, unknown=True)
    return Token(start, start + len(word), word)
