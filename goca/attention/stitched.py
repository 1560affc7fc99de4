"""What windows of one picture showed, joined: to everything after it, a picture seen in windows is one large picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goca.attention.statistics import Observation, SelfAttention
from goca.data.sizes import Window
from goca.errors import ConfigError, ModelError
from goca.method.calibration import ClassMaps
from goca.ops import Grid, resize


def average(maps: Sequence[Tensor], windows: Sequence[Window], picture: Grid, grid: Grid) -> Tensor:
    """Maps (..., h, w) of windows in their places on a grid over the picture, divided by how many cover a place: (..., *grid).

    A window's map is resized bilinearly where its place has another number of cells.
    """
    total = maps[0].new_zeros(*maps[0].shape[:-2], *grid)
    count = total.new_zeros(grid)
    for part, window in zip(maps, windows, strict=True):
        rows, columns = window.cells(picture, grid)
        total[..., rows, columns] += resize(part, (rows.stop - rows.start, columns.stop - columns.start))
        count[rows, columns] += 1
    return total / count


def continued(maps: Sequence[Tensor], windows: Sequence[Window], picture: Grid, otherwise: Grid) -> Tensor:
    """The average on the grid that continues the windows' own; on `otherwise` where none does."""
    return average(maps, windows, picture, windows[0].grid((maps[0].shape[-2], maps[0].shape[-1]), picture) or otherwise)


