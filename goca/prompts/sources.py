"""Sources of prompts: where the words for an image come from. Each is called as `source(sample, table, segments)`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from goca.data.base import Sample, SegmentationDataset
from goca.data.classes import ClassTable
from goca.errors import ConfigError, DataError
from goca.prompts.align import align
from goca.prompts.caption import SEPARATOR, parse, split, tidy
from goca.prompts.files import image_key, read_captions, read_folder
from goca.prompts.filters import Filters, need_labels, present_classes
from goca.prompts.pictures import check_one, check_picture, read_pictures
from goca.prompts.prompt import Across, Prompt, TextSegment
from goca.prompts.sentence import BACKGROUND, check_names, check_text, from_sentence, is_caption, note, speaks_of_background
from goca.prompts.words import names_prompt, names_prompts, words_of

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class PromptSource(Protocol):
    """What the segmentor needs of a source."""

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """Read files and check that they cover the images; called once, before a model is loaded.

        Args:
            image_ids: the images of the data set that will be asked for; None stands for all of them.
        """

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        """Prompts for an image, one forward each; none where there is nothing to look for."""

    def describe(self) -> dict[str, Any]:
        """The source and its options, for the results."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Classes:
    """The names of the classes in the label (an oracle), or of all classes.

    An image without any class has no prompt: there is nothing to look for in it.

    Args:
        names: `present` in the label, or `all`, as `Vocabulary`; presets that word prompts have the same switch.
        background_token: append ", background" to each prompt.
    """

    names: Literal["present", "all"] = "present"
    background_token: bool = False

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """Nothing to read; raises DataError where no image has the label that the words come from."""
        if self.names == "present":
            need_labels(dataset, image_ids, "prompts=classes")

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        if self.names == "all":
            return Vocabulary(background_token=self.background_token)(sample, table, segments)
        words = words_of(present_classes(sample), table)
        if table.asked:  # several words for a class may not fit into one prompt
            return names_prompts(words, (), segments, self.background_token)
        return (names_prompt(words, segments, self.background_token),) if words else ()

    def describe(self) -> dict[str, Any]:
        if self.names == "all":
            return Vocabulary(background_token=self.background_token).describe()
        return {"source": "classes", "ground_truth": True, "background_token": self.background_token}


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Vocabulary:
    """All class names of the data set, or a chosen list, in as few prompts as the token limit allows.

    Args:
        words: class names or synonyms of the data set; None takes every class.
        background_words: ask for the data set's words for the background too, where it is a class: its score is their maximum.
        background_token: append ", background" to each prompt.
        across: what several prompts share (`goca.method.across`); a single one is as it is in any case.
    """

    words: tuple[str, ...] | None = None
    background_words: bool = True
    background_token: bool = False
    across: Across = "sink"

    def __post_init__(self) -> None:
        if self.across == "anchor" and not self.background_token:
            raise ValueError("across=anchor measures every prompt by a word that all have: set background_token=true")

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        self._ids(dataset.classes)

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        """The same prompts for every image.

        Raises:
            ConfigError: for a word that is not a class of the data set, or that the tokenizer cannot express.
        """
        ids = self._ids(table)
        background = table.background_words if self.background_words else ()
        prompts = names_prompts(words_of(ids, table), background, segments, self.background_token)
        found = {class_id for prompt in prompts for class_id in prompt.class_tokens}
        if lost := [table.words(class_id)[0] for class_id in ids if class_id not in found]:
            raise ConfigError(f"the tokenizer has no usable token for {', '.join(map(repr, lost))}; use another word for it")
        return tuple(replace(prompt, across=self.across) for prompt in prompts)

    def describe(self) -> dict[str, Any]:
        return {"source": "vocabulary", "ground_truth": False, **asdict(self)}

    def _ids(self, table: ClassTable) -> tuple[int, ...]:
        if self.words is None:
            return tuple(i for i in range(1, len(table)) if table.words(i))
        found = {word: table.class_named(word) for word in self.words}
        if unknown := [word for word, class_id in found.items() if class_id is None]:
            words, names = ", ".join(map(repr, unknown)), ", ".join(table.names[1:])
            raise ConfigError(f"prompts.words: {words} is not a class of this data set, which has {names}")
        return tuple(dict.fromkeys(class_id for class_id in found.values() if class_id is not None))


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Captions(Filters):
    """Shared by all sources that look an image's caption up.

    Args:
        on_missing: for images without a caption: stop before the run, use the names of the classes in the label, or leave the
            image out.
    """

    on_missing: Literal["error", "classes", "skip"] = "error"

    @property
    def captions(self) -> Mapping[str, str]:
        """Image id (as `image_key` writes it) -> caption."""
        raise NotImplementedError

    @property
    def pictures(self) -> Mapping[str, str]:
        """Image id (as `image_key` writes it) -> hash of the picture that its caption was given for, where that is known."""
        return {}

    @property
    def origin(self) -> str:
        """Where the captions come from, for messages."""
        raise NotImplementedError

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        """Read the captions and check that they cover the images.

        Raises:
            DataError: for a file that cannot be read, or for images without a caption where on_missing=error.
            ConfigError: the captions were given for other pictures of these names; one picture is looked at here, each of the
                others when its prompt is made.
        """
        for option in ("ground_truth", "add_missing"):
            if getattr(self, option):
                need_labels(dataset, image_ids, f"prompts.{option}")
        wanted = dataset.image_ids if image_ids is None else image_ids
        missing = [image_id for image_id in wanted if image_key(image_id) not in self.captions]
        if missing and self.on_missing == "error":
            some = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise DataError(
                f"{self.origin} has no caption for {len(missing)} of {len(wanted)} images ({some}); "
                "complete it, or set prompts.on_missing to classes or skip"
            )
        check_one(self.origin, self.pictures, dataset, wanted)

    def __call__(self, sample: Sample | None, table: ClassTable, segments: Sequence[TextSegment]) -> tuple[Prompt, ...]:
        """One prompt; none for an image that has no caption, or no class in its label, to make one of."""
        if sample is None:
            raise ConfigError(f"captions from {self.origin} belong to images of a data set; give the caption itself instead")
        caption = self.caption_of(sample)
        if caption is not None:
            return (self.prompt(caption, sample, table, segments),)
        if self.on_missing == "error":
            raise DataError(f"{self.origin} has no caption for image {sample.image_id!r}")
        return Classes(background_token=self.background_token)(sample, table, segments) if self.on_missing == "classes" else ()

    def caption_of(self, sample: Sample) -> str | None:
        """The caption of an image; None where there is none.

        Raises:
            ConfigError: it was given for another picture of that name.
        """
        check_picture(self.origin, self.pictures, sample)
        return self.captions.get(image_key(sample.image_id))

    def leaves_out(self, image_id: str) -> bool:
        """Whether an image takes no part in the numbers: it has no caption, and on_missing is skip."""
        return self.on_missing == "skip" and image_key(image_id) not in self.captions

    def describe(self) -> dict[str, Any]:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return {"source": type(self).__name__.lower(), **options}


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Published(Captions):
    """Captions from a file: the authors' JSON ({file name: {"caption": text}}) or JSONL written by `python -m goca.caption`.

    Args:
        path: the file.
    """

    path: Path
    tidy: bool = False  # published captions are part of the published numbers

    @cached_property
    def captions(self) -> Mapping[str, str]:
        return read_captions(self.path)

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        return read_pictures(self.path)

    @property
    def origin(self) -> str:
        return str(self.path)


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class Folder(Captions):
    """One text file per image, named like the image.

    Args:
        path: the folder.
        extension: ending of the caption files.
    """

    path: Path
    extension: str = ".txt"

    @cached_property
    def captions(self) -> Mapping[str, str]:
        return read_folder(self.path, self.extension)

    @property
    def origin(self) -> str:
        return str(self.path)


