"""PNG files written without PIL, for depths and palettes that it does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples a pixel


def write_png(path: Path, samples: np.ndarray, depth: int, colour_type: int, palette: bytes = b"") -> Path:
    """Write samples (H, W) or (H, W, C) of `depth` bits as they are; returns the path."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = samples.shape[:2]
    bits = (samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    parts += [chunk(b"PLTE", palette)] if palette else []
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path
