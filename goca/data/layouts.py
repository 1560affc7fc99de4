"""Where the masks of a data set may lie: in its official folders, or where mmsegmentation's converters have put them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_CONVERTED = "TrainIds"  # in the names of masks that were converted, which lie beside those they were made of


@dataclass(frozen=True)
class Layout:
    """One way to lay out pictures and masks.

    Attributes:
        images: folder of the pictures under the root.
        masks: folder of the masks under the root.
        ending: of the masks' names; what is before it is the image's id.
        values: what the masks store, in the data set's own words.
    """

    images: str
    masks: str
    ending: str
    values: str

    def names(self, root: Path) -> list[str]:
        """Sorted file names of the masks that lie there."""
        folder = root / self.masks
        if not folder.is_dir():
            return []
        converted = _CONVERTED in self.ending
        names = (path.name for path in folder.glob(f"*{self.ending}"))
        return sorted(name for name in names if name[0] != "." and (converted or _CONVERTED not in name))


def first_layout(root: Path, layouts: Sequence[Layout]) -> Layout:
    """The first layout whose masks are there, or the first one of all, for messages."""
    return next((layout for layout in layouts if layout.names(root)), layouts[0])
