"""`python -m goca.run`: what a run leaves behind, in-process on a tiny checkpoint that is loaded from disk."""

import json

import numpy as np
import pytest

from goca import config
from goca.errors import ConfigError, DataError, ModelError
from goca.runs.evaluation import evaluate
from goca.runs.folder import RunFolder
from goca.runs.records import ImageRecord, Summary
from goca.runs.summary import compact, expand, total_counts
from goca.runs.tables import run_tables

KEYS = {
    "dataset", "model", "protocol", "images", "miou", "miou_by_threshold", "iou_by_class", "pixel_accuracy",
    "seconds_per_image", "peak_memory_bytes", "versions",
}  # fmt: skip


@pytest.fixture
def compose(tiny):
    return lambda *overrides: config.compose([*tiny, "limit=3", *overrides])


def test_a_run_leaves_config_records_summary_and_figures(compose, tmp_path):
    summary = evaluate(compose(), tmp_path / "run")
    assert summary.keys() >= KEYS
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {
        *("overview.png", "attention_1000000.png", "layer_weights.png", "confusion.png")
    }
    records = RunFolder(tmp_path / "run").records()
    assert [record["image_id"] for record in records] == ["1000000", "1000001", "1000002"]
    assert total_counts(records, 15).sum() == 3 * 64 * 64
    assert summary["images"] == 3
    assert 0 <= summary["miou"] <= 100
    assert summary["layer_weight_errors"] == records[0]["layer_weight_errors"] == {}  # all rows count


def test_weights_from_a_part_of_the_rows_come_with_their_standard_errors(compose, tmp_path):
    """The record of each image has them, the summary their means, and the table a column."""
    summary = evaluate(compose("aggregation.rows=6"), tmp_path / "run")
    records = RunFolder(tmp_path / "run").records()
    for record in records:
        assert record["layer_weight_errors"].keys() == record["layer_weights"].keys()
        assert all(0 < error < 0.5 for error in record["layer_weight_errors"].values())
    for layer, error in summary["layer_weight_errors"].items():
        assert error == pytest.approx(np.mean([record["layer_weight_errors"][layer] for record in records]), abs=1e-5)
    found = [ImageRecord.from_json(record) for record in records]
    table = run_tables(Summary.from_json(summary), found)["layer_weights"]
    assert table.columns[-1] == "standard error"
    assert [row[-1] for row in table.rows] == pytest.approx(list(summary["layer_weight_errors"].values()), abs=1e-5)


@pytest.mark.slow
def test_the_same_numbers_for_another_batch_size_and_again(compose, tmp_path):
    summaries = [
        evaluate(compose(*extra), tmp_path / name)
        for name, extra in (("a", ()), ("b", ()), ("c", ("data.batch_size=3",)), ("d", ("data.num_workers=1",)))
    ]
    assert summaries[0]["miou"] == summaries[1]["miou"] == summaries[3]["miou"]
    assert summaries[0]["miou"] == pytest.approx(summaries[2]["miou"], abs=0.5)


@pytest.mark.slow
def test_images_alone_give_predictions_without_a_metric(compose, tmp_path):
    from PIL import Image

    (tmp_path / "mine" / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "mine" / "images" / "one.jpg")
    cfg = compose(
        "dataset=folder", f"paths.data={tmp_path / 'mine'}", "dataset.class_names=[circle,grass]", "prompts=vocabulary"
    )
    summary = evaluate(cfg, tmp_path / "run")
    assert summary["miou"] is None
    assert Image.open(tmp_path / "run" / "predictions" / "one.png").size == (40, 30)


@pytest.mark.slow
def test_captions_are_needed_for_the_images_that_are_read_alone(compose, tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({name: {"caption": "circle, grass"} for name in ("1000000", "1000001", "1000002")}))
    published = ("prompts=published", f"prompts.path={captions}")
    assert evaluate(compose(*published), tmp_path / "run")["images"] == 3
    with pytest.raises(DataError, match="no caption for 1 of 4"):
        evaluate(compose(*published, "limit=4"), tmp_path / "longer")


def test_confusion_counts_survive_the_record():
    import torch

    counts = torch.randint(0, 3, (2, 4, 4))
    assert torch.equal(expand(compact(counts), 4), counts)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["dataset=voc", "paths.data=/nowhere"], DataError, ["/nowhere", "VOCdevkit", "Source"]),
        (["model.checkpoint=/nowhere/sd"], ModelError, ["/nowhere/sd", "folder"]),
        (["model.checkpoint=model.ckpt"], ModelError, ["single file", "diffusers folder"]),
        (["aggregation.cross_layers=['up_blocks.9*']"], ModelError, ["up_blocks.9*", "up_blocks.1"]),
        (["aggregation.reference=mid.attn"], ModelError, ["mid.attn", "attentions"]),
        (["model.size=38"], ModelError, ["38", "multiples of"]),
        (["model.device=cuda:7"], ModelError, ["cuda:7"]),
        (["model.dtype=float16"], ModelError, ["float16", "bfloat16"]),
        (["prompts=published", "prompts.path=/nowhere.json"], DataError, ["/nowhere.json"]),
        (["prompts=vocabulary", "prompts.words=[zebra]"], ConfigError, ["zebra", "circle"]),
        (["indices=[5000]"], ConfigError, ["5000"]),
    ],
)
def test_bad_input_stops_with_one_message(compose, tmp_path, overrides, error, words):
    with pytest.raises(error) as caught:
        evaluate(compose(*overrides), tmp_path / "run")
    for word in words:
        assert word in str(caught.value)


def test_an_output_folder_that_cannot_be_written(compose, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        evaluate(compose(), tmp_path / "file" / "run")


def test_a_checkpoint_without_safetensors(compose, checkpoint, tmp_path):
    import shutil

    broken = tmp_path / "pickled"
    shutil.copytree(checkpoint, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"unet .* only safetensors"):
        evaluate(compose(f"model.checkpoint={broken}"), tmp_path / "run")
