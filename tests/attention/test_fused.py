"""The fused kernels, run by Triton's interpreter on the CPU, against plain formulas in float64.

The interpreter multiplies float16 but not bfloat16, so that float16 stands for both here; on a GPU `benchmarks.gpu` runs both.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch.utils._python_dispatch import TorchDispatchMode

from goca.attention import fused, reductions
from goca.attention.call import AttentionCall
from goca.attention.statistics import AttentionStatistics, Plan
from goca.method.aggregation import Aggregation, heads
from goca.method.calibration import ClassMaps
from goca.method.refinement import Affinity, RefinementContext

pytestmark = [
    pytest.mark.skipif(
        fused.triton is None or not fused.INTERPRETED,
        reason="needs triton with TRITON_INTERPRET=1; a GPU run leaves it unset",
    ),
    pytest.mark.skipif(
        fused.triton is not None and Version(fused.triton.__version__) < Version("3.4"),
        reason="the interpreter of triton before 3.4, which torch 2.6 and 2.7 bring, cannot run with this numpy",
    ),
]


@pytest.fixture(autouse=True, scope="module")
def kernels_on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "ON_CPU", True)
        yield


def _half(*shape, seed=0, permuted=True):
    """Random float16 operands, by default in the (B, S, H, d) memory order that models give."""
    generator = torch.Generator().manual_seed(seed)
    if not permuted:
        return torch.randn(*shape, generator=generator).half()
    images, heads_, pixels, width = shape
    return torch.randn(images, pixels, heads_, width, generator=generator).half().transpose(1, 2)


def _probabilities(query, key, scale, bias=None):
    logits = query.double() @ key.double().transpose(-1, -2) * scale
    return (logits if bias is None else logits + bias.double()[:, :, None]).softmax(-1)


@settings(max_examples=12, deadline=None)
@given(
    images=st.integers(1, 2), heads_=st.integers(1, 3), pixels=st.integers(1, 70), keys=st.integers(1, 90),
    width=st.sampled_from([8, 16, 40, 72]), masked=st.booleans(), first=st.integers(0, 3),
)  # fmt: skip
def test_sums_over_heads_equal_plain_softmax(images, heads_, pixels, keys, width, masked, first):
    query, key, scale = _half(images, heads_, pixels, width), _half(images, heads_, keys, width, seed=1), width**-0.5
    bias = None
    if masked:
        bias = torch.zeros(images, heads_, keys)
        bias[:, 0, keys // 2 + 1 :] = float("-inf")  # another mask for the first head
    expected = _probabilities(query, key, scale, bias)
    lse = fused.log_sum_exp(query, key, scale, bias)
    chosen = slice(min(first, keys - 1), keys)
    weights = torch.randn(images, heads_, pixels)
    rows = torch.arange(0, pixels, 2)
    some_bias = None if bias is None else bias[:, :, chosen]
    weighted, _ = fused.head_sum(query, key[:, :, chosen], lse, scale, weights=weights, bias=some_bias)
    torch.testing.assert_close(weighted, (expected * weights[..., None]).sum(1)[..., chosen].float(), atol=2e-6, rtol=1e-5)
    reference = torch.rand(images, len(rows), len(range(*chosen.indices(keys))))
    mean, products = fused.head_sum(query, key[:, :, chosen], lse, scale, rows=rows, bias=some_bias, reference=reference)
    plain = expected.mean(1)[:, rows][..., chosen].float()
    torch.testing.assert_close(mean, plain, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(products, (plain * reference).sum(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_head_weights_are_shares_of_the_output(zero):
    output, projection = _half(2, 3, 37, 40), _half(1, 1, 64, 120, permuted=False)[0, 0] * 0.1
    if zero:  # pixels without any output: no head to follow
        output[:, :, 5:9] = 0
    expected = heads.dot_product(output, projection, output)
    found = fused.head_weights(output, heads.projected_back(output, projection))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 37), atol=1e-4, rtol=0)


def _collected(precision, count=None):
    """Statistics of two blocks of a small model in float16; `count` watches the second block's calls."""
    aggregation = Aggregation(heads="dot_product", layers="dot_product", cross_layers=("*",), reference="c0", feature_size=8)
    plan = Plan(cross={"c0": "s0", "c1": "s1"}, reference="c0", self_attention=("s1",))
    statistics = AttentionStatistics(aggregation, plan, precision=precision)
    generator = torch.Generator().manual_seed(3)
    for name in ("s0", "c0", "s1", "c1", "s1", "c1"):
        text, pixels, width = name[0] == "c", 64, 16
        keys = 9 if text else pixels
        query, key, value = (torch.randn(2, 2, n, width, generator=generator).half() for n in (pixels, keys, keys))
        call = AttentionCall(
            name, (8, 8), query, key, width**-0.5,
            text=slice(None) if text else None, image=None if text else slice(None), value=value,
            output=torch.nn.functional.scaled_dot_product_attention(query, key, value),
            projection=torch.randn(32, 32, generator=generator).half(),
        )  # fmt: skip
        if count is not None and name[1] == "1" and name in statistics._weights:  # the second time: everything is known by now
            with count:
                statistics.observe(call)
        else:
            statistics.observe(call)
    return statistics.finish()


