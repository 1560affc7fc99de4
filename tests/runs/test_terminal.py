"""The table after a sweep: ranked among runs that can be compared, with what they have in common said once."""

import io
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from goca.runs.records import Facts, ImageRecord, Summary
from goca.runs.summary import summarize
from goca.runs.terminal import SweepTable, print_summary
from tests.helpers.fake_runs import run_folder
from tests.helpers.terminal import rows, summary, table


def test_the_best_comes_first_and_a_run_without_a_number_last() -> None:
    found = rows(table(summary("0_x", 41.256), summary("1_x", None), summary("2_x", 57.0)))
    assert [row[0] for row in found] == ["2", "0", "1"]
    assert [row[3] for row in found] == ["57.00", "41.26", "-"]
    assert found[0][2:] == ["5", "57.00", "81.2", "0.500"]


def test_what_all_have_in_common_stands_in_the_title_and_the_rest_in_the_rows() -> None:
    text = table(summary("0_x", 1.0), summary("1_x", 2.0, method="aggregation=vanilla, decision=offset"))
    title = "voc val - protocol standard, prompts classes (with ground truth), 1 classes with background, 5 images"
    assert text.splitlines()[0].strip() == f"{title}, sd15, decision=offset"
    assert [row[1] for row in rows(text)] == ["aggregation=vanilla", "aggregation=goca"]


def test_equal_methods_are_said_to_be_the_same_and_several_models_have_a_column() -> None:
    found = rows(table(summary("0_x", 1.0), summary("1_x", 2.0, model="sdxl")))
    assert [row[:3] for row in found] == [["1", "sdxl", "the same"], ["0", "sd15", "the same"]]


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "ade20k"},
        {"split": "train"},
        {"protocol": "upstream"},
        {"prompts": {"source": "caption"}},
        {"prompts": {"source": "classes", "on_missing": "classes", "ground_truth": False}, "classes": ["background", "dog"]},
        {"has_background": False},
        {"classes": ["background", "dog"]},
        {"judged": 4},
        {"image_set": "b"},
        {"rules_version": 2, "rules_hash": "a"},
        {"rules_hash": "b"},
    ],
)
def test_runs_that_answer_different_questions_are_never_ranked_together(changed: dict[str, Any]) -> None:
    text = table(summary("0_x", 1.0), summary("1_x", 99.0, **changed)).partition("The eight benchmarks")[0]
    assert [row[0] for row in rows(text)] == ["0", "1"]
    titles = [line.strip() for line in text.splitlines() if " - protocol " in line]
    assert len(set(titles)) == 2


def test_the_callback_reads_the_folder_of_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, noise in enumerate((0.3, 0.05)):
        run_folder(tmp_path / f"{number}_made", noise)
    SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    printed = capsys.readouterr().out
    assert [row[0] for row in rows(printed)] == ["1", "0"]  # less noise, better mIoU
    assert f"{tmp_path}/*/summary.json" in printed


def printed(found: Summary) -> str:
    console = Console(file=io.StringIO(), width=2000, emoji=False)
    print_summary(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"source": "classes", "ground_truth": True}, "the classes in the image, from its ground truth"),
        ({"source": "vocabulary", "words": None}, "every class name of the data set"),
        ({"source": "vocabulary", "words": ["cat"]}, "a chosen list of names"),
        ({"source": "vlm", "ground_truth": False}, "words that another network"),
        ({"source": "vlm", "add_missing": True}, "from its ground truth"),
        ({"source": "unprompted", "ground_truth": False}, "nothing"),
    ],
)
def test_the_result_says_what_the_method_is_told_about_the_image(prompts: dict[str, Any], said: str) -> None:
    text = printed(summary("0", 1.0, prompts=prompts)[1])
    assert f"prompts {prompts['source']}" in text.splitlines()[0]
    (line,) = (line for line in text.splitlines() if "method is told" in line)
    assert said in line


def test_of_many_classes_the_best_and_the_worst_are_shown() -> None:
    iou = {f"c{i}": float((37 * i) % 100) for i in range(100)}
    text = printed(summary("0", 1.0, iou_by_class=iou, miou_by_threshold={"0": 1.0}, threshold=0.0)[1])
    (line,) = (line for line in text.splitlines() if "IoU by class" in line)
    best, worst = line.split("IoU by class")[1].split("... 70 more in summary.json ...")
    values = {float(part.split(" ")[1]) for part in best.strip().split("  ")}
    assert values == set(range(85, 100))
    assert {float(part.split(" ")[1]) for part in worst.strip().split("  ")} == set(range(15))


@pytest.mark.parametrize(
    ("right", "choice"),
    [
        ((1, 2, 1), "best of 3 on the evaluated images"),
        ((1, 2, 3), "best of 3 on the evaluated images, the last of its sweep"),
        ((3, 2, 1), "best of 3 on the evaluated images, the first of its sweep"),
        ((2, 2, 2), "all of 3 give the same number"),
        ((3,), "given beforehand"),
    ],
)
def test_how_the_threshold_was_chosen_is_said(right: tuple[int, ...], choice: str) -> None:
    facts = dict(summary("0", None)[1].json) | {"thresholds": [0.1 * i for i in range(len(right))]}
    made = ImageRecord(image_id="a", confusion=[[1, 1, hits, 1, 0, 5] for hits in right])
    found = summarize(Facts.from_json(facts), [made])
    assert found.threshold_choice == choice
    assert choice in printed(found)


def test_images_that_are_left_out_or_void_are_said_and_break_nothing() -> None:
    facts = Facts.from_json(summary("0", None)[1].json)
    judged, void, left_out = (
        ImageRecord(image_id="a", confusion=[[1, 1, 5, 1, 0, 5]]),
        ImageRecord(image_id="b", confusion=[[]]),
        ImageRecord(image_id="c"),
    )
    alone, found = summarize(facts, [judged]), summarize(facts, [judged, void, left_out])
    assert (found.miou, found.images, found.judged) == (alone.miou, 3, 2)
    assert "1 image without words or ground truth" in printed(found)
    assert "not counted" not in printed(alone)
    nothing = summarize(facts, [void])
    assert nothing.miou is None
    assert "no pixel is evaluated" in printed(nothing)
