"""How much memory a finished run came to need after its first images.

python -m goca.run dataset.count=2000 logger=none run.dir=outputs/memory && python -m benchmarks.memory outputs/memory

Prints one JSON line. Each record holds the peak of resident memory until then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from goca.runs.folder import RunFolder


def growth(folder: Path, after: int = 100) -> dict[str, float]:
    """Peak memory in MB after `after` images and at the end."""
    peaks = [record["peak_memory_bytes"] / 1e6 for record in RunFolder(folder).records()]
    return {
        "images": len(peaks),
        "after": after,
        "mb": peaks[after - 1],
        "mb_at_end": peaks[-1],
        "growth_mb": peaks[-1] - peaks[after - 1],
    }


if __name__ == "__main__":
    print(json.dumps(growth(Path(sys.argv[1]))))
