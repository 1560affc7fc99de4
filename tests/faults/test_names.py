"""Names that people give: dollars, braces, markup, any script, two Unicode forms, bytes that are no UTF-8, 255 bytes."""

import json
import os
import re
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from goca import config
from goca.data.classes import ClassTable
from goca.data.files import existing, file_name, readable_name
from goca.errors import ConfigError, DataError
from goca.figures import plots, text
from goca.prompts.files import image_key, read_captions
from tests.data.conftest import Build, build_dataset

ODD = [
    "Ba$$in - cover",
    r"50% \$a_b^{2",
    "[red]grass[/red]",
    "{seed}",
    "图片",
    "кот",
    "قطة",
    "cat 🐱🦒👍🏽",
    "a\nb\tc",
    "e\u0301",
    "\udce9",
    "x" * 300,
]


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.sampled_from(ODD), st.text(max_size=30)))
@example("$")
@example("\\$")
@example("\N{FROWN}")  # in one file of a family of several
def test_any_text_is_drawn_without_a_warning(name: str) -> None:
    """As a title, a legend and a tick, the ways in which names enter figures."""
    with warnings.catch_warnings(), text.plain_text():
        warnings.simplefilter("error")
        figure = Figure(figsize=(1, 1))
        axes = figure.subplots()
        drawn = [text.label(name), text.label(name, 10)]
        axes.set_title(drawn[0])
        axes.set_yticks([0], [drawn[1]])
        plots.render(figure, dpi=20)
    shown = [artist for artist in figure.findobj(Text) if artist.get_text()]
    assert {artist.get_text() for artist in shown} >= {part for part in drawn if part}
    assert not any(artist.get_parse_math() for artist in shown)
    assert len(drawn[1]) <= 10 or "(" in drawn[1]  # an emoji's name may be longer


def test_what_can_be_drawn_is_drawn_as_it_is() -> None:
    assert text.label("50% of $a_b^{2}$ — «кот», ±3 °C") == "50% of $a_b^{2}$ — «кот», ±3 °C"
    assert text.label("cafe\u0301") == "café"
    assert text.label("a" * 100, 10) == "aaaaaa…aaa"


def test_the_callers_settings_of_matplotlib_stay() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.bars(["$x", "图"], [1.0, 2.0])
    assert dict(mpl.rcParams) == before


def test_classes_that_no_font_draws_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_family_with", lambda char: None)
    assert text.label("猫 cat") == "□ cat"
    assert text.label("🦒") == "(giraffe face)"
    assert [plots._class_name(ClassTable.from_names(["猫", "犬", "cat"]), i) for i in (1, 2, 3)] == [
        "class 1",
        "class 2",
        "cat",
    ]


def test_a_font_with_the_character_is_found_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """DejaVu Serif stands for a font that has what the figure's own lacks."""
    from matplotlib.font_manager import findfont

    monkeypatch.setattr(text, "_characters", lambda path: frozenset("图" if "Serif" in path else "abc"))
    text._family_with.cache_clear()
    import matplotlib as mpl

    with text.plain_text():
        assert text.label("a图") == "a图"
        assert "Serif" in mpl.rcParams["font.family"][-1]
        assert "Serif" in findfont(mpl.rcParams["font.family"][-1])
    text._family_with.cache_clear()


@pytest.mark.parametrize("shape", [(5000, 1), (1, 5000), (3, 3)])
def test_long_thin_pictures_make_figures_of_common_size(shape: tuple[int, int]) -> None:
    label = np.ones(shape, np.uint8)
    picture = plots.overlay_figure(np.zeros((*shape, 3), np.uint8), label, ClassTable.from_names(["cat"]))
    assert max(picture.size) < 2000


# ---------------------------------------------------------------------------------------------------------------- files
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=300))
def test_file_names_fit_and_stay_apart(name: str) -> None:
    for ending in ("", ".png"):
        assert len(file_name(name, ending).encode()) <= 255
    if len(name.encode()) <= 251:
        assert file_name(name, ".png") == f"{name}.png"
    else:
        assert file_name(name, ".png") != file_name(f"{name}2", ".png")


