"""The kernel that also gives the log-sum-exp computes what torch would have computed."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from goca.attention.kernels import attention_with_lse
from tests.helpers.processors import float_types

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def operands(request):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 65, 40, generator=generator).to(getattr(request, "param", torch.float32)) for _ in range(3)]


@pytest.mark.parametrize("operands", float_types(), indirect=True)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_output_to_the_bit_and_lse_of_the_logits(operands, scale):
    query, key, value = operands
    output, lse = attention_with_lse(query, key, value, scale=scale)
    assert torch.equal(output, scaled_dot_product_attention(query, key, value, scale=scale))
    if lse is None:
        pytest.skip("torch chooses no flash kernel here, and others keep the log-sum-exp to themselves")
    logits = query.float() @ key.float().mT * (40**-0.5 if scale is None else scale)
    torch.testing.assert_close(lse, logits.logsumexp(-1), rtol=0, atol=1e-5 if query.dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize(
    "options",
    [{"attn_mask": torch.zeros(65, 65)}, {"is_causal": True}, {"attn_mask": torch.eye(65, dtype=torch.bool)}],
    ids=["additive", "causal", "boolean"],
)
def test_what_the_kernel_cannot_take_runs_as_ever(operands, options):
    output, lse = attention_with_lse(*operands, **options)
    assert lse is None
    assert torch.equal(output, scaled_dot_product_attention(*operands, **options))


def test_grouped_heads_run_as_ever(operands):
    query, key, value = operands
    output, lse = attention_with_lse(query, key[:, :1], value[:, :1], enable_gqa=True)
    assert lse is None
    assert torch.equal(output, scaled_dot_product_attention(query, key[:, :1], value[:, :1], enable_gqa=True))
