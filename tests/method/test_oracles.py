"""Primitives of the peers' methods against plain implementations that hold everything at once, on random inputs."""

import math

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goca.method.calibration import Calibration, ClassMaps
from goca.method.clusters import cluster, clustered
from goca.method.decision import Decision
from goca.method.losses import class_losses, exponents, noise_error
from goca.method.refinement.prototype import prototype_scores
from goca.method.segments import kl_merge, normalised_cut
from tests.helpers.explicit_heads import random_heads
from tests.helpers.prompts import plain_prompt

SEEDS = st.integers(0, 9999)


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


# ----------------------------------------------------------------------------------------------------------- features
@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 2000, 2**28]), st.sampled_from([((3, 4), (5, 2)), ((4, 4),)]))
def test_prototypes_are_weighted_means_of_unit_features(seed: int, max_bytes: int, grids: tuple[tuple[int, int], ...]):
    generator, size = _random(seed), (7, 9)
    features = [torch.randn(5, *grid, generator=generator) for grid in grids]
    maps = torch.rand(3, 4, 5, generator=generator)
    unit = F.normalize(torch.cat([_bilinear(feature, size) for feature in features]), dim=0)
    weights = _bilinear(maps, size)
    weights = weights / weights.amax((-2, -1), keepdim=True)
    expected = torch.zeros(3, *size)
    for number, weight in enumerate(weights):
        prototype = sum(weight[y, x] * unit[:, y, x] for y in range(size[0]) for x in range(size[1])) / weight.sum()
        expected[number] = (prototype[:, None, None] * unit).sum(0)
    torch.testing.assert_close(prototype_scores(maps, features, size, max_bytes), expected, atol=1e-6, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------- cuts
def _plain_cut(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and first side of the best of 100 thresholds; the eigenvector by the generalised problem."""
    degree = np.diag(matrix.sum(1))
    vector = scipy.linalg.eigh(degree - matrix, degree)[1][:, 1]
    vector = vector * np.sign(vector[np.abs(vector).argmax()])
    best: tuple[float, np.ndarray] = (math.inf, np.zeros(len(matrix), bool))
    for threshold in np.linspace(vector.min() * 0.99, vector.max() * 0.99, 100):
        side = vector > threshold
        between = matrix[np.ix_(side, ~side)].sum()
        value = between / matrix[side].sum() + between / matrix[~side].sum()
        if value < best[0] - 1e-12:
            best = value, side
    return best


def _plain_segments(matrix: np.ndarray, tau: float) -> set[frozenset[int]]:
    """Segments once nothing can be cut below tau any more."""

    def split(pixels: np.ndarray) -> list[frozenset[int]]:
        if len(pixels) > 1:
            value, side = _plain_cut(matrix[np.ix_(pixels, pixels)])
            if value < tau:
                return [*split(pixels[side]), *split(pixels[~side])]
        return [frozenset(pixels.tolist())]

    return set(split(np.arange(len(matrix))))


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 4), st.sampled_from([0.3, 0.6]))
def test_recursive_cuts(seed: int, groups: int, tau: float):
    generator = _random(seed)
    centres = torch.randn(groups, 6, generator=generator)
    pixels = centres[torch.arange(24) % groups] + 0.4 * torch.randn(24, 6, generator=generator)
    unit = F.normalize(pixels.double(), dim=1)
    matrix = normalised_cut.affinity(unit, 5.0)
    plain = (unit @ unit.T).numpy()
    plain = ((plain - plain.min()) / (plain.max() - plain.min())) ** 5
    np.testing.assert_allclose(matrix.numpy(), plain, atol=1e-12)
    members = normalised_cut.recursive_cuts(matrix, tau, drop_zeros=False).clusters(24)
    found = {frozenset((members == number).nonzero()[:, 0].tolist()) for number in members.unique()}
    assert found == _plain_segments((plain + plain.T) / 2, tau)


def test_pixels_of_likeness_zero_leave_after_the_first_cut():
    """As the released code does: the pair of pixels that are least alike has an exact 0 and is not cut again."""
    unit = F.normalize(torch.randn(20, 3, generator=_random(0), dtype=torch.float64), dim=1)
    matrix = normalised_cut.affinity(unit, 10.0)
    dropped, kept = (normalised_cut.recursive_cuts(matrix, 0.9, drop) for drop in (True, False))
    zero = set((matrix == 0).any(1).nonzero()[:, 0].tolist())
    assert len(zero) == 2
    assert dropped.sizes[0] == kept.sizes[0] == 20
    # Whatever is cut later does not have them, so that no later first side holds them.
    assert not any(zero & set(side.nonzero()[:, 0].tolist()) for side in dropped.accepted[1:])


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.integers(2, 5))
def test_the_eigengap_counts_groups_that_are_apart(seed: int, groups: int):
    generator = _random(seed)
    truth = torch.arange(30) % groups
    unit = F.normalize(torch.eye(8)[truth] + 0.02 * torch.randn(30, 8, generator=generator), dim=1).double()
    found = normalised_cut.eigengap_clusters(unit)
    assert len({(int(a), int(b)) for a, b in zip(found, truth, strict=True)}) == groups
    assert len(found.unique()) == groups


# ------------------------------------------------------------------------------------------------------------ merging
def _plain_kl(a: Tensor, b: Tensor) -> float:
    return float(0.5 * ((a - b) * (a.log() - b.log())).sum())


def _mixed(seed: int) -> tuple[kl_merge.LevelMixture, Tensor]:
    """A mixture of two resolutions, and all its rows by plain loops."""
    fine, other, coarse = random_heads(2, 6, seed), random_heads(1, 6, seed + 1), random_heads(3, 3, seed + 2)
    mixture = kl_merge.LevelMixture({(6, 6): [fine, other], (3, 3): [coarse]}, (6, 6), max_bytes=2000)
    rows = torch.zeros(36, 36)
    means = {6: (fine.maps.mean(0) + other.maps.mean(0)) / 2, 3: coarse.maps.mean(0)}
    for side, weight in ((6, 6 / 9), (3, 3 / 9)):
        for y in range(6):
            for x in range(6):
                row = means[side][(y * side // 6) * side + x * side // 6]
                large = _bilinear(row.view(1, side, side), (6, 6)).flatten()
                rows[6 * y + x] += weight * large / large.sum()
    return mixture, rows


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from([0.2, 0.5, 0.9]))
def test_segments_grow_from_anchors_and_merge(seed: int, threshold: float):
    mixture, rows = _mixed(seed)
    torch.testing.assert_close(mixture.rows(torch.arange(36)), rows)
    proposals, hits = kl_merge.grow(mixture, 3, threshold)
    for place, (y, x) in enumerate(kl_merge.anchors((6, 6), 3).tolist()):
        near = [row for row in rows if _plain_kl(rows[6 * y + x], row) < threshold]
        assert hits[place] == len(near)
        torch.testing.assert_close(proposals[place].float(), torch.stack(near).mean(0))
    expected, taken = [], set()
    for first in range(len(proposals)):
        if first in taken:
            continue
        near = [i for i, other in enumerate(proposals) if i == first or _plain_kl(proposals[first], other) < threshold]
        taken |= {*near}
        expected.append(proposals[near].mean(0))
    torch.testing.assert_close(kl_merge.merge(proposals, threshold), torch.stack(expected))


def test_kmeans_is_lloyds_algorithm():
    mixture, rows = _mixed(3)
    centres = rows[[0, 7, 20]].double()
    expected = centres.clone()
    for _ in range(50):
        nearest = [min(range(3), key=lambda c, row=row: float((row - expected[c]).norm())) for row in rows.double()]
        expected = torch.stack([rows.double()[[i for i, near in enumerate(nearest) if near == c]].mean(0) for c in range(3)])
    torch.testing.assert_close(kl_merge.kmeans(mixture, centres), expected)


# --------------------------------------------------------------------------------------------------- clusters of tokens
def _plain_clusters(token_maps: Tensor, clusters: int, rounds: int) -> list[int]:
    count, height, width = token_maps.shape
    pixels = [[float(token_maps[n, y, x]) or 1e-6 for n in range(count)] for y in range(height) for x in range(width)]
    step = max(1, int((height * width / clusters) ** 0.5))
    centres = [pixels[y * width + x] for y in range(0, height, step) for x in range(0, width, step)]
    member: list[int] = []
    for _ in range(rounds):
        distance = [
            [
                sum(
                    0.5 * (a + 1e-5 - b - 1e-5) * (math.log(a + 1e-5) - math.log(b + 1e-5))
                    for a, b in zip(centre, pixel, strict=True)
                )
                for centre in centres
            ]
            for pixel in pixels
        ]
        nearest = [row.index(min(row)) for row in distance]
        alive = sorted(set(nearest))
        member = [alive.index(one) for one in nearest]
        groups = [[pixel for pixel, own in zip(pixels, member, strict=True) if own == number] for number in range(len(alive))]
        centres = [[sum(values) / len(group) for values in zip(*group, strict=True)] for group in groups]
    return member


@settings(max_examples=8, deadline=None)
@given(SEEDS, st.sampled_from([(5, 6), (4, 4)]), st.sampled_from([3, 6]))
def test_pixels_are_clustered_by_what_they_say_of_all_tokens(seed: int, grid: tuple[int, int], clusters: int):
    maps = torch.rand(4, *grid, generator=_random(seed), dtype=torch.float64)
    maps[maps < 0.1] = 0
    found = cluster(maps, clusters, rounds=6, dtype=torch.float64)
    assert found.flatten().tolist() == _plain_clusters(maps, clusters, 6)
    means = clustered(maps, clusters, rounds=6, dtype=torch.float64)
    for number in found.unique():
        here = found == number
        expected = maps.masked_fill(maps == 0, 1e-6)[:, here].mean(1, keepdim=True).expand(-1, int(here.sum()))
        torch.testing.assert_close(means[:, here], expected)


# ------------------------------------------------------------------------------------------------------- calibration
def test_levels_are_stretched_by_themselves_and_added():
    generator = _random(5)
    levels = [(torch.rand(6, 4, 5, generator=generator), weight) for weight in (0.2, 0.5, 0.3)]
    total = torch.rand(6, 4, 5, generator=generator)  # of which nothing is taken where levels are given
    maps = Calibration(steps=())(total, plain_prompt({3: (1, 2), 7: (4,)}, 6), levels)
    expected = [sum(weight * _minmax(part[tokens].mean(0)) for part, weight in levels) for tokens in ([1, 2], [4])]
    torch.testing.assert_close(maps.scores, torch.stack(expected))
    assert maps.ids == (3, 7)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.floats(0.05, 0.95), st.sampled_from(["epsilon", "v_prediction", "sample", "flow"]))
def test_the_error_is_of_the_noise_whatever_is_predicted(seed: int, kept: float, predicts):
    """A prediction that stands for another noise is off by the difference of the two."""
    generator = _random(seed)
    noise, latents, other = (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    signal, sigma = kept**0.5, (1 - kept) ** 0.5
    noisy = signal * latents + sigma * noise
    meant = (noisy - sigma * other) / signal  # the picture that goes with the other noise
    prediction = {
        "epsilon": other,
        "v_prediction": signal * other - sigma * meant,
        "sample": meant,
        "flow": other - latents,
    }[predicts]
    found = noise_error(prediction, noise, latents, kept, predicts)
    torch.testing.assert_close(found, ((noise - other) ** 2).mean((1, 2, 3)))


def test_exponents_grow_with_the_loss():
    errors = [torch.tensor([0.3, 0.1, 0.2]), torch.tensor([0.1, 0.1, 0.4])]
    losses = class_losses(errors)
    torch.testing.assert_close(losses, torch.tensor([0.4, 0.2, 0.6]))
    torch.testing.assert_close(exponents(losses, 3.0), torch.tensor([3.0**0.5, 1.0, 3.0]))


# ---------------------------------------------------------------------------------------------------------- decisions
@settings(max_examples=20, deadline=None)
@given(
    SEEDS,
    st.sampled_from(["constant", "complement", "offset", "max", "average"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["background", "class"]),
    st.sampled_from([100, 2**26]),
)
def test_labels_pixel_by_pixel(seed: int, rule: str, stretch: bool, eight_bits: bool, ties: str, max_bytes: int):
    generator, size = _random(seed), (6, 7)
    scores, supporting = torch.rand(3, 3, 4, generator=generator), torch.rand(3, 4, generator=generator)
    eight_bits = eight_bits and stretch
    decision = Decision(rule, (0.4, 0.6), stretch=stretch, eight_bits=eight_bits, ties=ties, max_bytes=max_bytes)
    found = decision(ClassMaps((2, 5, 4), scores, supporting, scores), size, num_classes=6)
    large, background = _bilinear(scores, size), _bilinear(supporting[None], size)
    if stretch:
        large, background = _minmax(large), _minmax(background)
    if eight_bits:
        large, background = (large * 255).round() / 255, (background * 255).round() / 255
    score = {
        "constant": lambda best, own, tau: tau,
        "complement": lambda best, own, tau: (1 - best) ** 2,
        "offset": lambda best, own, tau: own + tau,
        "max": lambda best, own, tau: max(own, tau),
        "average": lambda best, own, tau: (own + tau) / 2,
    }[rule]
    for tau, label in zip((0.4, 0.6), found, strict=True):
        for y in range(size[0]):
            for x in range(size[1]):
                values = large[:, y, x].tolist()
                best = max(values)
                other = score(best, float(background[0, y, x]), tau)
                tied = abs(other - best) < 1e-6 and eight_bits and rule == "constant"  # 0.4 and 0.6 are steps of 255
                if not tied and np.diff(sorted([*values, other])).min() < 1e-5:
                    continue  # another order of summation may decide otherwise
                first = min(number for number, value in zip((2, 5, 4), values, strict=True) if value == best)
                wins = ties == "background" if tied else other > best
                assert int(label[y, x]) == (0 if wins else first), (tau, y, x)


def test_ties_go_to_whom_the_option_says():
    maps = ClassMaps((1,), torch.tensor([[[0.0, 0.5, 1.0]]]), torch.zeros(1, 3), torch.zeros(1, 1, 3))
    for ties, expected in (("background", [0, 0, 1]), ("class", [0, 1, 1])):
        assert Decision("constant", (0.5,), ties=ties)(maps, (1, 3), 2)[0, 0].tolist() == expected


def test_eight_bits_round_to_steps_of_255():
    """127.5 becomes 128, which is 0.502."""
    maps = ClassMaps((1,), torch.tensor([[[0.0, 0.5, 1.0]]]), torch.zeros(1, 3), torch.zeros(1, 1, 3))
    for eight_bits, expected in ((True, [0, 1, 1]), (False, [0, 0, 1])):
        decision = Decision("constant", (0.501,), stretch=True, eight_bits=eight_bits)
        assert decision(maps, (1, 3), 2)[0, 0].tolist() == expected
