"""Text of figures: image ids, class names and tokens may hold anything, and nothing they hold may end a run."""

from __future__ import annotations

import functools
import importlib.util
import logging
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

from goca.data.files import printable

log = logging.getLogger(__name__)

BOX = "□"  # stands for a character that no font draws
_FONT_PACKAGE = "mplfonts"  # the extra `fonts`
_INVISIBLE = ("Cf", "Mn")  # joiners and variants of emoji; accents that did not compose
_Arguments = ParamSpec("_Arguments")
_Drawn = TypeVar("_Drawn")


@contextmanager
def plain_text() -> Iterator[None]:
    """Inside, text is not a formula, and `label` may add fonts; the caller's settings of matplotlib come back afterwards."""
    with mpl.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def figure(draw: Callable[_Arguments, _Drawn]) -> Callable[_Arguments, _Drawn]:
    """Decorates a function that makes and renders a figure: it runs in `plain_text`."""

    @functools.wraps(draw)
    def drawn(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Drawn:
        with plain_text():
            return draw(*arguments, **options)

    return drawn


def label(text: str, most: int = 40) -> str:
    """The text as one line that can be drawn: long ones lose their middle, an emoji without a font becomes its name.

    Characters that the figure's font lacks are looked for in all installed fonts, which are then used too; what none of them
    has becomes a box.
    """
    line = unicodedata.normalize("NFC", " ".join(printable(str(text)).split()))
    if len(line) > most:
        line = f"{line[: most - most // 3 - 1]}…{line[-(most // 3) :]}"
    return "".join(_drawable(char) for char in line)


def is_drawn(text: str) -> bool:
    """Whether `label` has any character of the text to show."""
    return any(char not in f"{BOX}… " for char in label(text))


def _drawable(char: str) -> str:
    if char in _characters(findfont(FontProperties(family=mpl.rcParams["font.family"][:1]))):
        return char
    category = unicodedata.category(char)
    if category in _INVISIBLE or "FITZPATRICK" in unicodedata.name(char, ""):
        return ""
    family = None if category[0] in "CZ" else _family_with(char)
    if family is None:
        name = unicodedata.name(char, "") if category == "So" else ""
        return f"({name.lower()})" if name else BOX
    if family not in mpl.rcParams["font.family"]:
        mpl.rcParams["font.family"] = [*mpl.rcParams["font.family"], family]
    return char


@functools.cache
def _family_with(char: str) -> str | None:
    """An installed font that has the character, upright and of regular weight if there is one."""
    _register_package()
    entries = sorted(fontManager.ttflist, key=lambda entry: (entry.style != "normal", str(entry.weight) not in _REGULAR))
    having = (entry.name for entry in entries if char in _characters(entry.fname))
    family = next((name for name in having if char in _characters(_file_of(name))), None)
    if family is None and unicodedata.category(char) == "Lo":
        _advise()
    return family


_REGULAR = ("400", "normal", "regular", "book")


@functools.cache
def _file_of(family: str) -> str:
    """The file that matplotlib takes for a family; of families in several files it need not hold every character."""
    return str(findfont(FontProperties(family=[family])))


@functools.cache
def _characters(path: str) -> frozenset[str]:
    """What a font draws; nothing for one that matplotlib cannot use, such as emoji that are pictures."""
    try:
        font = FT2Font(path)
        draws = font.scalable and not font.family_name.startswith("Last Resort")  # matplotlib's own, a box for each character
        return frozenset(map(chr, font.get_charmap())) if draws else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.cache
def _register_package() -> None:
    spec = importlib.util.find_spec(_FONT_PACKAGE)
    for path in sorted(Path(spec.origin).parent.glob("fonts/NotoSansCJK*")) if spec and spec.origin else ():
        fontManager.addfont(str(path))


@functools.cache
def _advise() -> None:
    log.warning(
        "figures show %s where no installed font has a character; a font with it helps, such as Noto Sans CJK, or the extra "
        "'fonts' (pip install %s)", BOX, _FONT_PACKAGE
    )  # fmt: skip
