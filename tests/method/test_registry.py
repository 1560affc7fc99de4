"""Parts of one's own: found by name once registered, or by dotted path; every mistake is one message."""

import sys

import pytest
import torch

from goca.errors import ConfigError
from goca.method.aggregation import Aggregation, heads, layers
from goca.method.decision import Decision, background_rule
from goca.registry import Registry


def test_every_head_method_gives_each_head_a_finite_weight_at_each_pixel():
    generator = torch.Generator().manual_seed(0)
    output, value = torch.randn(2, 3, 5, 4, generator=generator), torch.randn(2, 3, 6, 4, generator=generator)
    projection = torch.randn(7, 12, generator=generator)
    for name, method in heads.METHODS.items():
        weights = method(output, projection, value)
        assert weights.shape == (2, 3, 5), name
        assert weights.isfinite().all(), name


def test_every_layer_method_adds_up_over_rows():
    """The streaming statistics visit rows in blocks, so a method whose statistic is not a sum over rows would be wrong."""
    generator = torch.Generator().manual_seed(0)
    reference, attention = torch.rand(2, 2, 6, 6, generator=generator).softmax(-1)
    for name, method in layers.METHODS.items():
        whole = method.partial(reference, attention)
        blocks = method.partial(reference[:, :2], attention[:, :2]) + method.partial(reference[:, 2:], attention[:, 2:])
        torch.testing.assert_close(blocks, whole, msg=name)
        assert method.weight(whole).shape == (2,), name


@pytest.fixture
def registry():
    registry: Registry = Registry("group.key", "kind of part")
    registry.register("first", len, "builtins.len")
    return registry


def test_a_name_is_given_once(registry):
    registry.register("first", max, "builtins.len")  # the same place again: a cell of a notebook, run twice
    assert registry.find("first") is max
    with pytest.raises(ConfigError, match=r"two kind of parts are called 'first': builtins\.len and mine\.first"):
        registry.register("first", min, "mine.first")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frist", r"group\.key: there is no kind of part 'frist' \(did you mean 'first'\?\); known are first"),
        ("", r"there is no kind of part ''"),
        ("no_such_module.part", r"group\.key: .*there is no module 'no_such_module'.*Known by name are first"),
        ("math.no_such_function", r"the module math has no 'no_such_function'"),
        ("math.pi", r"math\.pi is not a kind of part: it is a float, not a function"),
        ("broken_module.part", r"importing broken_module failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_found_is_one_message(registry, tmp_path, monkeypatch, name, message):
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        registry.find(name)
    assert "broken_module" not in sys.modules


def test_a_wrong_type_of_part_is_refused():
    settings = {"heads": "average", "cross_layers": ("*",), "reference": "*"}
    with pytest.raises(ConfigError, match=r"aggregation\.layers: math\.sqrt is not a layer method: .* not a LayerMethod"):
        Aggregation(layers="math.sqrt", **settings)


def test_rules_and_their_thresholds():
    @background_rule
    def twice(supporting, tau):
        return 2 * supporting + tau

    try:
        assert Decision("twice").rule == "twice"
    finally:
        from goca.method.decision import RULES

        del RULES["twice"]
