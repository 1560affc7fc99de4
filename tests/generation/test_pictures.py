"""The folder of pictures: what a restart accepts, and what stays when writing fails."""

import errno
from pathlib import Path

import pytest
from PIL import Image

from goca.errors import ConfigError, DataError
from goca.generation.pictures import MANIFEST, PictureFolder, batches, fingerprint, read_manifest
from goca.generation.pipeline import Request

REQUEST = Request("one", "a dog \u2615", 7, "fog")


@pytest.fixture
def folder(tmp_path):
    made = PictureFolder(tmp_path, "abc")
    made.save(REQUEST, Image.new("RGB", (8, 8), "red"), 1.5)
    return made


def test_the_picture_tells_its_origin(folder):
    with Image.open(folder.file("one")) as image:
        assert image.info["prompt"] == REQUEST.text and image.info["seed"] == "7" and image.info["settings"] == "abc"
    (record,) = read_manifest(folder.path)
    assert record == {
        "image_id": "one",
        "file": "images/one.png",
        "prompt": REQUEST.text,
        "negative_prompt": "fog",
        "seed": 7,
        "settings": "abc",
        "seconds": 1.5,
    }


def test_a_restart_accepts_what_opens_and_repeats_what_does_not(folder):
    again = PictureFolder(folder.path, "abc")
    assert again.is_finished(REQUEST) and not again.is_finished(Request("two", "a cat", 7))
    content = folder.file("one").read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no picture"):
        folder.file("one").write_bytes(broken)
        assert not again.is_finished(REQUEST)


@pytest.mark.parametrize(
    ("settings", "request_", "what"),
    [
        ("xyz", REQUEST, "settings"),
        ("abc", Request("one", "a cat", 7, "fog"), "prompt"),
        ("abc", Request("one", REQUEST.text, 8), "seed"),
    ],
)
def test_pictures_of_another_run_are_not_taken_for_this_one(folder, settings, request_, what):
    with pytest.raises(ConfigError, match=what):
        PictureFolder(folder.path, settings).is_finished(request_)


def test_a_line_that_was_cut_off_spoils_nothing(folder):
    manifest = folder.path / MANIFEST
    manifest.write_text(manifest.read_text()[:-20])
    again = PictureFolder(folder.path, "abc")
    assert read_manifest(folder.path) == []
    assert again.is_finished(REQUEST)  # the picture is whole: its line is written again
    assert [record["image_id"] for record in read_manifest(folder.path)] == ["one"]


@pytest.mark.parametrize("where", ["picture", "manifest"])
def test_a_full_disk_leaves_everything_valid(folder, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "picture":
            patch.setattr(Path, "write_bytes", full)
        else:
            patch.setattr("builtins.open", full)
        with pytest.raises(DataError, match=r"No space left.*1 pictures are finished"):
            folder.save(Request("two", "a cat", 7), Image.new("RGB", (8, 8)), 1.0)
    assert [record["image_id"] for record in read_manifest(folder.path)] == ["one"]
    assert not list(folder.images.glob(".*"))
    assert PictureFolder(folder.path, "abc").is_finished(REQUEST)


def test_an_unwritable_folder_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="set output"):
        PictureFolder(tmp_path / "file" / "below", "abc")


def test_batches_are_handed_out_whole():
    requests = [Request(str(i), "x", 0) for i in range(7)]
    shards = [batches(requests, 2, (k, 3)) for k in range(3)]
    assert sorted(r.image_id for shard in shards for batch in shard for r in batch) == [str(i) for i in range(7)]
    assert all(batch in batches(requests, 2) for shard in shards for batch in shard)


def test_the_fingerprint_knows_order_from_content():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
