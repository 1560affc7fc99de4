"""Pictures as cameras and editors write them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goca.data.files import inside
from goca.data.masks import read_indices, read_panoptic, voc_palette
from goca.data.pictures import open_picture, read_picture, read_rgb
from goca.errors import DataError

RED = np.zeros((6, 10, 3), np.uint8)
RED[..., 0] = 200
RED[:, :2] = (0, 0, 255)  # a blue stripe on the left says where the picture's left went


def _save(path: Path, array: np.ndarray, mode: str | None = None, **options) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize(("mode", "ending"), [("RGB", "png"), ("RGBA", "png"), ("P", "png"), ("CMYK", "jpg"), ("CMYK", "tif")])
def test_colour_pictures_become_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    image = read_rgb(_save(tmp_path / f"a.{ending}", RED, mode))
    assert image.shape == (6, 10, 3)
    assert image.dtype == np.uint8
    assert abs(image[3, 8].astype(int) - (200, 0, 0)).max() < 30


@pytest.mark.parametrize("array", [np.full((4, 5), 100, np.uint8), np.full((4, 5), 100 * 256 + 7, np.uint16)])
def test_grey_pictures_keep_their_brightness(tmp_path: Path, array: np.ndarray) -> None:
    assert read_rgb(_save(tmp_path / "a.png", array)).tolist() == np.full((4, 5, 3), 100).tolist()


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the picture rotated by 90 degrees clockwise
    path = _save(tmp_path / "a.jpg", RED, exif=exif, quality=95)
    image = read_rgb(path)
    assert image.shape == (10, 6, 3)
    assert image[0].mean(0).argmax() == 2  # the blue stripe is on top
    assert read_picture(path, mask_size=(6, 10)).pixels.shape == (6, 10, 3)  # a mask made for the stored pixels
    assert read_picture(path, mask_size=(10, 6)).pixels.shape == (10, 6, 3)


def test_masks_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [7, 20, 3]])
    palette = Image.fromarray(values.astype(np.uint8), "P")
    palette.putpalette([channel for colour in voc_palette() for channel in colour])
    palette.save(tmp_path / "palette.png")
    _save(tmp_path / "grey.png", values.astype(np.uint8))
    _save(tmp_path / "deep.png", (values * 100).astype(np.uint16))
    _save(tmp_path / "bits.png", (values > 3).astype(np.uint8) * 255, "1")
    assert read_indices(tmp_path / "palette.png", palettes=(voc_palette(),)).tolist() == values.tolist()
    assert read_indices(tmp_path / "grey.png").tolist() == values.tolist()
    assert read_indices(tmp_path / "deep.png").tolist() == (values * 100).tolist()
    assert read_indices(tmp_path / "bits.png").tolist() == (values > 3).astype(int).tolist()


def test_panoptic_ids_use_three_bytes(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8))
    assert read_panoptic(path).tolist() == [[1 + 2 * 256 + 3 * 65536, 0]]


def _broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.jpg"
    match kind:
        case "missing":
            pass
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("<html>404 not found</html>")
        case "truncated":
            noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
            _save(path, noise)
            path.write_bytes(path.read_bytes()[:1500])
        case "truncated_png":
            path = path.with_suffix(".png")
            _save(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
            path.write_bytes(path.read_bytes()[:1500])
        case "large":
            _save(path, np.zeros((40, 50, 3), np.uint8))
    return path


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated", "truncated_png", "large"])
def test_broken_pictures_are_one_error_that_names_the_file(tmp_path: Path, kind: str) -> None:
    path = _broken(tmp_path, kind)
    with pytest.raises(DataError) as caught:
        read_rgb(path, max_pixels=1999 if kind == "large" else 5000)
    assert str(path) in str(caught.value)
    assert ("limit of 1,999" in str(caught.value)) == (kind == "large")


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = _save(tmp_path / "bomb.png", np.zeros((1, 1), np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2  # the header claims ten thousand million pixels
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="pixels"):
        open_picture(path)


@pytest.mark.parametrize(("mode", "reader"), [("RGB", read_indices), ("RGBA", read_indices), ("L", read_panoptic)])
def test_masks_of_the_wrong_kind_are_named(tmp_path: Path, mode: str, reader) -> None:
    path = _save(tmp_path / "mask.png", RED, mode)
    with pytest.raises(DataError, match=rf"mask .*mask\.png.*{mode}"):
        reader(path)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..", "", "..\\a", "c:/a", "a\0b"])
def test_names_do_not_lead_out_of_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads out of its folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a.png", "city/a.png", "a/../b.png", "..a"])
def test_names_inside_the_folder_are_kept(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name).is_relative_to(tmp_path)
