"""`python -m goca.verify`: what it checks does fail where it should, and its records make the page of the docs."""

import json

import pytest
import torch

from goca import config
from goca.attention.statistics import AttentionStatistics
from goca.backbones.checks import check_forward, check_prompt
from goca.errors import ConfigError, ModelError
from goca.method import plan_layers
from goca.paths import BUNDLED
from goca.verify import records, table, verify, with_random_weights
from tests.conftest import ROOT
from tests.helpers.saved_pipeline import goca_aggregation
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline

PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def backbone():
    return tiny_backbone("pixart_alpha").load(tiny_pipeline("pixart_alpha"))


def _checked(backbone):
    aggregation = goca_aggregation(backbone)
    statistics = AttentionStatistics(aggregation, plan_layers(backbone, aggregation))
    return {name: check.passed for name, check in check_forward(backbone, PIXELS, "circle, grass", statistics).items()}


def test_a_sound_model_passes(backbone):
    assert all(_checked(backbone).values())
    assert check_prompt(backbone, ["circle", "grass"])["alignment"].passed


def test_weights_that_are_no_numbers_are_found(backbone):
    backbone.denoiser.proj_out.weight.data[0] = torch.nan
    assert not _checked(backbone)["finite"]


def test_an_output_that_changes_under_the_tap_is_found(backbone):
    calls = []
    backbone.denoiser.proj_out.register_forward_hook(lambda _m, _i, output: output + (calls.append(0) or len(calls)))
    assert not _checked(backbone)["bits"]


def test_attention_that_is_not_what_the_call_says_is_found(backbone, monkeypatch):
    canonical = type(backbone).canonical

    def wrong(self, raw, grid):
        call = canonical(self, raw, grid)
        return type(call)(**{**vars(call), "scale": 2 * call.scale})

    monkeypatch.setattr(type(backbone), "canonical", wrong)
    assert not _checked(backbone)["oracle"]


def test_a_tokenizer_that_is_not_the_encoders_is_found(backbone):
    backbone.encode_text = lambda texts: type(backbone).encode_text(backbone, [text + " moon" for text in texts])
    assert not check_prompt(backbone, ["circle", "grass"])["alignment"].passed


def test_a_record_says_what_ran(backbone):
    image = torch.randint(0, 255, (40, 40, 3), dtype=torch.uint8).numpy()
    record = verify(backbone, goca_aggregation(backbone), "small", [image], ["circle", "grass"])
    assert record["passed"]
    assert set(record["checks"]) == {"alignment", "finite", "bits", "oracle", "shares"}
    assert {"date", "commit", "versions", "device", "dtype", "size", "layers", "seconds", "peak_gib"} <= set(record)
    json.dumps(record)


def test_random_weights_need_a_known_architecture():
    with pytest.raises(ModelError, match=r"weights=random: the architecture of in-memory is not known"):
        with_random_weights(tiny_backbone("flux_dev"))


def test_the_newest_record_of_a_kind_is_shown_and_a_failure_is_called_one():
    rows = [
        {"model": "sd15", "kind": "real", "date": "2026-01-01", "commit": "aaaaaaaaaa", "passed": True},
        {"model": "sd15", "kind": "real", "date": "2026-02-01", "commit": "bbbbbbbbbb", "passed": False},
        {"model": "mine", "kind": "real", "date": "2026-02-01", "commit": None, "passed": True},
    ]
    page = table(rows)
    assert "| `sd15` | yes |  |  | failed 2026-02-01, bbbbbbb |" in page
    assert "| `mine` |  |  |  | 2026-02-01, unknown |" in page


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "odd.json").write_text('{"model": "sd15"}')
    with pytest.raises(ConfigError, match=r"odd\.json is not a record of goca\.verify"):
        records(tmp_path)


def test_the_page_of_the_docs_is_made_of_the_records():
    found = records(ROOT / "docs" / "verified")
    assert (ROOT / "docs" / "verified.md").read_text(encoding="utf-8") == table(found)
    ours = {file.parent.name for file in BUNDLED.glob("*/model_index.json")}
    real = {row["model"] for row in found if row["kind"] == "real"}
    assert real == ours, "nobody has run published weights yet; name the machine when you do"


def test_settings_are_checked():
    from goca.config import check

    with pytest.raises(ConfigError, match="weights"):
        check(config.compose(["weights=some"], "verify"), "verify")
