"""Cases of the reference data: what the authors' functions returned for given inputs (format: its README).

The folder is `GOCA_REFERENCE`, by default `../shared/reference`; another set in the same format needs no change here.

    @pytest.mark.parametrize("case", cases("affinity_propagate"))
    def test_affinity(case):
        torch.testing.assert_close(refine(case.inputs["cross_feat"]), case.expected["out"], atol=1e-5, rtol=0)
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

REFERENCE = Path(os.environ.get("GOCA_REFERENCE", Path(__file__).resolve().parents[3] / "shared" / "reference"))
NUMERICS = REFERENCE / "numerics"


@dataclass(frozen=True)
class Case:
    """One case: `info` is its entry of cases.json; tensors are read on first use."""

    info: dict[str, Any]
    folder: Path

    def __getattr__(self, name: str) -> Any:
        """Entries of cases.json as attributes (`case.options`, `case.size`, ...)."""
        try:
            return self.info[name]
        except KeyError:
            raise AttributeError(f"case {self.info['id']} has no entry {name!r}") from None

    @property
    def quirk(self) -> bool:
        """Documents a behaviour that may deliberately differ here."""
        return bool(self.info.get("quirk"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Shared tensors, overridden by those of the case's own file."""
        files = [*self.info["shared_inputs"], self.info["file"]]
        return {name: tensor for file in files for name, tensor in load_file(self.folder / file).items()}

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return self._section("inputs")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return self._section("expected")

    def _section(self, section: str) -> dict[str, Tensor]:
        """Tensors `section/<name>` that the case lists, by `<name>`."""
        return {name.removeprefix(f"{section}/"): self.tensors[name] for name in self.info[section]}


def cases(*families: str, where: Callable[[Case], bool] = lambda case: True, folder: Path = NUMERICS) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: every case of the families, or one that is skipped where the data is absent."""
    index = folder / "cases.json"
    if not index.is_file():
        absent = pytest.mark.skip(reason=f"the reference data is not here ({REFERENCE.name}/{folder.name})")
        return [pytest.param(None, id="absent", marks=absent)]
    found = [Case(info, folder) for info in json.loads(index.read_text())["cases"] if info["family"] in families]
    return [pytest.param(case, id=case.id) for case in found if where(case)]