def from_text(
    caption: str, segments: Sequence[TextSegment], classes: Sequence[str] | None = None
) -> tuple[ClassTable, tuple[Prompt, ...]]:
    """A prompt from a caption written by hand: every noun or group becomes a class, named by its first word.

    A text without commas and brackets is a sentence, whose content words become the classes; the prompt's warnings say so.

    Args:
        classes: names the caption is matched with; other words then belong to the background.

    Raises:
        ConfigError: there is nothing to look for, or a bracket is not closed.
    """
    caption = tidy(check_text(caption))
    if classes is None and not is_caption(caption):
        if speaks_of_background(caption):  # of a text that says what to look for, unlike one that describes a picture
            check_names([BACKGROUND])
        table, prompt = from_sentence(caption, segments)
        said = (note(table),) if len(table) > 2 else ()
        return table, (replace(prompt, warnings=(*said, *prompt.warnings)),)
    if classes is None:
        # The first word of every part, as `parse` reads it: without brackets, wherever they stand.
        parts = [re.sub("[()]", "", part) for part in split(caption.removesuffix(".").lower())]
        classes = [part.split(SEPARATOR)[0] for part in parts]
    table = ClassTable.from_names(check_names(classes))
    return table, (align(parse(caption, table), segments),)


def from_names(names: Sequence[str], segments: Sequence[TextSegment]) -> tuple[ClassTable, tuple[Prompt, ...]]:
    """Prompts that list the given class names.

    Raises:
        ConfigError: there are none, or one cannot be looked for.
    """
    table = ClassTable.from_names(check_names(names))
    return table, Vocabulary()(None, table, segments)
