"""No family of the peers' reference data goes unseen."""

import importlib
import json
import pkgutil

import pytest

import tests.reference
from tests.helpers.peer_cases import COMPARED, PEERS

# Another readout of ConceptAttention's, which no preset has (docs/methods.md).
NOT_COMPARED = {"concept_attention_flux_diffusers_head"}


@pytest.mark.parametrize("part", ["a", "b"])
def test_every_family_is_compared_by_some_test(part: str) -> None:
    index = PEERS / part / "cases.json"
    if not index.is_file():
        pytest.skip(f"no reference data at peers/{part}")
    for module in pkgutil.iter_modules(tests.reference.__path__, "tests.reference."):
        importlib.import_module(module.name)
    families = {case["family"] for case in json.loads(index.read_text())["cases"]}
    assert families - COMPARED == NOT_COMPARED & families
