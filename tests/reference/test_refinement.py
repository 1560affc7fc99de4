"""Refinements against the authors' functions."""

import pytest
import torch
from torch import Tensor

from goca.method.refinement import CRF, PAMR, Activation, Affinity, Prototype, RefinementContext, SpaceMerge
from goca.method.refinement.crf import available
from goca.method.refinement.pamr import median_filter, pamr
from goca.method.refinement.propagation import Propagation
from goca.ops import resize
from tests.helpers.explicit_attention import ExplicitAttention, class_maps
from tests.helpers.reference_cases import Case, cases

BYTES = 2**14  # small: several blocks even for these sizes


def _matrix(operator: Propagation, size: int) -> Tensor:
    """T as (h, w, h, w), column by column."""
    pixels = size * size
    basis = torch.eye(pixels).view(pixels, size, size)
    return operator(basis).flatten(1).T.reshape(size, size, size, size)


@pytest.mark.parametrize("case", cases("self_attn_run"))
@pytest.mark.parametrize("keep_bytes", [0, 2**20])
def test_self_attention_affinity(case: Case, keep_bytes: int):
    attentions = [ExplicitAttention.square(maps[0].mean(0)) for maps in case.inputs.values()]
    operator = Propagation(attentions, (case.size, case.size), keep_bytes, BYTES)
    torch.testing.assert_close(_matrix(operator, case.size), case.expected["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("activation_similarity_run"))
def test_activation_affinity(case: Case):
    """All channels, or channel 0 alone where upstream's features had lost an axis (P2)."""
    features = {name: feature.reshape(-1, *feature.shape[-2:]) for name, feature in case.inputs.items()}
    activation = Activation(tuple(features), channels="first" if case.quirk else "all")
    affinities = activation.affinities(RefinementContext((case.size, case.size), features=features))
    operator = Propagation(affinities, (case.size, case.size), 0, BYTES, "bicubic")
    torch.testing.assert_close(_matrix(operator, case.size), case.expected["out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("affinity_propagate"))
def test_affinity(case: Case):
    size, order = case.size, case.options["order"]
    attention = {"layer": ExplicitAttention.square(case.inputs["space_feat"].reshape(size * size, size * size))}
    context = RefinementContext((size, size), attention, max_bytes=BYTES)
    maps = Affinity(("layer",), order).refine(class_maps(case.inputs["cross_feat"]), context)
    tolerance = 5e-5 if order >= 5 else 1e-5
    torch.testing.assert_close(maps.stack(), case.expected["out"], atol=tolerance, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", cases("pamr_module"))
def test_pamr(case: Case):
    out = pamr(
        case.inputs["image"][0], case.inputs["mask"][0], case.options["num_iter"], tuple(case.options["dilations"]), 2**14
    )
    torch.testing.assert_close(out, case.expected["out"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", cases("pamr_task_fixed"))
def test_pamr_of_labels(case: Case):
    """One channel per label, arg-max, median filter; upstream's wrapper itself gives zeros only (P8, docs/parity.md)."""
    labels = case.inputs["pred"].unique()
    masks = (case.inputs["pred"] == labels[:, None, None]).float()
    image = resize(case.inputs["image"].permute(2, 0, 1).float(), tuple(case.inputs["pred"].shape))
    settings = PAMR()
    refined = pamr(image, masks, settings.iterations, settings.dilations)
    torch.testing.assert_close(refined, case.expected["refined"][0], atol=1e-5, rtol=0)
    best = median_filter(refined.argmax(0)[None].float())[0].long()
    assert torch.equal(labels[best], case.expected["out"])


@pytest.mark.parametrize("case", cases("space_merge"))
def test_space_merge(case: Case):
    pixels = case.size * case.size
    attention = ExplicitAttention.square(case.inputs["space_feat"].reshape(pixels, pixels))
    merge = SpaceMerge(("layer",), case.options["grid_len"], case.options["threshold"])
    assert torch.equal(merge.segments([attention], (case.size, case.size), BYTES), case.expected["hard_proposals"])
    context = RefinementContext((case.size, case.size), {"layer": attention}, max_bytes=BYTES)
    assert torch.equal(merge.refine(class_maps(case.inputs["cross_feat"]), context).stack(), case.expected["out"])


@pytest.mark.parametrize("case", cases("prototype"))
def test_prototype(case: Case):
    target = case.options["target_size"]
    size = (target, target) if isinstance(target, int) else tuple(target)
    context = RefinementContext((16, 16), features={"layer": case.inputs["dense"]}, image=torch.zeros(3, *size))
    maps = Prototype("layer").refine(class_maps(case.inputs["attn"]), context)
    assert torch.equal(maps.stack().to(torch.uint8), case.expected["out"])


@pytest.mark.skipif(not available(), reason="pydensecrf2 is not installed")
@pytest.mark.parametrize("case", cases("dcrf_class"))
def test_crf(case: Case):
    image, scores = case.inputs["image"], case.inputs["prob"]
    torch.testing.assert_close(CRF().infer(image, scores), case.expected["q"], atol=1e-5, rtol=0)
    other = case.info["other_params"]
    settings = CRF(
        other["iter_max"], other["pos_xy_std"], other["pos_w"], other["bi_xy_std"], other["bi_rgb_std"], other["bi_w"]
    )
    torch.testing.assert_close(settings.infer(image, scores), case.expected["q_other_params"], atol=1e-5, rtol=0)


@pytest.mark.skipif(not available(), reason="pydensecrf2 is not installed")
@pytest.mark.parametrize("case", cases("dcrf_task"))
def test_crf_ofclass_maps(case: Case):
    """Given the picture that upstream's wrap-around makes of the image (P9), the result is upstream's."""
    image = case.expected["crf_image"].permute(2, 0, 1).float() / 127.5 - 1
    maps = CRF().refine(class_maps(case.inputs["pred"]), RefinementContext((10, 10), image=image))
    torch.testing.assert_close(maps.stack(), case.expected["out"], atol=1e-4, rtol=0)
