"""Blur and calibration against the authors' functions."""

import pytest
import torch

from goca.method.calibration import Calibration, PlainGroups
from goca.ops import gaussian_blur
from tests.helpers.reference_cases import Case, cases
from tests.helpers.reference_chain import CHAINS, prompt_of


@pytest.mark.parametrize("case", cases("gaussian_blur"))
def test_gaussian_blur(case: Case):
    blurred = gaussian_blur(case.inputs["x"], case.options["kernel_size"], case.options["sigma"])
    torch.testing.assert_close(blurred, case.expected["out"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", cases("rescaling"))
def test_every_token_as_its_own_class(case: Case):
    tokens = {token: (token,) for token in case.options["target_token_id"]}
    prompt = PlainGroups(tokens, tuple(case.options["rescaling_token_id"]))
    maps = Calibration(CHAINS[case.options["rescale_method"]])(case.inputs["cross_feat"], prompt)
    torch.testing.assert_close(maps.scores, case.expected["out"], atol=1e-5, rtol=0)


def _calibration(case: Case, parity: bool, steps: tuple[str, ...] | None = None) -> Calibration:
    chain = CHAINS[case.options["rescale_method"]] if steps is None else steps
    return Calibration(chain, case.options["multi_token_method"], parity)


def _token_maps(case: Case) -> torch.Tensor:
    return case.expected["aggregated"].permute(2, 0, 1)


def _merges_background(case: Case) -> bool:
    """`keep_all_objects` hands out every background group as a channel, which class maps do not (docs/parity.md, Q16)."""
    return case.options["keep_all_objects"] is None and "aggregated" in case.expected


def _is_degenerate(case: Case) -> bool:
    """One entity only: upstream's result is 0/0 on rounding noise (Q14)."""
    return case.id.endswith("_degenerate")


def _is_comparable(case: Case) -> bool:
    return _merges_background(case) and not _is_degenerate(case)


@pytest.mark.parametrize("case", cases("goca_cross_run", where=_merges_background))
def test_groups_and_factor(case: Case):
    maps = _calibration(case, parity=True, steps=())(_token_maps(case), prompt_of(case))
    expected = case.expected["class_scores"].permute(2, 0, 1)
    torch.testing.assert_close(maps.scores, expected[: len(maps.ids)], atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", cases("goca_cross_run", where=_is_comparable))
@pytest.mark.parametrize("parity", [True, False])
def test_class_maps(case: Case, parity: bool):
    """`parity` gives every case; the default all but those with NaN, infinities or a constant map."""
    maps = _calibration(case, parity)(_token_maps(case), prompt_of(case))
    expected = case.expected["out"]
    if not parity and not expected.isfinite().all():
        assert maps.warnings
        assert maps.stack().isfinite().all()
        return
    torch.testing.assert_close(maps.stack(), expected, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", cases("goca_cross_run", where=_is_degenerate))
def test_one_entity_keeps_its_shape_by_default(case: Case):
    """Upstream divides the only entity by itself; ours skips that step, so the map still says where."""
    maps = _calibration(case, parity=False)(_token_maps(case), prompt_of(case))
    vanilla = _calibration(case, parity=False, steps=("minmax",))(_token_maps(case), prompt_of(case))
    torch.testing.assert_close(maps.scores, vanilla.scores)
    assert maps.scores.amax() == 1.0