def test_statistics_through_the_kernels_equal_float32():
    plain, fast = _collected("float32"), _collected("model")
    torch.testing.assert_close(fast.token_maps, plain.token_maps, atol=1e-5, rtol=0)
    for name, weight in plain.layer_weights.items():
        torch.testing.assert_close(fast.layer_weights[name], weight, atol=1e-5, rtol=0)
    index = torch.arange(64)
    rows = [seen.self_attention(1)["s1"].rows(index) for seen in (plain, fast)]
    torch.testing.assert_close(rows[1], rows[0], atol=1e-6, rtol=0)


class _Waits(TorchDispatchMode):
    """Counts operations that make the host wait for a device, or copy between the two."""

    WAITING = ("_local_scalar_dense", "nonzero", "_unique", "is_nonzero", "masked_select", "equal", "index.Tensor_bool")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.WAITING):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_layer_makes_the_host_wait():
    waits = _Waits()
    _collected("model", waits)
    assert waits.seen == []
    with waits:
        bool(torch.ones(1).any())  # the counter counts
    assert waits.seen


def test_a_kernel_that_disagrees_is_not_used(monkeypatch, caplog):
    query, key = _half(1, 2, 20, 16, seed=5), _half(1, 2, 7, 16, seed=6)
    call = AttentionCall("layer", (4, 5), query, key, 0.25, text=slice(None), half_products=True)
    honest = fused.head_sum
    monkeypatch.setattr(reductions, "_agreed", {})
    monkeypatch.setattr(fused, "head_sum", lambda *arguments: tuple(part * 1.1 for part in honest(*arguments)))
    found = reductions.weighted_map(call, torch.full((1, 2, 20), 0.5), 2**20)
    torch.testing.assert_close(found, _probabilities(query, key, 0.25).mean(1).float(), atol=2e-6, rtol=1e-5)
    assert "fused attention kernels are not used for layer" in caplog.text


def test_head_weights_that_disagree_are_not_used(monkeypatch, caplog):
    output, projection = _half(1, 2, 20, 16), _half(1, 1, 32, 32, permuted=False)[0, 0]
    call = AttentionCall(
        "layer", (4, 5), output, output, 0.25, value=output, output=output, projection=projection, half_products=True
    )
    monkeypatch.setattr(reductions, "_agreed", {})
    monkeypatch.setattr(fused, "head_weights", lambda *_: torch.zeros(1, 2, 20))
    found = reductions.head_weights(call, "dot_product")
    torch.testing.assert_close(found, heads.dot_product(output, projection, output))
    assert "fused attention kernels are not used for layer" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("joint", [False, True])
def test_values_through_the_attention_kernel(dtype, joint):
    """P V by the kernel, without P; half precision rounds the output alone, for values come as two halves."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 3, n, 16, generator=generator).to(dtype) for n in (30, 35 if joint else 30))
    image = slice(5, 35) if joint else slice(None)
    call = AttentionCall("layer", (5, 6), query, key, 0.25, image=image)
    values = torch.rand(30, 21, generator=generator)
    expected = _probabilities(query, key, 0.25).mean(1)[0][:, image].float() @ values
    rounding = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(reductions.head_mean_values(call, values), expected, atol=rounding, rtol=rounding)
    rows = torch.tensor([2, 29])
    torch.testing.assert_close(reductions.head_mean_values(call, values, rows), expected[rows], atol=rounding, rtol=rounding)


@pytest.mark.parametrize("order", [1, 2])
def test_affinity_through_the_kernel(order, monkeypatch):
    """The refinement gives the same maps whether it multiplies by rows or through the attention kernel."""
    from goca.attention.statistics import SelfAttention

    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(1, 2, 36, 16, generator=generator) for _ in range(2))
    attention = SelfAttention(AttentionCall("layer", (6, 6), query, key, 0.25, image=slice(None)), 2**20)
    scores = torch.rand(2, 8, 8, generator=generator)
    maps = ClassMaps((1, 2), scores, torch.zeros(8, 8), scores)
    context = RefinementContext((8, 8), {"layer": attention}, max_bytes=2**10)  # too little to keep rows
    plain = Affinity(("layer",), order).refine(maps, context)
    monkeypatch.setattr(SelfAttention, "through_kernel", property(lambda self: True))
    fast = Affinity(("layer",), order).refine(maps, context)
    torch.testing.assert_close(fast.scores, plain.scores, atol=1e-5, rtol=0)
