"""Cases of other methods' released functions, `$GOCA_REFERENCE/peers` (format: the README there)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from goca.attention.call import AttentionCall
from tests.helpers.reference_cases import REFERENCE, Case, cases

PEERS = REFERENCE / "peers"
COMPARED: set[str] = set()  # families of which some test takes the cases


def peer_cases(part: str, *families: str, option: str | None = None) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: the cases of these families in part `a` or `b` that have this option."""
    COMPARED.update(families)
    index = PEERS / part / "cases.json"
    if not index.is_file():
        absent = pytest.mark.skip(reason=f"no reference data at {REFERENCE.name}/peers/{part}")
        return [pytest.param(None, id="absent", marks=absent)]
    return cases(*families, where=lambda case: option is None or option in case.options, folder=PEERS / part)


def agree(case: Case, name: str, got: Tensor) -> None:
    """Compare with `expected/name`: labels exactly (but for those the case allows), values within the case's tolerance."""
    want = case.expected[name]
    assert got.shape == want.shape, (name, tuple(got.shape), tuple(want.shape))
    if not want.is_floating_point() or want.dtype == torch.bool:
        differ = int((got.to(torch.int64) != want.to(torch.int64)).sum())
        allowed = case.info.get("allowed_differences", {}).get(
            name, case.info.get("float64_label_differences", {}).get(name, 0)
        )
        assert differ <= allowed, f"{name}: {differ} of {want.numel()} entries differ"
        return
    assert torch.equal(got.isnan(), want.isnan()), f"{name}: other entries are NaN"
    if not want.numel():
        return
    largest = float(want.nan_to_num().abs().max())
    given = case.info.get("tolerance", {}).get(f"expected/{name}")
    # The authors' float32 is so far from float64; ours, summed in another order, may lie as far on the other side, and
    # somewhat more where a chain of products amplifies it.
    rounding = min(10 * case.info.get("float64_max_abs_diff", {}).get(name, 0.0), 1e-3 * largest)
    tolerance = max(given, 1e-6) if given is not None else max(3e-5 * largest, rounding, 1e-12)
    difference = float((got.double() - want.double()).nan_to_num().abs().max())
    assert difference <= tolerance, f"{name}: differs by {difference:.2e}, allowed are {tolerance:.2e}"


def agree_where_given(case: Case, name: str, got: Tensor) -> None:
    """As `agree`, for outputs that not every case of a family has."""
    if name in case.expected:
        agree(case, name, got)


def layer_call(case: Case, layer: dict[str, Any], prefix: str = "", key: str = "key") -> AttentionCall:
    """The attention call of a layer from its queries and keys."""
    query, keys = case.inputs[f"{prefix}{layer['name']}/query"], case.inputs[f"{prefix}{layer['name']}/{key}"]
    kind = layer["kind"]
    pixels, count = layer["h"] ** 2, keys.shape[2]
    text = slice(None) if kind == "cross" else slice(pixels, count) if kind == "joint" else None
    image = slice(None) if kind == "self" else slice(0, pixels) if kind == "joint" else None
    return AttentionCall(
        layer=layer["name"],
        grid=(layer["h"], layer["h"]),
        query=query[:, :, :pixels],
        key=keys,
        value=keys,
        output=query[:, :, :pixels],
        scale=query.shape[-1] ** -0.5,
        text=text,
        image=image,
    )
