"""Small operations that several stages share. A map is (..., h, w), float32; its last two axes are the image plane."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Grid = tuple[int, int]  # (rows, columns) of a map, or (height, width) of a picture

# A map whose range is below this part of its largest value is a constant as far as float32 can tell.
CONSTANT = 1e-6


# Number formats of half precision, and the names torch has for the instructions that multiply them on a CPU.
HALF = (torch.float16, torch.bfloat16)
_INSTRUCTIONS = {torch.float16: {"avx512_fp16", "amx_fp16"}, torch.bfloat16: {"avx512_bf16", "amx_bf16"}}

SLOW_HALF = (
    "this processor has no instructions for bfloat16; layers take 5 to 60 times as long as in float32,"
    " which needs twice the memory"
)


@lru_cache(maxsize=16)
def multiplies_half(dtype: torch.dtype, device: str) -> bool:
    """Whether products of this half-precision format are faster than float32's on a device, `cpu` or `cuda`.

    A CPU without instructions for them takes 5 to 9 times as long (docs/performance.md), and rounds besides. Of processors
    that nobody has measured, and with a torch that does not name the instructions, the answer is no.
    """
    if device != "cpu" or dtype not in HALF:
        return device == "cuda" and dtype in HALF
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name, False) for name in _INSTRUCTIONS[dtype])


def slow_half(dtype: torch.dtype, device: str) -> bool:
    """Whether this is half precision on a CPU that has no instructions for it, where float32 is the faster one."""
    return device == "cpu" and dtype in HALF and not multiplies_half(dtype, device)


@lru_cache(maxsize=64)
def resize_matrix(source: int, target: int, mode: Interpolation, device: torch.device | str = "cpu") -> Tensor:
    """The (target, source) matrix that resizes one axis: half-pixel centres, no antialiasing; nearest rounds down.

    The same tensor comes again for the same arguments; do not change it.

    >>> resize_matrix(2, 4, "bilinear").tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    columns = torch.eye(source, device=device).view(1, source, source, 1)
    align = None if mode == "nearest" else False
    return F.interpolate(columns, size=(target, 1), mode=mode, align_corners=align)[0, :, :, 0].T


def resize(maps: Tensor, size: tuple[int, int], mode: Interpolation = "bilinear") -> Tensor:
    """Resize (..., h, w) maps to `size`, as `resize_matrix` does on both axes; any leading axes, 0 maps included."""
    if maps.shape[-2:] == size:
        return maps
    if not maps.numel():
        return maps.new_zeros(*maps.shape[:-2], *size)
    align = None if mode == "nearest" else False
    if maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last):  # for which a CPU is many times as fast
        return F.interpolate(maps, size=size, mode=mode, align_corners=align)
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode=mode, align_corners=align).view(*maps.shape[:-2], *size)


def resize_adjoint(maps: Tensor, size: tuple[int, int], mode: Interpolation = "bilinear") -> Tensor:
    """The transpose of resizing from `size` to the maps' grid: <resize(P), X> = <P, resize_adjoint(X)>."""
    if maps.shape[-2:] == size:
        return maps
    height, width = maps.shape[-2:]
    rows = resize_matrix(size[0], height, mode, maps.device).to(maps.dtype)
    columns = resize_matrix(size[1], width, mode, maps.device).to(maps.dtype)
    return rows.T @ maps @ columns  # (..., h, w)


def map_grid(picture: Grid, side: int, cells: int) -> Grid:
    """The grid of maps of a picture (height, width) where a square of `side` pixels has `cells` x `cells`.

    At least three cells on an axis, as many as the calibration's blur needs.

    >>> map_grid((64, 64), 64, 32), map_grid((64, 128), 64, 32), map_grid((8, 256), 64, 16)
    ((32, 32), (32, 64), (3, 64))
    """
    least = min(3, cells)
    rows, columns = (max(least, round(pixels * cells / side)) for pixels in picture)
    return rows, columns


def aspect_grid(grid: Grid, cells: int) -> Grid:
    """A grid of about the same aspect ratio whose shorter side has `cells`, nowhere finer than the one given.

    >>> aspect_grid((64, 64), 32), aspect_grid((64, 96), 32), aspect_grid((64, 96), 128)
    ((32, 32), (32, 48), (64, 96))
    """
    rows, columns = (min(side, round(side * cells / min(grid))) for side in grid)
    return rows, columns


def is_constant(maps: Tensor) -> Tensor:
    """Which of the (..., h, w) maps hold one value only, rounding aside: (...,) bool; a map with NaN is not constant."""
    low, high = maps.amin((-2, -1)), maps.amax((-2, -1))
    return high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())


def minmax(maps: Tensor, parity: bool = False) -> Tensor:
    """Each map to the range 0 ... 1. A constant map becomes zeros; `parity` leaves it 0/0.

    >>> minmax(torch.tensor([[1.0, 2.0], [3.0, 5.0]])).tolist()
    [[0.0, 0.25], [0.5, 1.0]]
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    scaled = (maps - low) / (high - low)
    return scaled if parity else scaled.masked_fill(is_constant(maps)[..., None, None], 0.0)


def gaussian_blur(maps: Tensor, kernel_size: int = 5, sigma: float = 1.1) -> Tensor:
    """Gaussian blur of each map with reflected borders; 5x5 and sigma 1.1 are the released code's. Needs sides > kernel_size
    // 2."""
    if not maps.numel():
        return maps
    half = kernel_size // 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1, device=maps.device, dtype=maps.dtype) / sigma) ** 2)
    kernel = weights / weights.sum()
    padded = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (half, half, half, half), mode="reflect")
    vertical = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(vertical, kernel.view(1, 1, 1, -1)).view(maps.shape)


def mean_of(parts: Iterator[Tensor]) -> Tensor:
    """The mean of tensors of one shape, added up in the first of them: two stand at a time, however many come.

    >>> mean_of(torch.tensor([value]) for value in (1.0, 2.0, 6.0))
    tensor([3.])
    """
    total, count = next(parts), 1
    for part in parts:
        total += part
        count += 1
    return total / count


def blocks(total: int, bytes_each: int, max_bytes: int) -> Iterator[slice]:
    """Slices that cover `range(total)`, as many items in each as `max_bytes` allows, at least one.

    >>> [(block.start, block.stop) for block in blocks(5, 8, 16)]
    [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, max_bytes // max(1, bytes_each))
    return (slice(start, min(start + step, total)) for start in range(0, total, step))