def test_names_are_the_same_in_both_unicode_forms(tmp_path: Path) -> None:
    composed, decomposed = "café", unicodedata.normalize("NFD", "café")
    assert composed != decomposed
    (tmp_path / decomposed).mkdir()
    (tmp_path / decomposed / f"{decomposed}.png").touch()
    assert existing(tmp_path / composed / f"{composed}.png").is_file()
    assert not existing(tmp_path / composed / "other.png").exists()
    assert image_key(f"{decomposed}.jpg") == image_key(f"{composed}.PNG") == composed
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({f"{decomposed}.jpg": {"caption": "a cat"}}), encoding="utf-8-sig")
    assert read_captions(captions) == {composed: "a cat"}


def _folder(root: Path, image: str | bytes, mask: str | bytes, classes: str | bytes = "cat\ngrass\n") -> Path:
    for name, kind, array in ((image, "images", np.zeros((3, 4, 3), np.uint8)), (mask, "masks", np.ones((3, 4), np.uint8))):
        (root / kind).mkdir(exist_ok=True)
        Image.fromarray(array).save(root / kind / "x.png")
        (root / kind / "x.png").rename(root / kind / os.fsdecode(name))
    (root / "classes.txt").write_bytes(classes if isinstance(classes, bytes) else classes.encode())
    return root


@pytest.mark.parametrize(
    ("image", "mask", "image_id"),
    [
        ("cafe\u0301.png", "caf\u00e9.png", "café"),
        (b"caf\xe9.png", b"caf\xe9.png", "caf%E9"),
        ("Ba$$in [red]{x}.PNG", "Ba$$in [red]{x}.PNG", "Ba$$in [red]{x}"),
        ("图" * 83 + ".png", "图" * 83 + ".png", "图" * 83),
        ("a.b.png", "a.b.png", "a.b"),
    ],
)
def test_image_ids_can_be_stored_and_found(tmp_path: Path, image: str | bytes, mask: str | bytes, image_id: str) -> None:
    dataset = build_dataset("folder", _folder(tmp_path, image, mask))
    sample = dataset[0]
    assert sample.image_id == image_id == readable_name(image_id)
    assert sample.present == (1,)
    sample.image_id.encode()


def test_two_names_that_look_the_same_are_one_message(tmp_path: Path, build: Build) -> None:
    _folder(tmp_path, "cafe\u0301.png", "cafe\u0301.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "caf\u00e9.png")
    with pytest.raises(DataError, match="several images of one name: café"):
        build("folder", tmp_path).setup()


# ---------------------------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize(
    "content",
    [
        b"a\nb\n",
        b"\xef\xbb\xbfa\r\nb\r\n",
        "a\nb\n".encode("utf-16"),
        b"a.jpg\nb.jpg\n",
        b"JPEGImages/a.jpg SegmentationClass/a.png\nJPEGImages/b.jpg SegmentationClass/b.png",
    ],
)
def test_lists_hold_ids_paths_or_pairs(tmp_path: Path, build: Build, content: bytes) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    (base / "ImageSets" / "Segmentation" / "val.txt").write_bytes(content)
    dataset = build("voc", tmp_path)
    dataset.setup()
    assert dataset.image_ids == ["a", "b"]


def test_a_line_with_two_names_is_refused(tmp_path: Path, build: Build) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "SegmentationClass").mkdir(parents=True)
    (base / "ImageSets" / "Segmentation").mkdir(parents=True)
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("a 1\nb -1\n")
    with pytest.raises(DataError, match=r"line 1 of the list .*val\.txt.*'a 1'"):
        build("voc", tmp_path).setup()


# ---------------------------------------------------------------------------------------------------------- command lines
@pytest.mark.parametrize("folder", ["/tmp/a{b", "/my photos (1)", "/x/图 (1)", "a b=c", "[a", "a,b"])
def test_a_value_that_hydra_cannot_read_is_shown_as_it_should_be_written(folder: str) -> None:
    with pytest.raises(ConfigError, match="quotes that Hydra sees") as caught:
        config.compose([f"paths.data={folder}"])
    advised = re.search(r"'(paths\.data=\".*?\")'", str(caught.value))[1]
    assert config.compose([advised]).paths.data == folder
