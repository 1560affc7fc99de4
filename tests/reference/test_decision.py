"""Decision, counts and cluster matching against the authors' functions."""

import pytest
import torch
from torch import Tensor

from goca.method.calibration import ClassMaps
from goca.method.decision import Decision, match_clusters
from goca.runs.metrics import SegmentationMetric, confusion
from tests.helpers.reference_cases import Case, cases

RULES = {"vanilla": "constant", "max": "max", "exact": "exact", "avg": "average", "offset": "offset"}


def _maps(case: Case, image: int) -> ClassMaps:
    """Class maps of one image; upstream's `pred None` is a prompt without any class or background."""
    pred = case.inputs.get(f"pred_{image}", torch.zeros(1, 16, 16))
    return ClassMaps(tuple(case.present_objects[image]), pred[:-1], pred[-1], pred[:-1])


def _label(case: Case, image: int) -> Tensor:
    return case.inputs[f"label_{image}"]


# Each image's label must count, void or not: upstream ignores nothing.
NOTHING = -1


@pytest.mark.parametrize("case", cases("quantitative_evaluation", where=lambda c: c.id != "eval/max_unsorted"))
def test_counts_are_exact(case: Case):
    decision = Decision(RULES[case.options["method"]], tuple(case.options["background_threshold"]), absent_classes="zero")
    metric = SegmentationMetric(case.class_count, decision.taus(True), unseen_classes="zero", ignore=NOTHING)
    for image in range(case.n_images):
        label = _label(case, image)
        metric.update(decision(_maps(case, image), tuple(label.shape), case.class_count), label)
        hits = metric.counts.diagonal(dim1=-2, dim2=-1)
        unions = metric.counts.sum(-1) + metric.counts.sum(-2) - hits
        assert torch.equal(hits, case.expected["intersections"][image])
        assert torch.equal(unions, case.expected["unions"][image])
    result = metric.compute()
    torch.testing.assert_close(torch.from_numpy(result.iou), case.expected["iou"], atol=1e-8, rtol=0)
    torch.testing.assert_close(torch.from_numpy(result.miou), case.expected["miou"], atol=1e-8, rtol=0)


@pytest.mark.parametrize("case", cases("quantitative_evaluation", where=lambda c: c.id == "eval/max_unsorted"))
def test_max_does_not_depend_on_the_order_of_thresholds(case: Case):
    """Upstream clamps the clamped map (E4); its first threshold is the highest, so ours agrees there and sinks afterwards."""
    taus = tuple(case.options["background_threshold"])
    label, maps = _label(case, 0), _maps(case, 0)
    labels = Decision("max", taus, "zero")(maps, tuple(label.shape), case.class_count)
    ascending = Decision("max", tuple(sorted(taus)), "zero")(maps, tuple(label.shape), case.class_count)
    assert torch.equal(labels[[taus.index(tau) for tau in sorted(taus)]], ascending)
    hits = confusion(labels, label, case.class_count, NOTHING).diagonal(dim1=-2, dim2=-1)
    assert torch.equal(hits[0], case.expected["intersections"][0][0])
    assert not torch.equal(hits[1], case.expected["intersections"][0][1])


def _is_broken(case: Case) -> bool:
    return case.id in ("eval/nan_class", "eval/background_only")


@pytest.mark.parametrize("case", cases("quantitative_evaluation", where=_is_broken))
def test_absent_and_nan_classes_never_win_by_default(case: Case):
    label, maps = _label(case, 0), _maps(case, 0)
    labels = Decision(RULES[case.options["method"]], tuple(case.options["background_threshold"]))(
        maps, tuple(label.shape), case.class_count
    )
    usable = [i for i, scores in zip(maps.ids, maps.scores, strict=True) if scores.isfinite().all()]
    assert set(labels.unique().tolist()) <= {0, *usable}


def _matched_counts(pred: Tensor, label: Tensor, classes: int) -> dict[str, Tensor]:
    """Hits, false positives and false negatives of classes 1 ... n after matching; ground truth 0 is not a class there."""
    label = label.long()
    matched = match_clusters(pred, label, classes + 1, has_background=False)
    counts = confusion(matched[None], label.masked_fill(label == 0, NOTHING), classes + 1, NOTHING)[0]
    hits = counts.diagonal()[1:]
    return {"tp": hits, "fp": counts.sum(0)[1:] - hits, "fn": counts.sum(1)[1:] - hits, "all": counts.sum()[None]}


@pytest.mark.parametrize("case", cases("hungarian_matching"))
def test_hungarian_matching(case: Case):
    """Over the whole image; upstream matches every row on its own (P6), which summed-up rows reproduce."""
    for image in range(case.n_images):
        pred, label = case.inputs[f"pred_{image}"], _label(case, image)
        parts = [(pred, label)] if case.info.get("batched") else list(zip(pred[:, None], label[:, None], strict=True))
        counts = [_matched_counts(*part, case.n_class) for part in parts]
        for name in ("tp", "fn", "fp", "all"):
            total = sum(count[name] for count in counts)
            assert torch.equal(total.double(), case.expected[f"matching_{image}_{name}"].double()), name


@pytest.mark.parametrize("case", cases("hungarian_evaluate"))
def test_hungarian_counts_over_a_data_set(case: Case):
    """Upstream's counts, row by row as there (P6), with its one class too many (P7)."""
    sums: dict[str, Tensor] = {}
    for image in range(case.n_images):
        for row in zip(case.inputs[f"pred_{image}"][:, None], _label(case, image)[:, None], strict=True):
            for name, count in _matched_counts(*row, case.n_class).items():
                sums[name] = sums.get(name, torch.zeros_like(count)) + count
        for name in ("tp", "fn", "fp", "all"):
            assert torch.equal(sums[name].double(), case.expected[f"{name.upper()}_{image}"].double()), name
