"""Kill a run at random moments, continue it, and compare with a run that nobody disturbed.

python -m benchmarks.kills --kills 25 --folder outputs/kills limit=24 logger=none

Every fifth kill comes while a record is half written; the others from outside, at any moment between the start of the process
and the end of the run. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.helpers.kills import campaign


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    print(json.dumps(asdict(campaign(options.overrides, options.folder, options.kills, options.seed))))


if __name__ == "__main__":
    sys.exit(main())
