"""The file of a captioning run: one JSON record per line, on the disk before the next image is asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from filelock import FileLock, Timeout

from goca.disk import Journal
from goca.errors import ConfigError, DataError
from goca.prompts.files import image_key, read_jsonl
from goca.prompts.pictures import FIELD

Status = Literal["ok", "refused", "empty", "malformed"]


@dataclass(frozen=True)
class Answer:
    """What a model said about an image.

    Args:
        caption: nouns and groups joined by commas; None unless the status is "ok".
        detail: the refusal, or the text that was not a caption.
        input_tokens, output_tokens: what the answer is charged for, where known.
        scores: of every class name, from a classifier.
    """

    caption: str | None
    status: Status = "ok"
    detail: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    scores: Mapping[str, float] | None = None

    @classmethod
    def of_text(cls, text: str, input_tokens: int = 0, output_tokens: int = 0) -> Answer:
        """An answer that is the caption itself: the first line that says something, without quotes.

        >>> Answer.of_text('"cat, grass"').caption
        'cat, grass'
        """
        lines = (line.strip(" \t\"'`*") for line in text.splitlines())
        caption = next((line for line in lines if any(map(str.isalnum, line))), None)
        return cls(caption, "ok" if caption else "empty", "", input_tokens, output_tokens)


def usage(path: Path) -> dict[str, int]:
    """Answers by status, and the tokens of all of them together."""
    rows = [row for _, row in read_jsonl(path)]
    counts = Counter(row["status"] for row in rows)
    return dict(counts) | {name: sum(row[name] for row in rows) for name in ("input_tokens", "output_tokens")}


class AnswerFile:
    """The answers of one model to one request. Appending is durable, and done by one process at a time.

    Args:
        path: the JSONL file, made with its folder where absent.
        model: recorded with every answer, as is a hash of the request.
        request: the full text that is sent with each image.

    Attributes:
        answered: image key -> status of its latest answer.
        pictures: image key -> hash of the picture that was asked about, where the file says so.
    """

    def __init__(self, path: Path, model: str, request: str) -> None:
        self.path, self.model = path, model
        self.prompt_hash = hashlib.sha256(request.encode()).hexdigest()[:12]
        self.answered: dict[str, Status] = {}
        self.pictures: dict[str, str] = {}
        self._writing = Lock()
        self._journal: Journal

    @contextmanager
    def open(self) -> Iterator[AnswerFile]:
        """Lock the file, read what has been answered and drop a last line that a killed run left unfinished.

        Raises:
            DataError: where another process writes the file, or its lines are no answers.
            ConfigError: where it was written by another model or request.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.path}.lock", timeout=0):
                self.path.touch()
                for number, row in read_jsonl(self.path):
                    self._remember(number, row)
                with closing(Journal(self.path)) as self._journal:
                    yield self
        except Timeout:
            raise DataError(f"{self.path}: another captioning run is writing this file; choose another prompts.path") from None

    def append(self, image_id: str, answer: Answer, picture: str | None = None) -> None:
        """Write one answer; it is on the disk when this returns. Safe to call from several threads.

        Args:
            picture: `picture_hash` of what was asked about.
        """
        record = {
            "image_id": image_id,
            **{key: value for key, value in asdict(answer).items() if key != "scores" or value is not None},
            "model": self.model,
            "prompt_hash": self.prompt_hash,
            **({FIELD: picture} if picture else {}),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._writing:
            self._journal.append(record)
            self._journal.sync()
            self.answered[image_key(image_id)] = answer.status

    def _remember(self, number: int, row: Any) -> None:
        try:
            image_id, status, model, prompt_hash = (row[key] for key in ("image_id", "status", "model", "prompt_hash"))
        except (TypeError, KeyError):
            raise DataError(f"{self.path}, line {number}: no record of goca.caption; choose another prompts.path") from None
        if (model, prompt_hash) != (self.model, self.prompt_hash):
            raise ConfigError(
                f"{self.path}, line {number}: written by model {model} with request {prompt_hash}; this run has "
                f"model {self.model} and request {self.prompt_hash}. Choose another prompts.path"
            )
        self.answered[image_key(image_id)] = status
        if isinstance(row.get(FIELD), str):
            self.pictures[image_key(image_id)] = row[FIELD]
