"""Reading run folders, grouping them, and the tables made of them."""

import csv
import json
from pathlib import Path

import pytest

from goca import config
from goca.compare.__main__ import compare
from goca.compare.content import Comparison, Settings
from goca.compare.page import markdown
from goca.compare.runs import load
from goca.compare.scaling import Scale, generative_power
from goca.config.arguments import folders_first
from goca.errors import DataError
from tests.helpers.fake_runs import run_folder

SETTINGS = Settings(
    200, 0, 0.95, "vanilla", {"loss": Scale("loss", "lower"), "geneval": Scale("GenEval", scores={"sd15": 0.43})}
)


def test_only_runs_of_one_protocol_are_ranked_together(outputs: Path) -> None:
    runs, notes = load([outputs])
    comparison = Comparison(runs, SETTINGS)
    assert [[run.name for run in members] for members in comparison.kinds.values()] == [
        ["sdxl_goca", "sd15_goca", "sdxl_vanilla", "sd15_vanilla"],
        ["upstream"],
    ]
    ranks = [comparison.leaderboard(members).rows[0][0] for members in comparison.kinds.values()]
    assert ranks == [1, 1]
    assert notes == ["lost: incomplete, it has no summary.json; finish it by the same command with resume=true"]


def test_ablation_shows_what_differs_and_by_how_much(outputs: Path) -> None:
    runs, _ = load([outputs / "sd15_goca", outputs / "sd15_vanilla"])
    (members,) = Comparison(runs, SETTINGS).kinds.values()
    table = Comparison(runs, SETTINGS).ablations(members)["sd15"]
    assert table.columns == ("method", "aggregation.heads", "mIoU", "difference", "low", "high")
    base, goca = table.rows
    assert base[:2] == ("vanilla", "average")
    assert base[3] is None
    assert goca[3] == pytest.approx(goca[2] - base[2], abs=1e-3)
    assert goca[4] < goca[3] < goca[5]


def test_runs_on_other_images_or_classes_are_named_and_ranked_apart(tmp_path: Path) -> None:
    run_folder(tmp_path / "a")
    run_folder(tmp_path / "b", images=3)
    run_folder(tmp_path / "c", classes=["background", "x", "y", "z"])
    runs, notes = load([tmp_path])
    assert len(Comparison(runs, SETTINGS).kinds) == 3
    assert notes == [
        "b: other images than other runs on made up (val); ranked apart",
        "c: other classes than other runs on made up; ranked apart",
    ]


def test_generative_power_comes_from_the_run_or_from_the_user(tmp_path: Path) -> None:
    run_folder(tmp_path / "own", model="tiny", generator={"loss": 0.04, "unheard of": 1.0})
    run_folder(tmp_path / "given", model="sd15")
    runs, _ = load([tmp_path])
    power = {run.name: generative_power(run, SETTINGS.generative_power) for run in runs}
    assert power == {"own": {"loss": 0.04}, "given": {"geneval": 0.43}}
    over = {"loss": Scale("loss", "lower", {"tiny": 0.03})}
    assert {run.name: generative_power(run, over) for run in runs} == {"own": {"loss": 0.03}, "given": {}}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "summary.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "summary.json").write_text('{"miou": 1}'), "written by another version"),
        (lambda f: (f / "summary.json").write_text("[]"), "written by another version"),
        (lambda f: (f / "records.jsonl").write_text((f / "records.jsonl").read_text().splitlines()[0] + "\n"), "1 of 6 images"),
        (lambda f: (f / "config.yaml").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_run_is_left_out_with_the_reason(tmp_path: Path, damage: object, reason: str) -> None:
    run_folder(tmp_path / "good")
    damage(run_folder(tmp_path / "bad"))  # type: ignore[operator]
    runs, (note,) = load([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert note.startswith("bad: ")
    assert reason in note


def test_images_that_failed_do_not_count_and_are_named(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a", failed=1, images=5)
    runs, (note,) = load([folder])
    assert note == "a: 1 images failed and do not count"
    assert len(runs[0].kind.image_ids) == 5


def test_no_runs_at_all_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run to compare"):
        load([tmp_path])
    with pytest.raises(DataError, match="there is no folder"):
        load([tmp_path / "nowhere"])


def test_the_command_writes_page_csv_and_markdown(outputs: Path, tmp_path: Path) -> None:
    overrides = [f"runs=[{outputs}]", f"output={tmp_path}", "settings.samples=50"]
    page = compare(config.compose(overrides, "compare"))
    text = page.read_text(encoding="utf-8")
    assert "</script></script>" not in text
    with open(tmp_path / "leaderboard.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["protocol"]) for row in rows] == [
        ("1", "standard"),
        ("2", "standard"),
        ("3", "standard"),
        ("4", "standard"),
        ("1", "upstream"),
    ]
    summary = json.loads((outputs / "sdxl_goca" / "summary.json").read_text())
    assert float(rows[0]["mIoU"]) == summary["miou"]
    assert "| 1 | sdxl_goca | sdxl | goca |" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_markdown_shows_text_of_runs_as_text(outputs: Path) -> None:
    runs, notes = load([outputs])
    text = markdown(Comparison(runs, SETTINGS), notes, "Results")
    assert "<img" not in text
    assert "&lt;img src=x" in text


def test_bare_folder_names_need_no_key(tmp_path: Path) -> None:
    odd = tmp_path / 'a "b" c=d'
    odd.mkdir()
    (override,) = folders_first([str(odd)])
    assert config.compose([override], "compare").runs == [str(odd)]
