"""Time to align all published captions with their classes: parsing, class matching, tokenizing, offsets.

    python -m benchmarks.alignment ../shared/captions ../shared/clip/bpe_simple_vocab_16e6.txt.gz

The released captioner needs about nine minutes for the same captions. Each run adds a line to
outputs/benchmarks/alignment.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from goca.data.classes import ClassTable
from goca.prompts import Published, TextSegment
from goca.prompts.align import align
from goca.prompts.caption import parse
from tests.helpers.vocabularies import clip_tokenizer

DATASETS = {
    "voc": "voc",
    "context": "context",
    "coco-object": "coco_object",
    "coco-stuff": "coco_stuff",
    "city": "cityscapes",
    "ade": "ade20k",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path, help="folder with the authors' JSON files")
    parser.add_argument("vocabulary", type=Path, help="CLIP's merges, bpe_simple_vocab_16e6.txt.gz")
    arguments = parser.parse_args()
    axis = (TextSegment(clip_tokenizer(arguments.vocabulary), 77),)
    count, lost, started, used = 0, 0, time.perf_counter(), time.process_time()
    for file, name in DATASETS.items():
        table = ClassTable.load(name)
        for caption in Published(path=arguments.captions / f"{file}.json").captions.values():
            prompt = align(parse(caption, table, background_token=True), axis)
            count += 1
            lost += len(prompt.lost_classes)
    result = {
        "captions": count,
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
        "lost_classes": lost,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one process",
        "date": datetime.now(UTC).date().isoformat(),
    }
    print(json.dumps(result))
    machine.append(result, machine.RESULTS.with_name("alignment.jsonl"))


if __name__ == "__main__":
    main()
