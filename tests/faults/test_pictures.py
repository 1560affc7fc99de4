"""Every format, mode and depth that Pillow writes: the pixels that another reading gives, or one message."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from goca.data.pictures import BOTH_WAYS, FORMATS, Picture, read_picture, read_rgb
from goca.errors import ConfigError, DataError, GocaError
from goca.observe import read_image

Image.init()
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")
_EVERYWHERE = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_MASKS = ("none", "stored", "upright")
_SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def _random(mode: str, shape: tuple[int, int], seed: int) -> Image.Image:
    """A picture of that mode with random values."""
    generator = np.random.default_rng(seed)
    height, width = shape
    if mode == "F":
        return Image.fromarray(generator.random(shape, np.float32))
    if mode == "I":
        return Image.fromarray(generator.integers(0, 65536, shape, np.int32))
    if mode.startswith("I;16"):
        values = generator.integers(0, 65536, shape, np.uint16)
        return Image.frombytes(mode, (width, height), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    bands = {"1": 1, "L": 1, "P": 1, "LA": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3}.get(mode, 4)
    values = generator.integers(0, 256, (*shape, bands), np.uint8)
    if mode == "1":
        return Image.fromarray(values[..., 0]).convert("1")
    picture = Image.frombytes(mode, (width, height), values.tobytes())
    if mode in ("P", "PA"):
        picture.putpalette(generator.integers(0, 256, 768, np.uint8).tobytes())
    return picture


def _by_hand(picture: Image.Image) -> np.ndarray | None:
    """(H, W, 3) uint8 from the stored values alone, without PIL's conversion; None where values have no agreed meaning."""
    values = np.asarray(picture)
    match picture.mode:
        case "1":
            return np.repeat(255 * values[..., None].astype(np.uint8), 3, -1)
        case "L":
            return np.repeat(values[..., None], 3, -1)
        case "LA":
            return np.repeat(values[..., :1], 3, -1)
        case "RGB" | "RGBA" | "RGBX":
            return values[..., :3]
        case "P":
            return np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)[values]
        case "CMYK":  # no ink is white; black takes its share from each
            ink, black = values[..., :3].astype(int), values[..., 3:].astype(int)
            return ((255 - ink) * (255 - black) / 255).round().astype(np.uint8)
        case mode if mode.startswith("I;16"):
            return np.repeat((values // 256)[..., None], 3, -1).astype(np.uint8)
        case "F" if values.min() >= 0 and values.max() <= 1:
            return np.repeat((255 * values.astype(float)).round()[..., None], 3, -1).astype(np.uint8)
    return None


@pytest.mark.parametrize("kind", sorted(Image.SAVE))
def test_pixels_are_those_of_another_reading_or_refused(kind: str) -> None:
    for mode in MODES:
        for seed, shape in enumerate(((5, 7), (16, 16))):
            _compare(kind, mode, shape, seed)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(FORMATS), st.sampled_from(MODES), _SHAPES, st.integers(0, 999))
def test_pixels_of_any_size_are_those_of_another_reading(kind: str, mode: str, shape: tuple[int, int], seed: int) -> None:
    _compare(kind, mode, shape, seed)


def _compare(kind: str, mode: str, shape: tuple[int, int], seed: int) -> None:
    buffer = io.BytesIO()
    try:
        _random(mode, shape, seed).save(buffer, kind)
    except Exception:  # Pillow cannot write this mode in this format, or not at this size
        return
    try:
        reopened = Image.open(io.BytesIO(buffer.getvalue()))
        reopened.load()
    except Exception:  # nor can it read what it wrote
        reopened = None
    promised = reopened is not None and reopened.format in FORMATS
    if not promised or reopened.mode == "I":
        with pytest.raises(DataError, match=r"^(cannot read the image the picture: |the picture holds ).+$"):
            read_rgb(buffer.getvalue())
        return
    pixels = read_rgb(buffer.getvalue())
    expected = _by_hand(reopened)
    if expected is None:
        expected = np.asarray(reopened.convert("RGB"))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= (1 if reopened.mode == "CMYK" else 0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(("PNG", "TIFF")),
    st.sampled_from(("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    _SHAPES,
    st.integers(0, 999),
)
def test_every_way_in_gives_the_same_pixels(
    tmp_path_factory: Any, kind: str, mode: str, shape: tuple[int, int], seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"way.{kind.lower()}"
    _random(mode, shape, seed).save(path, kind)
    expected = _by_hand(Image.open(path))
    ways = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), Image.open(path)]
    for way in (*ways, expected):
        assert np.array_equal(read_rgb(way), expected)
        if not isinstance(way, str):
            assert np.array_equal(read_image(way).pixels, expected)


def test_sixteen_bits_from_pil_are_those_from_the_file(shared: Path) -> None:
    path = shared / "faults" / "g16.png"
    assert np.array_equal(read_rgb(Image.open(path)), read_rgb(path))
    assert read_rgb(path).std() > 10


@settings(deadline=None)
@example(np.array([[0.3]], np.float32))  # 76.5 and a little; in float32 that little is lost
@given(arrays(np.float32, _SHAPES, elements=st.floats(-2, 300, width=32)))
def test_floats_are_scaled_where_they_say_how_and_refused_elsewhere(values: np.ndarray) -> None:
    picture = Image.fromarray(values)
    if values.min() >= 0 and values.max() <= 1:
        assert np.array_equal(read_rgb(picture)[..., 0], (values.astype(float) * 255).round())
    else:
        with pytest.raises(DataError, match=r"holds floats from .* only 0 \.\.\. 1"):
            read_rgb(picture)


@pytest.mark.parametrize("values", [[[np.nan, 0.5]], [[np.inf, 0.5]]])
def test_floats_that_are_no_numbers_are_refused(values: list) -> None:
    with pytest.raises(DataError, match="holds floats"):
        read_rgb(Image.fromarray(np.array(values, np.float32)))


def test_whole_numbers_of_32_bits_are_refused() -> None:
    """They may be meant as 8, 12 or 16 bits; PIL would clip them at 255."""
    for top in (1, 255, 65535, 2**31 - 1):
        with pytest.raises(DataError, match="holds 32-bit integers"):
            read_rgb(Image.fromarray(np.array([[0, top]], np.int32)))


# -------------------------------------------------------------------------------------------------------------- orientation
_UPRIGHT = {  # EXIF orientation: what the standard says that the first row and column of the stored pixels are
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@settings(deadline=None)
@given(
    st.sampled_from(("PNG", "TIFF", "WEBP")),
    st.integers(1, 8),
    _SHAPES,
    st.sampled_from(("none", "stored", "upright")),
    st.integers(0, 99),
)
def test_a_picture_is_turned_as_its_mask_is(kind: str, tag: int, shape: tuple[int, int], mask: str, seed: int) -> None:
    stored = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = tag
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, kind, exif=exif, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    upright = _UPRIGHT[tag](stored)
    size = {"none": None, "stored": shape, "upright": upright.shape[:2]}[mask]

    def read(orientation: Any = "auto") -> Picture:
        return read_picture(buffer.getvalue(), mask_size=size, orientation=orientation)

    both = tag > 1 and size is not None and upright.shape == stored.shape
    expected = upright if size is None or (mask == "upright" and not both) else stored
    assert np.array_equal(read().pixels, expected)
    assert read().notes == ((BOTH_WAYS,) if both else ())
    assert np.array_equal(read("upright").pixels, upright)
    assert np.array_equal(read("stored").pixels, stored)


# --------------------------------------------------------------------------------------------- what is said, what is refused
def _bytes(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_choices_are_said() -> None:
    clear = Image.new("RGBA", (2, 2), (1, 2, 3, 0))
    assert "transparent" in read_picture(_bytes(clear)).notes[0]
    assert read_picture(_bytes(Image.new("RGBA", (2, 2), (1, 2, 3, 255)))).notes == ()
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        read = read_picture(_bytes(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert read.notes == ("of several frames the first one is read",), kind
        assert read.pixels[0, 0].argmax() == 0
    assert "nearly black" in read_picture(Image.fromarray(np.full((2, 2), 4000, np.uint16))).notes[0]
    assert "scaled" in read_picture(Image.fromarray(np.full((2, 2), 0.5, np.float32))).notes[0]


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PCX", "TGA", "JPEG2000", "EPS"])
def test_other_formats_are_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_bytes(Image.new("RGB", (16, 16)), kind))
    with pytest.raises(DataError, match=r"a\.png: it is not a JPEG, PNG, .*AVIF picture"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, ConfigError, "an image is a path.*got NoneType"),
        (3, ConfigError, "got int"),
        (b"", DataError, "cannot read the image"),
        ("https://example.org/cat.jpg", DataError, "download it first"),
        ("", DataError, "missing file"),
        (np.zeros((0, 0, 3), np.uint8), ConfigError, "empty"),
        (np.zeros((3, 8, 8), np.uint8), ConfigError, "transpose"),
        (np.zeros((8, 8), np.uint8), ConfigError, "PIL.Image.fromarray"),
        (np.zeros((8, 8, 3)), ConfigError, "float64"),
        (Image.new("RGB", (0, 0)), DataError, "empty"),
    ],
)
def test_what_is_no_picture_is_one_message(source: Any, error: type[GocaError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_rgb(source)
    assert "\n" not in str(caught.value)


def test_a_given_image_is_left_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    picture = Image.open(tmp_path / "a.jpg")
    assert read_rgb(picture).shape == read_rgb(picture).shape == (4, 2, 3)
    assert picture.size == (4, 2)
    assert picture.getpixel((0, 0)) == (0, 0, 0)