class StitchedAttention:
    """Self-attention of a picture of which every window was seen alone: what lies in no common window gets none.

    A row is the mean of the rows of the windows that hold its pixel, so that rows add up to what they did in the windows.

    Args:
        parts: of the windows, on grids of one cell size.
        windows: their places.
        picture: (height, width) of the whole in pixels.

    Raises:
        ModelError: windows that begin within a cell.
    """

    def __init__(self, parts: Sequence[SelfAttention], windows: Sequence[Window], picture: Grid) -> None:
        grids = {window.grid(part.grid, picture) for part, window in zip(parts, windows, strict=True)}
        grid = grids.pop()
        if grids or grid is None:
            raise ModelError("sizing=window: windows have to begin where a layer's cells do; take a stride of more whole cells")
        self.grid: Grid = grid
        self._parts = parts
        whole = torch.arange(grid[0] * grid[1]).view(grid)
        self._cells = [whole[window.cells(picture, grid)].flatten() for window in windows]  # of the picture, in window order
        self._places = []  # of each cell of the picture within a window, -1 outside
        for cells in self._cells:
            place = torch.full((grid[0] * grid[1],), -1)
            place[cells] = torch.arange(len(cells))
            self._places.append(place)
        self._count = torch.stack([place >= 0 for place in self._places]).sum(0)

    @property
    def heads(self) -> int:
        """How many heads the layer has."""
        return self._parts[0].heads

    def rows(self, index: Tensor) -> Tensor:
        """As `SelfAttention.rows`, over the whole picture."""
        index = index.cpu()
        return self._joined(index, [part.rows(here) for part, here, _ in self._seen(index)])

    def head_rows(self, index: Tensor, heads: Sequence[int] | None = None) -> Iterator[Tensor]:
        """As `SelfAttention.head_rows`."""
        index = index.cpu()
        for head in range(self.heads) if heads is None else heads:
            found = [next(iter(part.head_rows(here, [head]))) for part, here, _ in self._seen(index)]
            yield self._joined(index, found)

    @property
    def through_kernel(self) -> bool:
        """As `SelfAttention.through_kernel`."""
        return all(part.through_kernel for part in self._parts)

    def apply(self, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """As `SelfAttention.apply`."""
        index = torch.arange(len(values)) if rows is None else rows.cpu()
        total = values.new_zeros(len(index), values.shape[1], dtype=torch.float32)
        for number, (part, here, asked) in enumerate(self._seen(index)):
            own = values[self._cells[number].to(values.device)]
            total[asked.to(total.device)] += part.apply(own, here.to(values.device)).to(total)
        return total / self._count[index].to(total)[:, None]

    def _seen(self, index: Tensor) -> Iterator[tuple[SelfAttention, Tensor, Tensor]]:
        """Of every window its attention, which of its rows are asked for, and where they stand in the index."""
        for part, places in zip(self._parts, self._places, strict=True):
            place = places[index]
            asked = (place >= 0).nonzero()[:, 0]
            yield part, place[asked], asked

    def _joined(self, index: Tensor, found: Sequence[Tensor]) -> Tensor:
        total = found[0].new_zeros(len(index), self.grid[0] * self.grid[1])
        for rows, cells, (_, _, asked) in zip(found, self._cells, self._seen(index), strict=True):
            total[asked.to(total.device)[:, None], cells.to(total.device)] += rows
        return total / self._count[index].to(total)[:, None]


@dataclass(frozen=True)
class StitchedObservation(Observation):
    """An `Observation` of whole pictures, from one of every window; weights of layers and heads are means over windows."""

    parts: tuple[Observation, ...] = ()
    windows: tuple[Window, ...] = ()
    picture: Grid = (1, 1)

    def self_attention(self, image: int) -> dict[str, SelfAttention]:
        """Self-attention of one picture of the batch, by layer."""
        each = [part.self_attention(image) for part in self.parts]
        return {
            name: StitchedAttention([layers[name] for layers in each], self.windows, self.picture)  # type: ignore[misc]
            for name in each[0]
        }


def stitched(parts: Sequence[Observation], windows: Sequence[Window], picture: Grid, grid: Grid) -> Observation:
    """One observation of pictures whose windows were observed one after the other.

    Args:
        parts: of each window, with the same images in the same order.
        windows: their places.
        picture: (height, width) of the whole in pixels.
        grid: of the maps of the whole.
    """
    if len(parts) == 1:
        return parts[0]

    def whole(maps: Sequence[Tensor]) -> Tensor:
        return continued(maps, windows, picture, grid)

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean(0)

    first = parts[0]
    return StitchedObservation(
        token_maps=average([part.token_maps for part in parts], windows, picture, grid),
        layer_weights={name: mean([part.layer_weights[name] for part in parts]) for name in first.layer_weights},
        # Windows are not independent of each other: their mean's error is at most the mean of theirs.
        layer_weight_errors={
            name: mean([part.layer_weight_errors[name] for part in parts]) for name in first.layer_weight_errors
        },
        head_weights={name: mean([part.head_weights[name] for part in parts]) for name in first.head_weights},
        layer_maps={name: whole([part.layer_maps[name] for part in parts]) for name in first.layer_maps},
        features={name: whole([part.features[name] for part in parts]) for name in first.features},
        max_bytes=first.max_bytes,
        level_maps=tuple(
            (average([part.level_maps[level][0] for part in parts], windows, picture, grid), weight)
            for level, (_, weight) in enumerate(first.level_maps)
        ),
        parts=tuple(parts),
        windows=tuple(windows),
        picture=picture,
    )


def merged(parts: Sequence[ClassMaps], seen: StitchedObservation) -> ClassMaps:
    """Class maps of one picture from those of its windows, averaged by how many cover a place.

    Raises:
        ConfigError: windows whose maps are not of the same classes, as segments without words are.
    """
    first, windows, picture = parts[0], seen.windows, seen.picture
    if any(part.ids != first.ids for part in parts):
        raise ConfigError("sizing.merge=class_maps: segments of one window are not those of another; use token_maps")

    def over(maps: Sequence[Tensor]) -> Tensor:
        rows, columns = maps[0].shape[-2:]
        grid = (round(rows * picture[0] / windows[0].height), round(columns * picture[1] / windows[0].width))
        return average(maps, windows, picture, grid)

    raw = over([part.raw for part in parts])
    joined = first.with_stack(over([part.stack() for part in parts]), *(note for part in parts[1:] for note in part.warnings))
    return replace(joined, raw=raw)


def joined_maps(parts: Sequence[Mapping[str, Tensor]], seen: Observation) -> dict[str, Tensor]:
    """Maps by name (..., h, w) that were kept beside every window's observation, over the whole picture."""
    if not isinstance(seen, StitchedObservation):
        (maps,) = parts
        return dict(maps)
    grid = (seen.token_maps.shape[-2], seen.token_maps.shape[-1])
    return {name: continued([maps[name] for maps in parts], seen.windows, seen.picture, grid) for name in parts[0]}
