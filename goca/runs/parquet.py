"""The records of a run as a Parquet table, for pandas, DuckDB and the like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from goca.runs.journal import Record

_BY_NAME = pa.map_(pa.string(), pa.float64())
_INTEGERS = pa.list_(pa.int64())
SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "index": pa.int64(),
        "seed": pa.int64(),
        "error": pa.string(),
        "prompts": pa.list_(pa.string()),
        "classes": _INTEGERS,
        "lost_classes": _INTEGERS,
        "confusion": pa.list_(_INTEGERS),
        "layer_weights": _BY_NAME,
        "seconds": _BY_NAME,
        "peak_memory_bytes": pa.int64(),
        "warnings": pa.list_(pa.string()),
    }
)


def write_parquet(records: Sequence[Record], path: Path) -> None:
    """One row per record, under the final name only when it is whole."""
    rows = [
        {name: list(value.items()) if isinstance(value := record.get(name), dict) else value for name in SCHEMA.names}
        for record in records
    ]
    part = path.with_name(f"{path.name}.part")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), part)
    part.replace(path)
