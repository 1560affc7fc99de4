"""The records of a run as a Parquet table, for pandas, DuckDB and the like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from goca.disk import replacing
from goca.runs.records import ImageRecord

# The column type of each field's annotation.
_TYPES = {
    "str": pa.string(),
    "str | None": pa.string(),
    "int": pa.int64(),
    "Sequence[str]": pa.list_(pa.string()),
    "Sequence[int]": pa.list_(pa.int64()),
    "Sequence[int] | None": pa.list_(pa.int64()),
    "Sequence[Sequence[int]] | None": pa.list_(pa.list_(pa.int64())),
    "Mapping[str, float]": pa.map_(pa.string(), pa.float64()),
}
SCHEMA = pa.schema({field.name: _TYPES[str(field.type)] for field in dataclasses.fields(ImageRecord)})


def write_parquet(records: Sequence[ImageRecord], path: Path) -> None:
    """One row per record, under the final name only when it is whole."""
    rows = [{name: _cell(value) for name, value in record.json.items()} for record in records]
    with replacing(path) as part:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), part)


def _cell(value: Any) -> Any:
    return list(value.items()) if isinstance(value, Mapping) else value
