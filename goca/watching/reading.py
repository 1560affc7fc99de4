"""What is added up about one text while a pipeline draws: the prompt, the negative prompt, or other words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from goca.attention.call import AttentionCall
from goca.attention.running import RunningStatistics
from goca.data.classes import ClassTable
from goca.errors import ConfigError, ModelError
from goca.prompts import Prompt, TextSegment
from goca.prompts.align import align
from goca.prompts.caption import BACKGROUND
from goca.prompts.sentence import from_sentence, is_caption

_NAME = 2  # words that an entry of a list may have to be one name

Read = tuple[ClassTable, Prompt]


@dataclass
class Reading:
    """One text per picture, and the sums of what attention showed of it.

    Args:
        texts: one for every picture.
        statistics: the sums.
        segments: how texts lie on the text axis, from the number of its positions; called once attention has been seen.
        keys_of: the call with the keys of other words in place of the prompt's; None reads the prompt itself.
    """

    texts: Sequence[str]
    statistics: RunningStatistics
    segments: Callable[[int], tuple[TextSegment, ...]]
    keys_of: Callable[[AttentionCall], AttentionCall] | None = None
    _read: dict[str, Read | ConfigError] = field(default_factory=dict)
    _segments: tuple[TextSegment, ...] = ()

    def observe(self, call: AttentionCall) -> None:
        """Add one call of an evaluation; the first one with text says how long the text axis is."""
        if self.keys_of is not None:
            call = self.keys_of(call)
        if not self._read and call.text is not None:
            self._align(call.text_axis or len(range(*call.text.indices(call.keys))))
        self.statistics.observe(call)

    def _align(self, keys: int) -> None:
        self._segments = self.segments(keys)
        longest = max(segment.start + segment.length for segment in self._segments)
        if longest > keys:
            raise ModelError(
                f"attention has {keys} positions for text where the tokenizer gives {longest}: the words of the prompt cannot "
                "be told from its embeddings, so let the pipeline encode it"
            )
        for text in dict.fromkeys(self.texts):
            try:
                self._read[text] = from_sentence(text, self._segments, names_in(text))
            except ConfigError as error:  # no words, as in most negative prompts: said when one is asked for
                self._read[text] = error
        prompts = [read[1] for read in self._read.values() if not isinstance(read, ConfigError)]
        self.statistics.positions = sorted({position for prompt in prompts for position in prompt.content})

    def words_of(self, picture: int, words: Sequence[str] = ()) -> Read:
        """Names and positions of the words of a picture's text, or of those that are named.

        Raises:
            ConfigError: there are none, or the text does not contain one.
        """
        text = self.texts[picture]
        if words:
            return from_sentence(text, self._segments, words)
        found = self._read[text]
        if isinstance(found, ConfigError):
            raise found
        return found

    def tokens_of(self, picture: int) -> tuple[str, ...]:
        """A readable string for every position of the text axis, of a text without words too."""
        return align([], self._segments, self.texts[picture]).tokens


def names_in(text: str) -> tuple[str, ...]:
    """The names of a list such as "hot dog, grass"; none of a sentence, whose content words stand for themselves.

    What is drawn behind everything is no name: nobody asked for it.

    >>> names_in("(person, clothes), hot dog"), names_in("a cat on the grass, highly detailed"), names_in("cat, background")
    (('person', 'clothes', 'hot dog'), (), ('cat',))
    """
    names = [name.strip() for name in re.split(r"[,()（），、]", text) if any(map(str.isalnum, name))]
    listed = is_caption(text) and all(len(name.split()) <= _NAME for name in names)
    return tuple(name for name in names if name.lower() != BACKGROUND) if listed else ()
