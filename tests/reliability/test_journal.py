"""Records on disk: half-written lines, damage, full disks, two writers."""

import json
import multiprocessing
import resource
from pathlib import Path

import pytest

from goca import disk as journal_module
from goca.disk import Journal, read_journal, replacing
from goca.errors import ConfigError, DataError, OutputError
from goca.runs.folder import RunFolder, stops_cleanly
from goca.runs.records import ImageRecord


def _filled(path: Path, count: int = 3) -> Path:
    journal = Journal(path)
    for i in range(count):
        journal.append({"image_id": f"näme {i}", "index": i})
    journal.close()
    return path


def test_a_file_cut_at_any_byte_keeps_its_whole_records_and_goes_on(tmp_path: Path) -> None:
    whole = _filled(tmp_path / "whole.jsonl").read_bytes()
    for end in range(len(whole) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:end])
        expected = whole[:end].count(b"\n")
        assert len(read_journal(path)) == expected
        journal = Journal(path)
        journal.append({"image_id": "new"})
        journal.close()
        assert [record["image_id"] for record in read_journal(path)] == [*(f"näme {i}" for i in range(expected)), "new"]


def _fill(journal: Journal, count: int) -> None:
    for i in range(count):
        journal.append({"image_id": str(i), "words": "x" * 100})


@pytest.mark.parametrize("line", [b'{"image_id": "b', b"null", b"[]", b'{"no": "id"}', b"\xff\xfe", b"\0\0\0"])
def test_damage_in_the_middle_names_the_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"image_id": "a"}\n' + line + b'\n{"image_id": "c"}\n')
    with pytest.raises(DataError, match=r"records\.jsonl, line 2, is damaged"):
        read_journal(path)


def test_records_reach_the_disk_every_few_seconds_and_at_the_end(tmp_path: Path, monkeypatch) -> None:
    """What a power cut may cost: the records of five seconds."""
    now, synced = [100.0], []
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(journal_module.os, "fsync", lambda descriptor: synced.append(now[0]))
    journal = Journal(tmp_path / "records.jsonl")
    for second in range(14):
        now[0] = 100.0 + second
        journal.append({"image_id": str(second)})
    assert synced == [106.0, 112.0]
    journal.close()
    assert synced == [106.0, 112.0, 113.0]


def test_a_full_disk_leaves_earlier_records_whole(tmp_path: Path) -> None:
    """The size limit of files acts as the end of the disk: a write that crosses it is cut short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(tmp_path / "records.jsonl")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with pytest.raises(OutputError, match=r"cannot write .* intact; make room"), stops_cleanly(tmp_path):
            _fill(journal, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.close()
    kept = read_journal(tmp_path / "records.jsonl")
    assert [record["image_id"] for record in kept] == [str(i) for i in range(len(kept))]
    assert len(kept) > 10
    assert (tmp_path / "records.jsonl").read_bytes().endswith(b"}\n")


def test_records_of_several_processes_are_joined_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path, process=1)
    for index in (4, 0):
        first.append(ImageRecord(image_id=str(index), index=index))
    second.append(ImageRecord(image_id="2", index=2, error="broken"))
    second.append(ImageRecord(image_id="2", index=2, error=None))
    first.append(ImageRecord(image_id="2", index=2, error="broken again"))
    for folder in (first, second):
        folder.close()
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"records.jsonl", "records.1.jsonl"}
    assert [(record["index"], record.get("error")) for record in RunFolder(tmp_path).records()] == [
        (0, None),
        (2, None),
        (4, None),
    ]


def _claim(folder: Path) -> None:
    RunFolder(folder).claim({"seed": 0})


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # a lock of one process does not bind the process itself
    queue = context.SimpleQueue()

    def try_to_claim() -> None:
        try:
            _claim(tmp_path)
            queue.put("claimed")
        except ConfigError as error:
            queue.put(str(error))

    holder = RunFolder(tmp_path)
    holder.claim({"seed": 0})
    for _ in range(2):
        process = context.Process(target=try_to_claim)
        process.start()
        process.join()
        holder.close()
    assert "another process is writing" in queue.get()
    assert queue.get() == "claimed"


def test_the_table_holds_what_the_records_hold(undisturbed: Path) -> None:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(undisturbed / "records.parquet").to_pylist(maps_as_pydicts="strict")
    assert rows == [json.loads(line) for line in (undisturbed / "records.jsonl").read_text().splitlines()]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ("n" * 250 + ".json")
    with replacing(path) as part:
        part.write_text("first")
        assert not path.exists()

    def stopped() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_a_shared_journal_cuts_nothing_off(tmp_path: Path) -> None:
    """A torn line may be one that another process is about to end; it stays by itself."""
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'{"image_id": "a"}\n{"image_id": "b')
    for name in ("c", "d"):
        journal = Journal(path, shared=True)
        journal.append({"image_id": name})
        journal.close()
    assert path.read_bytes().split(b"\n") == [
        b'{"image_id": "a"}', b'{"image_id": "b', b'{"image_id": "c"}', b'{"image_id": "d"}', b""
    ]  # fmt: skip
