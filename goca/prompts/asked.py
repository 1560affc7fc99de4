"""Captions that a model is asked for, one line of JSONL per image, written as the answer arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from threading import Event

import numpy as np
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass

from goca.data.base import SegmentationDataset
from goca.errors import ConfigError, DataError, ModelError
from goca.prompts.answers import Answer, AnswerFile, Status, usage
from goca.prompts.files import image_key, read_captions
from goca.prompts.pictures import check_one, check_picture, picture_hash, read_pictures
from goca.prompts.sources import Captions

MAX_MALFORMED = (
    3  # so many answers of another form than asked for, and none of the right one, end a run: each may be charged for
)
MAX_FAILURES = 20  # consecutive images without an answer that end a run: the cause is not the image


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Asked(Captions):
    """Shared by all sources that ask a model; `python -m goca.caption` fills the file, a segmentation run reads it.

    Args:
        path: the JSONL file of answers. One file holds one model and one instruction.
        model: name or path of the model.
        instruction: template of the request; `{max_words}` and `{classes}` are filled in per data set.
        max_words: how many words a caption may have; or this by name of the data set, with "default" for all others.
        workers: requests under way at the same time.
        ask_again: ask once more for images whose answer was refused, empty or malformed.
    """

    path: Path
    model: str
    instruction: str
    max_words: PositiveInt | dict[str, PositiveInt] = 20
    workers: PositiveInt = 1
    ask_again: bool = False

    def load(self) -> None:
        """Find out what would fail for every image: a missing key, missing weights.

        Raises:
            ConfigError, ModelError
        """
        raise NotImplementedError

    def ask(self, image: np.ndarray, request: str) -> Answer:
        """The model's answer for an (H, W, 3) uint8 RGB image; called from several threads.

        Raises:
            DataError: for an image that gets no answer, where others may.
            ConfigError, ModelError: where no image would get an answer.
        """
        raise NotImplementedError

    def is_settled(self, status: Status) -> bool:
        """Whether an image with such an answer is not asked for again."""
        return status == "ok" or not self.ask_again

    @cached_property
    def captions(self) -> Mapping[str, str]:
        return read_captions(self.path)

    @cached_property
    def pictures(self) -> Mapping[str, str]:
        return read_pictures(self.path)

    @property
    def origin(self) -> str:
        return str(self.path)

    def setup(self, dataset: SegmentationDataset, image_ids: Sequence[str] | None = None) -> None:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no captions yet; write them with `python -m goca.caption` and the same options")
        super().setup(dataset, image_ids)

    def usage(self) -> dict[str, float]:
        """What the file of answers holds: answers by status, and tokens."""
        return dict(usage(self.path))

    def request(self, dataset: SegmentationDataset) -> str:
        """The instruction for a data set.

        Raises:
            ConfigError: for a template with an unknown field, or a data set without a word limit.
        """
        words = ", ".join(dict.fromkeys(synonyms[0] for synonyms in dataset.classes.synonyms if synonyms))
        limit = self.max_words
        if isinstance(limit, dict):
            usual = limit.get(dataset.table_name, limit.get("default", 0))  # context60 has the words of context
            limit = limit.get(dataset.name, usual)
        if not limit:
            raise ConfigError(f"prompts.max_words has neither {dataset.name!r} nor 'default'")
        try:
            return self.instruction.format(max_words=limit, classes=words)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(f"prompts.instruction: {error}; only {{max_words}} and {{classes}} are filled in") from None


def ask_all(
    source: Asked,
    dataset: SegmentationDataset,
    indices: Sequence[int],
    advance: Callable[[int], None] = lambda images: None,
) -> dict[str, str]:
    """Ask for every image that has no answer yet; what was answered before is neither lost nor asked for again.

    Interrupted, it starts no further request, waits for those under way, which may be charged for, and writes their answers.

    Before anything is asked, one of the images that have an answer is compared with the picture the answer was given for, and
    so is each that is asked about again. The others are where they are read (`Captions.caption_of`), at no cost of decoding.

    Args:
        indices: positions of the images in the data set.
        advance: told how many images are done, first with those of earlier runs.

    Returns:
        Image id -> reason, for images that got no answer; they are not recorded, so the next run asks for them.

    Raises:
        DataError, ConfigError, ModelError: where going on makes no sense; the file is that of other pictures.
    """
    request = source.request(dataset)
    with AnswerFile(source.path, source.model, request).open() as answers:
        done = {key for key, status in answers.answered.items() if source.is_settled(status)}
        pending = [i for i in indices if image_key(dataset.image_ids[i]) not in done]
        advance(len(indices) - len(pending))
        if not pending:
            return {}
        check_one(source.path, answers.pictures, dataset, [dataset.image_ids[i] for i in indices])
        source.load()
        stop = Event()

        def answer(index: int) -> Answer | None:
            if stop.is_set():
                return None
            sample = dataset[index]
            check_picture(source.path, answers.pictures, sample)
            answered = source.ask(sample.image, request)
            answers.append(sample.image_id, answered, picture_hash(sample.image))
            return answered

        failures: dict[str, str] = {}
        statuses: list[Status] = []
        in_a_row = 0
        with ThreadPoolExecutor(source.workers) as pool:
            try:
                images = {pool.submit(answer, index): dataset.image_ids[index] for index in pending}
                for future in as_completed(images):
                    try:
                        answered = future.result()
                        in_a_row = 0
                        statuses += [answered.status] if answered else []
                        if answered and statuses == ["malformed"] * MAX_MALFORMED:
                            raise ModelError(
                                f"{source.model} does not answer in the form it was asked for, but: {answered.detail[:80]!r}. "
                                "If it can only answer in plain text, set prompts.structured=false: "
                                f"the same command with it continues {source.path}"
                            )
                    except DataError as error:
                        failures[images[future]] = str(error)
                        in_a_row += 1
                        if in_a_row == MAX_FAILURES:
                            raise ModelError(
                                f"{in_a_row} images in a row got no answer, the last one because: {error}"
                            ) from None
                    advance(1)
            except BaseException:
                stop.set()
                raise
    return failures
