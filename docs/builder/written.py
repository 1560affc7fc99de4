"""Pages that are written from data: what a run leaves behind, what was measured, and what each model takes."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from docs.builder.pages import ROOT
from docs.builder.settings import head, inherited, options_of, table
from docs.builder.typed import words
from goca.config.explained import parameters
from goca.runs.records import SCHEMA, Facts, ImageRecord, Summary


# -------------------------------------------------------------------------------------------------------------- records
def records_page() -> str:
    """Fields of records.jsonl, run.json and summary.json."""
    parts = [
        ("records.jsonl", ImageRecord, (), "One line per image, in the order in which they were done."),
        ("run.json", Facts, (), "What is evaluated, written before the first image."),
        ("summary.json", Summary, (Facts,), f"`run.json`, and the numbers that follow from the records. Schema {SCHEMA}."),
    ]
    lines = [
        "# What a run leaves behind",
        "",
        "Written from the dataclasses in `goca/runs/records.py`. Counts are exact, so that numbers of any subset of images can",
        "be made from the records alone; IoU and accuracy are in per cent, seconds are wall-clock, memory is in bytes.",
        "",
        table(
            ["file", ""],
            [
                ("`config.yaml`", "the composed configuration, every reference resolved, secrets left out"),
                ("`run.json`", "[what is evaluated](#runjson)"),
                ("`records.jsonl`", "[one record per image](#recordsjsonl)"),
                ("`summary.json`", "[the numbers](#summaryjson)"),
                ("`figures/`", "images, truths and predictions of the first `figures.count` images, and thumbnails"),
                ("`predictions/`", "label maps as PNG where `save_predictions=true`, and of images without ground truth"),
                ("`tables/`, `csv/` ...", "what loggers write; see [where a run is shown](../results.md)"),
            ],
        ),
        "",
        "`pandas.read_json('records.jsonl', lines=True)` reads the records. A record's `confusion` holds, per threshold,",
        "truth, prediction, count, truth, prediction, count ...; `goca.runs.summary.expand` makes matrices (T, K, K) of it.",
    ]
    for file, kind, bases, about in parts:
        known = {field.name for base in bases for field in dataclasses.fields(base)}
        meanings = parameters(f"goca.runs.records.{kind.__name__}")
        hints = typing.get_type_hints(kind)
        rows = [
            (f"`{field.name}`", words(hints[field.name]), "yes" if _needed(field) else "", meanings.get(field.name, ""))
            for field in dataclasses.fields(kind)
            if field.name not in known
        ]
        lines += ["", f"## {file}", "", about, "", table(["key", "type", "always", "meaning"], rows)]
    return "\n".join(lines) + "\n"


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# ------------------------------------------------------------------------------------------------------------- measured
def measured_page(root: Path = ROOT) -> str:
    """Every line of benchmarks/*.jsonl: what was measured, where, with which versions and at which commit."""
    lines = [
        "# Measured: time and memory",
        "",
        "Every row is a line of `benchmarks/*.jsonl`, appended by the command of its module (`python -m benchmarks.forward`",
        "...). Ratios are to the bare forward of the same call. What they mean: [speed and memory](../performance.md).",
    ]
    for file in sorted((root / "benchmarks").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for kind in dict.fromkeys(_kind(row) for row in rows):
            of_kind = [row for row in rows if _kind(row) == kind]
            lines += ["", f"## {kind}" if file.stem == "results" else f"## {file.stem}: {kind}", "", _measurements(of_kind)]
    return "\n".join(lines) + "\n"


def _kind(row: Mapping[str, Any]) -> str:
    name = row.get("benchmark")
    return str(name) if name else "forward" if "variant" in row else "other"


_LAST = ("machine", "versions", "date", "commit")


def _measurements(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in (*_LAST, "benchmark")]
    keys += [key for key in _LAST if any(key in row for row in rows)]
    return table([_title(key) for key in keys], [[_cell(key, row.get(key)) for key in keys] for row in rows])


def _title(key: str) -> str:
    return {"peak_bytes": "peak GiB"}.get(key, key.replace("_", " "))


def _cell(key: str, content: Any) -> str:
    if content is None:
        return ""
    if key == "peak_bytes":
        return f"{content / 2**30:.2f}"
    if isinstance(content, dict):
        return ", ".join(f"{name} {_cell(name, inner)}" for name, inner in content.items())
    if isinstance(content, list):
        return " ... ".join(_cell("", inner) for inner in content)
    return f"{content:.4g}" if isinstance(content, float) else str(content)


# --------------------------------------------------------------------------------------------------------------- models
def memory_table(root: Path = ROOT) -> dict[str, list[str]]:
    """The rows of the table of weights in docs/backbones.md, which a test compares with the architectures."""
    text = (root / "docs" / "backbones.md").read_text(encoding="utf-8")
    _, _, section = text.partition("\n## Memory\n")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.| ]+) \|$", section.partition("\n## ")[0], flags=re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def measured_seconds(root: Path = ROOT) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(model, device) -> the measurement of one image with GoCA and affinity that has most rounds, the last one of those."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in (root / "benchmarks" / "results.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        variant = str(row.get("variant", "")).replace(" ", "")
        if variant in ("goca+affinity", "goca_affinity") and row.get("batch", 1) == 1 and "seconds" in row:
            device = "GPU" if "NVIDIA" in str(row.get("machine")) else "CPU"
            before = found.get((str(row["model"]), device), {})
            if row.get("rounds", 1) >= before.get("rounds", 1):
                found[str(row["model"]), device] = row
    return found


def models_page(root: Path = ROOT) -> str:
    """Every `model=` with its checkpoint, memory and, where somebody measured it, seconds per image."""
    memory, seconds = memory_table(root), measured_seconds(root)
    lines = [
        "# Models",
        "",
        "GiB: of the weights in half precision, computed from the published architectures, as loaded by default and with",
        "`model.placement=offload` (what stays on the device); activations come on top, and were",
        "[measured](../performance.md) at 1.00 to 1.09 times the bare forward's peak on a GPU. Seconds: one image with GoCA",
        "and affinity, measured with random weights at full size; the machine: [list of measurements](measured.md).",
        "An empty cell was not measured. Which models were checked with what: [verified](../verified.md).",
        "",
    ]
    rows = []
    for name in options_of("model"):
        content, _ = inherited("model", name)
        checkpoint = str(content.get("checkpoint", ""))
        page = f"[{checkpoint}](https://huggingface.co/{checkpoint})" if re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint) else ""
        weights = memory.get(name, [""] * 3)
        times = [seconds.get((name, device)) for device in ("GPU", "CPU")]
        shown = [f"{row['seconds']:.2f} ({row.get('size')} px)" if row else "" for row in times]
        size = content["size"] if isinstance(content["size"], int) else ""
        rows.append((f"`{name}`", page or ("bundled" if "bundled" in checkpoint else ""), size,
                     weights[0], weights[2], *shown, head("model", name).split("\n")[0]))  # fmt: skip
    columns = ["`model=`", "checkpoint", "px", "GiB", "GiB offloaded", "s on a GPU", "s on 2 CPU cores", ""]
    return "\n".join([*lines, table(columns, rows)]) + "\n"
