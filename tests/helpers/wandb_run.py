"""What Weights & Biases would be told, read back from an offline run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class WandbRun:
    """An offline run as W&B's own command reads it back."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
        self.files = file.parent / "files"
        self._records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        (self.run,) = self._of("run")
        self.summary: dict[str, Any] = {}
        for part in self._of("summary"):
            self.summary |= part["update"]
        (self.history,) = (part["item"] for part in self._of("history"))

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self._records if record["type"] == kind]

    def table(self, name: str) -> list[list[Any]]:
        return json.loads((self.files / self.history[f"tables/{name}.path"]).read_text())["data"]
