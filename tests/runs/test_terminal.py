"""The table after a sweep: ranked among runs that can be compared, with what they have in common said once."""

import io
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from goca.runs.records import Summary
from goca.runs.terminal import SweepTable, print_sweep
from tests.helpers.fake_runs import run_folder


def summary(folder: str, miou: float | None, **changed: Any) -> tuple[str, Summary]:
    """A job of a sweep and what it found."""
    facts: dict[str, Any] = {
        "dataset": "voc", "split": "val", "protocol": "standard", "prompts": {"source": "classes"}, "model": "sd15",
        "method": "aggregation=goca, decision=offset", "classes": ["background", "cat"], "thresholds": [0.0],
        "unseen_classes": "skip", "has_background": True,
    }  # fmt: skip
    return folder, Summary(**facts | changed, images=5, miou=miou, pixel_accuracy=81.25, seconds_per_image=0.5)


def table(*jobs: tuple[str, Summary], folder: Path = Path("sweep")) -> str:
    console = Console(file=io.StringIO(), width=160, emoji=False)
    print_sweep(dict(jobs), folder, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in text.splitlines() if line[:1] == "\u2502"
    ]


def test_the_best_comes_first_and_a_run_without_a_number_last() -> None:
    found = rows(table(summary("0_x", 41.256), summary("1_x", None), summary("2_x", 57.0)))
    assert [row[0] for row in found] == ["2", "0", "1"]
    assert [row[3] for row in found] == ["57.00", "41.26", "-"]
    assert found[0][2:] == ["5", "57.00", "81.2", "0.500"]


def test_what_all_have_in_common_stands_in_the_title_and_the_rest_in_the_rows() -> None:
    text = table(summary("0_x", 1.0), summary("1_x", 2.0, method="aggregation=vanilla, decision=offset"))
    assert text.splitlines()[0].strip() == "voc - protocol standard, prompts classes, sd15, decision=offset"
    assert [row[1] for row in rows(text)] == ["aggregation=vanilla", "aggregation=goca"]


def test_equal_methods_are_said_to_be_the_same_and_several_models_have_a_column() -> None:
    found = rows(table(summary("0_x", 1.0), summary("1_x", 2.0, model="sdxl")))
    assert [row[:3] for row in found] == [["1", "sdxl", "the same"], ["0", "sd15", "the same"]]


@pytest.mark.parametrize("changed", [{"dataset": "ade20k"}, {"protocol": "upstream"}, {"prompts": {"source": "caption"}}])
def test_runs_that_answer_different_questions_are_never_ranked_together(changed: dict[str, Any]) -> None:
    text = table(summary("0_x", 1.0), summary("1_x", 99.0, **changed))
    assert [row[0] for row in rows(text)] == ["0", "1"]
    assert sum(" - protocol " in line for line in text.splitlines()) == 2


def test_the_callback_reads_the_folder_of_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, noise in enumerate((0.3, 0.05)):
        run_folder(tmp_path / f"{number}_made", noise)
    SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    printed = capsys.readouterr().out
    assert [row[0] for row in rows(printed)] == ["1", "0"]  # less noise, better mIoU
    assert f"{tmp_path}/*/summary.json" in printed
