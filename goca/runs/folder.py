"""The run folder: one record per image, appended as it is done, and a summary that is a function of the records alone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from goca.config.identity import difference
from goca.disk import Journal, read_journal, replacing
from goca.errors import ConfigError, DataError, OutputError
from goca.runs.labels import LabelMaps
from goca.runs.parquet import write_parquet
from goca.runs.records import Facts, ImageRecord, Summary
from goca.runs.summary import summarize

_SHOWN = 3  # image ids in a message
_FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class RunFolder:
    """Where one run leaves what it found. Making the object touches nothing.

    config.yaml      the composed configuration
    run.json         what was evaluated, with what: data set, classes, thresholds, checkpoint, versions
    records.jsonl    one line per image; with several processes also records.1.jsonl, records.2.jsonl ...
    records.parquet  the same as a table, written at the end
    summary.json     the numbers: a function of run.json and the records
    figures/         pictures
    drawn/           what the figures of the first images are drawn from
    predictions/     label maps, where they are wanted

    Args:
        path: the folder.
        process: rank of the process that appends.
        colours: of the classes, for label maps.
    """

    def __init__(self, path: str | Path, process: int = 0, colours: Sequence[tuple[int, int, int]] = ()) -> None:
        self.path, self.process = Path(path), process
        self.labels = LabelMaps(self.path / "predictions", colours)
        self._done: frozenset[str] = frozenset()
        self._journal: Journal | None = None
        self._lock: int | None = None

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def drawn(self) -> Path:
        return self.path / "drawn"

    # -------------------------------------------------------------------------------------------------------- writing
    def claim(self, config: Mapping[str, Any]) -> None:
        """Make the folder this run's own, or continue what is in it.

        Args:
            config: the composed configuration, as plain data.

        Raises:
            ConfigError: the folder cannot be written to, another process writes to it, or it holds records of another
                configuration.
        """
        try:
            self.figures.mkdir(parents=True, exist_ok=True)
            if self.process == 0:
                self._lock = _lock(self.path)
        except OSError as error:
            why = error.strerror
            raise ConfigError(f"the output folder {self.path} cannot be written to ({why}); set paths.output") from error
        if (self.path / "config.yaml").is_file():
            self._refuse(difference(self.config(), config), "another configuration")
        elif self._journals():
            raise ConfigError(f"{self.path} holds records but no config.yaml that explains them; give output another folder")
        elif self.process == 0:
            self._write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        self._done = frozenset(record.image_id for record in self.records() if not record.error)

    def check_inputs(self, now: Mapping[str, Any], image_ids: Collection[str], records: Sequence[ImageRecord]) -> None:
        """Refuse to go on with records of other pictures, words or weights.

        Args:
            now: what the run would read, by `goca.runs.inputs.inputs`.
            image_ids: of the run's images.
            records: those of this folder.

        Raises:
            ConfigError: naming what differs.
        """
        if not self._journals() or not (self.path / "run.json").is_file():
            return
        failed = {record.image_id for record in records if record.error}
        differing = self.facts().other_inputs(now, failed)
        if strangers := [record.image_id for record in records if record.image_id not in image_ids]:
            differing["recorded images"] = (", ".join(strangers[:_SHOWN]), None)
        self._refuse(differing, "another checkpoint or data set, or of other words")

    def begin(self, facts: Facts) -> None:
        """Write down what is evaluated, with what; DataError where earlier records come from another checkpoint or data set."""
        if (self.path / "run.json").is_file():
            decisive = ("checkpoint_hash", "dtype", "classes", "thresholds", "has_background", "total_images")
            earlier = self.facts()
            changed = {key: (earlier.get(key), facts.get(key)) for key in decisive if earlier.get(key) != facts.get(key)}
            self._refuse(changed if self._journals() else {}, "another checkpoint or data set")
        self.write_json("run.json", facts.json)

    def append(self, record: ImageRecord) -> None:
        """Add one image's record, unless a run that this one continues has recorded it; see `Journal.append`."""
        if record.image_id in self._done:
            return
        if self._journal is None:
            self._journal = Journal(self.path / (f"records.{self.process}.jsonl" if self.process else "records.jsonl"))
        self._journal.append(record.json)

    def close(self) -> None:
        """Have the records on the disk, and let others write to the folder."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_json(self, name: str, content: Any) -> Path:
        return self._write(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def conclude(self, image_ids: Sequence[str] = ()) -> Summary:
        """Write summary and table from what the folder holds; returns the summary.

        Raises:
            DataError: one of these images has no record: numbers of a part would pass for those of the whole.
        """
        records = self.records()
        recorded = {record.image_id for record in records}
        if missing := [image_id for image_id in image_ids if image_id not in recorded]:
            raise DataError(
                f"{len(missing)} of {len(image_ids)} images have no record (the first is {missing[0]}): the trainer stopped "
                "before them; without options such as trainer.limit_predict_batches, the same command with "
                f"output={self.path} continues"
            )
        summary = summarize(self.facts(), records)
        self.write_json("summary.json", summary.json)
        write_parquet(records, self.path / "records.parquet")
        return summary

    def _write(self, name: str, text: str) -> Path:
        path = self.path / name
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
        return path

    def _refuse(self, changed: Mapping[str, tuple[Any, Any]], what: str) -> None:
        if changed:
            lines = [f"  {key}: {_short(before)} -> {_short(now)}" for key, (before, now) in changed.items()]
            raise ConfigError(
                f"{self.path} holds a run of {what}; continuing it would mix two kinds of numbers:\n"
                + "\n".join(lines)
                + "\nGive the settings it was begun with, or output another folder"
            )

    # -------------------------------------------------------------------------------------------------------- reading
    def records(self) -> list[ImageRecord]:
        """One record per image, in the order of the data set. An image that failed first and was done later counts as done.

        Raises:
            DataError: a damaged line, or no records at all.
        """
        found: dict[str, ImageRecord] = {}
        for path in self._journals():
            for record in map(ImageRecord.from_json, read_journal(path)):
                if record.image_id not in found or found[record.image_id].error:
                    found[record.image_id] = record
        return sorted(found.values(), key=lambda record: record.index)

    def config(self) -> dict[str, Any]:
        return dict(self._read("config.yaml", yaml.safe_load))

    def facts(self) -> Facts:
        """What `begin` wrote."""
        return Facts.from_json(self._read("run.json", json.loads))

    def summary(self) -> Summary:
        """What `conclude` wrote."""
        return Summary.from_json(self._read("summary.json", json.loads))

    def _read(self, name: str, parse: Any) -> Mapping[str, Any]:
        path = self.path / name
        try:
            content = parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{self.path} is not a run folder: it has no {name}") from error
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise DataError(f"{path} cannot be read ({why}); restore it, or run again elsewhere") from error
        if not isinstance(content, Mapping):
            raise DataError(f"{path} is damaged: it should hold keys and values; restore it, or run again elsewhere")
        return content

    def _journals(self) -> list[Path]:
        return sorted(self.path.glob("records*.jsonl"))


@contextmanager
def stops_cleanly(folder: Path) -> Iterator[None]:
    """A full or read-only disk becomes one message; what was written before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_OR_READ_ONLY:
            raise
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}. Records written so far are intact; make room, then the same command "
            f"with output={folder} continues"
        ) from error


def _lock(folder: Path) -> int:
    """Keep other runs out for as long as this process lives; the descriptor holds the lock."""
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers, and gone with the process
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(lock)
            raise ConfigError(f"another process is writing to {folder}; wait for it, or give output another folder") from error
    return lock  # any other error means that the file system has no locks


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
