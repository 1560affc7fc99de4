"""Fetching from a real server on this machine, one that breaks off, refuses, changes its mind or serves traps."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goca.data import download
from goca.data.__main__ import main
from goca.data.archives import unpack
from goca.data.download import Archive, archives_of, fetch, get
from goca.errors import DataError

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Files from memory; `breaks` answers are cut in the middle, `errors` answers are refused with that status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.breaks = 0
        self.errors: list[int] = []
        self.ranges = True
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted or "all")
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        name = self.path.rsplit("/", 1)[-1]
        if name not in server.files:
            self.send_error(404)
            return
        body, start = server.files[name], 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = len(body)
        if server.breaks:
            server.breaks -= 1
            end = start + (len(body) - start) // 2
            self.close_connection = True
        self.wfile.write(body[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------ transfers
@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_is_continued(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.files["a.bin"], server.breaks, server.ranges = CONTENT, 2, ranges
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.requests == ["all", f"bytes={len(CONTENT) // 2}-", server.requests[2]]
    assert not (tmp_path / "a.bin.part").exists()


def test_a_later_call_continues_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"], server.breaks = CONTENT, 1
    with pytest.raises(DataError, match="continues where this one stopped"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", attempts=1)
    assert (tmp_path / "a.bin.part").stat().st_size == len(CONTENT) // 2
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT * 2], ids=["complete", "of a longer file"])
def test_a_part_that_is_not_shorter_than_the_file(server: Server, tmp_path: Path, left: bytes) -> None:
    server.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(left)
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_server_errors_are_tried_again_and_refusals_are_not(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"], server.errors = CONTENT, [503, 500]
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 3
    with pytest.raises(DataError, match="404"):
        fetch(f"{server.address}/b.bin", tmp_path / "b.bin")
    assert len(server.requests) == 4


def test_a_server_that_is_down_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a.*2 attempts"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", attempts=2)


# ------------------------------------------------------------------------------------------------------------- archives
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_fetched_checked_and_unpacked_once(server: Server, tmp_path: Path, kind: str) -> None:
    files = {"top/a.txt": b"a", "top/deep/b.bin": CONTENT}
    data = zipped(files) if kind == "zip" else tarred(files, "w:gz" if kind == "tar.gz" else "w")
    server.files[f"x.{kind}"] = data
    archive = Archive(f"{server.address}/x.{kind}", into="data", hash=f"sha256:{hashlib.sha256(data).hexdigest()}")
    assert get(archive, tmp_path) == 2
    assert {name: (tmp_path / "data" / name).read_bytes() for name in files} == files
    assert get(archive, tmp_path) == 0
    assert server.requests == ["all"]
    assert [path.name for path in (tmp_path / ".downloads").iterdir()] == [f"x.{kind}.done"]


def test_archives_inside_are_unpacked_in_their_place(server: Server, tmp_path: Path) -> None:
    inner = zipped({"panoptic_val2017/1.png": b"p", "__MACOSX/panoptic_val2017/._1.png": b"m"})
    server.files["x.zip"] = zipped({"annotations/panoptic_val2017.json": b"{}", "annotations/panoptic_val2017.zip": inner})
    get(Archive(f"{server.address}/x.zip", into="coco", nested=("annotations/panoptic_val2017.zip",)), tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "coco").rglob("*") if path.is_file()}
    assert found == {"coco/annotations/panoptic_val2017.json", "coco/annotations/panoptic_val2017/1.png"}


def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    server.files["x.zip"] = zipped({"a": b"a"})
    with pytest.raises(DataError, match=r"x\.zip has the sha1 .*the official one is 00"):
        get(Archive(f"{server.address}/x.zip", hash="sha1:00"), tmp_path)
    assert list((tmp_path / ".downloads").iterdir()) == []
    assert not (tmp_path / "a").exists()


def _linked_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return buffer.getvalue()


def _linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


TRAPS = {
    "zip that climbs": (zipped({"../../evil": b"x"}), "leads out of its folder"),
    "tar that climbs": (tarred({"a/../../evil": b"x"}), "leads out of its folder"),
    "absolute name": (tarred({"/tmp/goca_evil": b"x"}), "leads out of its folder"),
    "link in a tar": (_linked_tar(), "a link or a device"),
    "link in a zip": (_linked_zip(), "a link or a device"),
    "cut zip": (zipped({"a": CONTENT})[:-30], "neither a zip nor a tar|cannot unpack"),
    "damaged zip": (zipped({"a": CONTENT}).replace(CONTENT[:256], b"?" * 256, 1), "cannot unpack"),
    "cut tar": (tarred({"a": CONTENT}, "w:gz")[:60], "cannot unpack|neither"),
    "web page": (b"<html>moved</html>", "neither a zip nor a tar archive"),
}


@pytest.mark.parametrize(("data", "message"), TRAPS.values(), ids=TRAPS)
def test_traps_are_refused_and_leave_nothing_outside(tmp_path: Path, data: bytes, message: str) -> None:
    archive = tmp_path / "x"
    archive.write_bytes(data)
    with pytest.raises(DataError, match=message):
        unpack(archive, tmp_path / "target" / "deep")
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and "deep" not in path.parts]
    assert outside == [archive]
    assert not Path("/tmp/goca_evil").exists()


def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped({"a": CONTENT}))
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("goca.data.archives.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="no space left to unpack a"):
        unpack(archive, tmp_path / "target")


# ------------------------------------------------------------------------------------------------------------- commands
def test_known_archives_are_well_formed() -> None:
    for name in ("voc", "context", "coco_object", "coco_stuff", "ade20k"):
        for archive in archives_of(name):
            assert archive.file_name.endswith((".zip", ".tar", ".tar.gz"))
            if archive.hash:
                algorithm, digest = archive.hash.split(":")
                assert len(digest) == hashlib.new(algorithm).digest_size * 2
    assert [archive.file_name for archive in archives_of("coco_stuff", "val")] == [
        "val2017.zip",
        "stuffthingmaps_trainval2017.zip",
    ]
    assert archives_of("cityscapes") == []


def test_get_then_check(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    image, mask = np.zeros((3, 4, 3), np.uint8), np.full((3, 4), 3, np.uint8)
    base = "ADEChallengeData2016"
    data = zipped(
        {
            f"{base}/images/validation/a.jpg": png(image),
            f"{base}/images/validation/b.jpg": png(image),
            f"{base}/annotations/validation/a.png": png(mask),
            f"{base}/annotations/validation/b.png": png(mask + 200),
        }
    )
    server.files["ADEChallengeData2016.zip"] = data
    command = ["dataset=ade20k", "split=val", f"paths.data={tmp_path}"]
    assert main(["get", *command, "--mirror", server.address]) == 2
    assert "the official one is 219e1696" in capsys.readouterr().err
    archive = Archive("http://example.invalid/ADEChallengeData2016.zip", hash=f"md5:{hashlib.md5(data).hexdigest()}")
    monkeypatch.setattr("goca.data.download.archives_of", lambda name, split: [archive])
    assert main(["get", *command, "--mirror", server.address]) == 0
    assert "4 files, checksum matches" in capsys.readouterr().out
    assert main(["check", *command]) == 1
    output = capsys.readouterr().out
    assert "ade20k val: 2 of 2000 images, 1 of 150 classes occur: 1 problem\n" in output
    assert "b.png has values that are no ids of ade20k: 203" in output
    assert "sceneparsing.csail.mit.edu" in output


def test_a_data_set_behind_a_registration_says_where(capsys) -> None:
    assert main(["get", "dataset=cityscapes"]) == 2
    assert "cityscapes-dataset.com" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=vox"], "Could not find 'dataset/vox'"),
        (["dataset=voc", "split=x"], "no split 'x'"),
        (["datase=voc"], "datase"),
    ],
)
def test_bad_commands_are_one_message(capsys, arguments: list[str], message: str) -> None:
    assert main(["check", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_check_of_the_samples(shared: Path, capsys) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        return main(["check", *arguments, f"paths.data={shared / 'samples'}"]), capsys.readouterr().out

    code, output = run("dataset=voc", "split=val")
    assert (code, "voc val: 1 of 1449 images, 1 of 20 classes occur: incomplete" in output) == (1, True)
    code, output = run("dataset=cityscapes")
    assert "cityscapes train: 1 of 2975 images" in output
    assert "cityscapes val: 1 of 500 images" in output
    code, output = run("dataset=coco_object", "split=val")
    assert "coco_object val: 2 of 5000 images" in output
    code, output = run("dataset=coco_stuff")
    assert "train2017 does not exist" in output
    assert "coco_stuff val: 5 of 5000 images, 21 of 27 classes occur: incomplete" in output
    assert output.count("Source:") == 1
    assert run("dataset=scenes")[0] == 0
