"""Notebooks as pages: text and code as they stand, and results where the notebook has been executed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def page(notebook: Path, pictures: Path) -> str:
    """The Markdown of a notebook; pictures among its results are written to a folder beside the page.

    Args:
        notebook: an .ipynb file.
        pictures: the folder, which the page finds under its name.
    """
    content = json.loads(notebook.read_text(encoding="utf-8"))
    parts = []
    for number, cell in enumerate(content["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif text.strip():
            parts.append(f"```python\n{text}\n```")
            parts += _results(cell.get("outputs", ()), pictures, f"{notebook.stem}_{number}")
    parts.append(f"This page is the notebook `notebooks/{notebook.name}` of the repository, which a test executes.")
    return "\n\n".join(parts) + "\n"


def _results(outputs: list[Mapping[str, Any]], pictures: Path, name: str) -> Iterator[str]:
    for number, output in enumerate(outputs):
        data = output.get("data", {})
        if "image/png" in data:
            pictures.mkdir(parents=True, exist_ok=True)
            file = pictures / f"{name}_{number}.png"
            file.write_bytes(base64.b64decode("".join(data["image/png"])))
            yield f"![result]({pictures.name}/{file.name})"
        elif text := "".join(output.get("text", data.get("text/plain", ""))).strip():
            yield f"```text\n{text}\n```"
