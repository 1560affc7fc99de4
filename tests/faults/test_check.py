"""`goca.data check` finds before a run what a run would stumble over, and counts what is read, left out and why."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goca.data.__main__ import main
from goca.data.check import check
from tests.data.conftest import build_dataset

REFERENCE = "plain"


def _check(capsys: pytest.CaptureFixture, *overrides: str) -> tuple[int, str]:
    code = main(["check", *overrides])
    return code, capsys.readouterr().out


def test_everything_that_is_not_read_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder in ("images/night", "masks"):
        (tmp_path / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("a.JPG", "b.jfif", "c.jpe", "d.gif", "e.avif", "f.tif", "night/g.png", "night/h.png"):
        kind = {".JPG": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG"}.get(Path(name).suffix)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name, kind, **({"exif": exif} if name == "a.JPG" else {}))
    for name in ("x.heic", "y.psd", "Thumbs.db", ".hidden.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    for name in "abcdefz":
        Image.fromarray(np.full((4, 4), 0 if name == "b" else 1, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "masks" / "f.png").write_bytes(b"broken")
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    code, printed = _check(capsys, "dataset=folder", f"paths.data={tmp_path}")
    assert code == 1
    for line in (
        "folder val: 6 images, 1 of 1 classes occur: 1 problem",
        "read 5 pictures, 5 of them with a mask; 1 could not be read",
        "not read: 4 files in images of another format (.hidden.png, Thumbs.db, x.heic, y.psd)",
        "not read: 2 files in subfolders of images (dataset.images=images/<subfolder> reads one) (g.png, h.png)",
        "not read: 1 masks without a picture (z.png)",
        "classes.txt begins with background: it is taken as 0",
        "the mask fits both ways",
        "nothing that is scored, only no class or void (1 images)",
        "f: cannot read the image",
    ):
        assert line in printed, line


def test_pictures_without_a_mask_are_counted_in_official_folders(tmp_path: Path) -> None:
    base = tmp_path / "ADEChallengeData2016"
    for kind, names in (("images", ("a.jpg", "b.jpg", "c.jpg")), ("annotations", ("a.png",))):
        (base / kind / "validation").mkdir(parents=True)
        for name in names:
            Image.new("RGB" if kind == "images" else "L", (2, 2), 1).save(base / kind / "validation" / name)
    report = check(build_dataset("ade20k", tmp_path))
    assert report.notes == ("not read: 2 pictures without a mask (b.jpg, c.jpg)",)
    assert (report.images, report.read, report.masks) == (1, 1, 1)


def test_a_folder_with_pictures_in_subfolders_only_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "images" / "day").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "images" / "day" / "a.png")
    (tmp_path / "classes.txt").write_text("cat")
    code, printed = _check(capsys, "dataset=folder", f"paths.data={tmp_path}")
    assert code == 1
    assert "holds no picture: not read: 1 files in subfolders of images" in printed


def test_generated_pictures_need_no_files(capsys: pytest.CaptureFixture) -> None:
    assert main(["get", "dataset=scenes"]) == 0
    assert "needs no files" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------- inputs of public bug reports
@pytest.mark.parametrize("case", ["oxi", "bgfirst"])
def test_labels_are_those_of_the_folder_without_the_fault(shared: Path, case: str) -> None:
    plain, faulty = (build_dataset("folder", shared / "faults" / name) for name in (REFERENCE, case))
    assert plain.classes.names == faulty.classes.names
    for expected, sample in zip(plain, faulty, strict=True):
        assert np.array_equal(expected.label, sample.label)
        assert np.array_equal(expected.image, sample.image)


@pytest.mark.parametrize(("case", "greatest"), [("exif180", 12), ("floattiff", 12), ("jfif", 30)])
def test_pictures_are_those_of_the_folder_without_the_fault(shared: Path, case: str, greatest: float) -> None:
    """Up to compression and colour: the mean brightness of a block of pixels."""
    plain, faulty = (build_dataset("folder", shared / "faults" / name) for name in (REFERENCE, case))
    assert len(plain) == len(faulty) == 6

    def blocks(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).convert("L").reduce(8)).astype(int)

    for expected, sample in zip(plain, faulty, strict=True):
        assert np.abs(blocks(expected.image) - blocks(sample.image)).max() < greatest


@pytest.mark.parametrize(
    ("case", "overrides", "message"),
    [
        ("binary255", ["dataset=folder"], "hold only 0 and 255"),
        ("adereduced", ["dataset=ade20k", "split=val"], "has the value 255, which cannot occur in ade20k"),
        ("vocrgb", ["dataset=voc", "split=val"], "3 problems"),
    ],
)
def test_check_finds_what_is_wrong(
    shared: Path, capsys: pytest.CaptureFixture, case: str, overrides: list[str], message: str
) -> None:
    code, printed = _check(capsys, *overrides, f"paths.data={shared / 'faults' / case}")
    assert code == 1
    assert message in printed


@pytest.mark.parametrize(("case", "images"), [("dollar", 1), ("longname", 1), ("jfif", 6)])
def test_check_finds_nothing_wrong(shared: Path, capsys: pytest.CaptureFixture, case: str, images: int) -> None:
    code, printed = _check(capsys, "dataset=folder", f"paths.data={shared / 'faults' / case}")
    assert code == 0
    assert f"read {images} pictures, {images} of them with a mask; 0 could not be read" in printed
