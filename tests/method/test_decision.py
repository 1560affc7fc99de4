"""Decision against every score map formed at full size; matching of clusters; memory."""

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from goca import config
from goca.errors import ConfigError, DataError
from goca.method.calibration import ClassMaps
from goca.method.decision import Decision, Hungarian, match_clusters, upsampled_bands
from goca.method.scored import Scored
from goca.paths import CONF
from tests.helpers.options import option

TAUS = (-0.4, 0.0, 0.35)


def class_maps(ids: tuple[int, ...], grid: tuple[int, int], seed: int = 0) -> ClassMaps:
    # A few distinct values, so that ties occur.
    maps = torch.randint(0, 5, (len(ids) + 1, *grid), generator=torch.Generator().manual_seed(seed)) / 4
    return ClassMaps(ids, maps[:-1], maps[-1], maps[:-1])


def oracle(maps: ClassMaps, size: tuple[int, int], classes: int, rule: str, tau: float, absent: float) -> Tensor:
    """One score per class and pixel, then arg-max, which takes the first of equals."""
    scores = torch.full((classes, *size), absent)
    resized = F.interpolate(maps.stack()[None], size, mode="bilinear", align_corners=False)[0]
    for channel, class_id in enumerate(maps.ids):
        scores[class_id] = resized[channel]
    s = resized[-1]
    background = {"constant": s * 0 + tau, "max": s.clamp(min=tau), "exact": s, "average": (s + tau) / 2, "offset": s + tau}
    scores[0] = background[rule]
    return scores.argmax(0)


def grids(largest: int) -> st.SearchStrategy[tuple[int, int]]:
    """Heights and widths up to `largest`."""
    return st.tuples(st.integers(1, largest), st.integers(1, largest))


ids = st.permutations(range(1, 7)).flatmap(lambda order: st.integers(0, 6).map(lambda n: tuple(order[:n])))


@settings(deadline=None, max_examples=60)
@given(
    ids,
    st.sampled_from(["constant", "max", "exact", "average", "offset"]),
    st.sampled_from(["left_out", "zero"]),
    # Whole factors: interpolation is exact in binary then, and ties stay ties.
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 500, 2**20]),
    st.integers(0, 100),
)
def test_every_rule_at_every_threshold(ids, rule, absent, factor, max_bytes, seed):
    maps, size = class_maps(ids, (3, 4), seed), (3 * factor, 4 * factor)
    labels = Decision(rule, TAUS, absent, max_bytes)(maps, size, 7)
    assert labels.dtype == torch.uint8
    for label, tau in zip(labels, TAUS, strict=True):
        expected = oracle(maps, size, 7, rule, tau, 0.0 if absent == "zero" else -torch.inf)
        assert torch.equal(label.long(), expected)


@settings(deadline=None, max_examples=30)
@given(grids(9), grids(40), st.sampled_from([1, 900, 2**20]))
def test_bands_are_the_bilinear_resize(grid, size, max_bytes):
    maps = torch.rand(3, *grid)
    bands = list(upsampled_bands(maps, size, max_bytes))
    expected = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat([band for _, band in bands], dim=1), expected, atol=1e-5, rtol=1e-5)
    assert [row for rows, _ in bands for row in range(size[0])[rows]] == list(range(size[0]))


def test_without_background_class_the_best_class_wins_everywhere():
    maps = class_maps((5, 2), (4, 4))
    decision = Decision(thresholds=TAUS)
    labels = decision(maps, (8, 8), 7, has_background=False)
    assert decision.taus(False) == (None,)
    assert labels.shape == (1, 8, 8)
    assert set(labels.unique().tolist()) <= {2, 5}
    nothing = decision(class_maps((), (4, 4)), (8, 8), 7, has_background=False)
    assert not nothing.any()


def test_a_nan_map_never_wins():
    maps = class_maps((1, 2), (4, 4))
    maps.scores[0] = torch.nan
    assert 1 not in Decision()(maps, (8, 8), 3).unique()
    assert (Decision(absent_classes="zero")(maps, (8, 8), 3) == 1).all()  # the released code: it wins everywhere


def test_many_classes_need_wider_integers():
    maps = class_maps((300,), (2, 2))
    assert Decision("constant", (-1.0,))(maps, (2, 2), 400).unique().tolist() == [300]


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


def test_ade_at_full_label_resolution_stays_small():
    """150 classes at 512x683 are 210 MB of scores; no tensor may exceed the budget for a band or the label maps."""
    maps, budget = class_maps(tuple(range(1, 151)), (64, 64)), 2**24
    with LargestTensor() as largest:
        labels = Decision(max_bytes=budget)(maps, (512, 683), 151)
    wide = 151 * 64 * 683 * 4  # the maps at the label's width, still at their own height
    assert largest.bytes <= max(budget, wide, labels.numel())


def test_hungarian_undoes_a_permutation_of_classes():
    label = torch.randint(0, 4, (12, 9), generator=torch.Generator().manual_seed(0))
    clusters = torch.tensor([3, 0, 1, 2])[label]
    assert torch.equal(match_clusters(clusters, label, 4), label)
    ignored = label.masked_fill(label == 0, 255)
    matched = match_clusters(clusters, ignored, 4, has_background=False)
    assert torch.equal(matched[label > 0], label[label > 0])


def test_hungarian_from_class_maps():
    label = torch.tensor([[1, 1, 2, 2]]).expand(4, 4)
    maps = torch.stack([(label == 2).float(), (label == 1).float()])  # named the wrong way round: names do not matter
    clusters = ClassMaps((1, 2), maps, torch.zeros(4, 4), maps)
    decision = Hungarian()
    assert torch.equal(decision(clusters, (4, 4), 3, label=label)[0].long(), label)
    with pytest.raises(DataError, match="ground truth"):
        decision(clusters, (4, 4), 3)


@pytest.mark.parametrize("path", sorted((CONF / "decision").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_decides(path):
    decision = instantiate(option("decision", path.stem))
    labels = decision(class_maps((1, 2), (4, 4)), (6, 5), 3, label=torch.zeros(6, 5, dtype=torch.uint8))
    assert labels.shape == (len(decision.taus(True)), 6, 5)


def test_wrong_values_say_what_is_right():
    with pytest.raises(ConfigError, match=r"did you mean 'offset'\?.*constant, max, exact, average, offset"):
        Decision("offfset")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_on_a_gpu():
    maps = class_maps((3, 1), (16, 16))
    moved = ClassMaps(maps.ids, maps.scores.cuda(), maps.supporting.cuda(), maps.raw.cuda())
    assert torch.equal(Decision()(moved, (64, 32), 4).cpu(), Decision()(maps, (64, 32), 4))


@pytest.mark.parametrize("thresholds", [(), (float("nan"),), (0.1, float("inf"))])
@pytest.mark.parametrize("decision", [Decision, Scored])
def test_thresholds_are_numbers_and_at_least_one(decision, thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        decision(thresholds=thresholds)


@pytest.mark.parametrize("again", [(0.1, 0.2, 0.1), (0.3, 0.1 + 0.2), (0.1234567, 0.1234568)])
@pytest.mark.parametrize("name", ["offset", "scored"])
def test_a_threshold_is_given_once(again, name):
    """Results go by it, with six digits: of two equal ones the second would take the place of the first."""
    with pytest.raises(ConfigError) as caught:
        config.build(config.compose([f"decision={name}", f"decision.thresholds={list(again)}"]), "decision")
    (line,) = str(caught.value).splitlines()
    assert line == f"decision.thresholds: the threshold {again[0]:g} is given more than once (six digits count)"
