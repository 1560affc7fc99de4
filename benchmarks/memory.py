"""How much memory a finished run came to need after its first images.

python -m goca.run dataset.count=2000 logger=none output=outputs/memory && python -m benchmarks.memory outputs/memory

Prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.helpers.kills import growth

if __name__ == "__main__":
    print(json.dumps(growth(Path(sys.argv[1]))))
