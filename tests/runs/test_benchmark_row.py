"""The row of the eight benchmarks: papers' order, an average over all of them only, and never two regimes in one ranking."""

import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from goca.runs.benchmark_row import BENCHMARKS, row_table, rows_of
from goca.runs.folder import RunFolder
from goca.runs.records import Summary
from goca.runs.sweeps import read_summary
from tests.helpers.fake_runs import run_folder
from tests.helpers.sweep import Sweep
from tests.helpers.terminal import rows, summary, table

# As papers print it.
ORDER = ("VOC21", "Context60", "COCO-Object", "VOC20", "Context59", "COCO-Stuff", "Cityscapes", "ADE")
IMAGES = {"voc": 1449, "context": 5104, "coco": 5000, "cityscapes": 500, "ade": 2000}


def run(dataset: str, miou: float, **changed: Any) -> Summary:
    """A run on the whole validation set of one of the eight, all names given."""
    images = next(count for name, count in IMAGES.items() if dataset.startswith(name))
    facts: dict[str, Any] = {"dataset": dataset, "image_set": dataset, "judged": images, "protocol": "ovss"}
    facts |= {"prompts": {"source": "vocabulary"}, "has_background": dataset in ("voc21", "context60", "coco_object")}
    return summary("0", miou, **facts | changed)[1]


def eight(first: float, **changed: Any) -> list[Summary]:
    return [run(name, first + place, **changed) for place, name in enumerate(BENCHMARKS)]


def test_columns_are_in_the_papers_order_and_the_average_is_of_all_eight() -> None:
    made = row_table(rows_of(eight(10.0)[::-1]))
    assert made.columns == ("method", "model", *ORDER, "average")
    assert made.rows[0][2:] == (*(10.0 + i for i in range(8)), statistics.mean(range(10, 18)))
    assert made.parts == (("all names, protocol ovss version 1", 1),)


def test_without_all_eight_there_is_no_average() -> None:
    made = row_table(rows_of(eight(10.0)[:5]))
    assert made.rows[0][-1] is None
    assert made.rows[0][2:10].count(None) == 3


@pytest.mark.parametrize(
    ("changed", "group"),
    [
        ({"prompts": {"source": "classes", "ground_truth": True}}, "ground-truth names, protocol ovss version 1"),
        ({"prompts": {"source": "predicted"}}, "predicted names, protocol ovss version 1"),
        ({"protocol": "standard"}, "all names, protocol standard version 1"),
        ({"rules_version": 2}, "all names, protocol ovss version 2"),
        ({"rules_hash": "b"}, "names, words and prompts 2: all names, protocol ovss version 1"),
        ({"classes": ["background", "dog"]}, "names, words and prompts 2: all names, protocol ovss version 1"),
        ({"judged": 5}, "all names, protocol ovss version 1, 5 images of val: no numbers of the benchmarks"),
        ({"split": "train"}, "images of train: no numbers of the benchmarks"),
    ],
)
def test_rows_of_another_regime_protocol_or_other_images_stand_apart(changed: dict[str, Any], group: str) -> None:
    made = row_table(rows_of([*eight(10.0), *eight(90.0, **changed)]))
    headings = [heading for heading, _ in made.parts]
    assert len(headings) >= 2
    assert any(group in heading for heading in headings)
    assert "**17.0**" not in made.markdown()  # alone in its part: not ranked
    whole = [heading for heading in headings if "no numbers" not in heading]
    assert headings[: len(whole)] == whole


def test_parts_of_a_data_set_with_other_images_are_not_ranked_with_each_other() -> None:
    one, other = run("voc21", 1.0, judged=5, image_set="a"), run("voc21", 2.0, judged=5, image_set="b", method="other")
    assert len(row_table(rows_of([one, other])).parts) == 2


def test_data_sets_go_by_their_background_and_seeds_are_averaged() -> None:
    voc = [run("voc", 50.0, has_background=True, judged=1449), run("voc", 80.0, has_background=False, judged=1449)]
    (row,) = rows_of([*voc, run("voc21", 60.0, seed=1)])
    assert row.miou == {"voc21": 55.0, "voc20": 80.0}
    assert rows_of([run("coco_object", 50.0, has_background=False)]) == []
    assert rows_of([summary("0", 50.0, dataset="scenes")[1]]) == []


@given(st.permutations(range(32)))
def test_a_row_is_of_one_list_of_names_whatever_the_order_of_runs(order: list[int]) -> None:
    lists = {"dataset": 10.0, "sclip": 20.0}
    made = [found for names, miou in lists.items() for found in eight(miou, names=names, rules_hash=f"of {names}")]
    options = {"source": "vocabulary", "background_words": False}
    made += [found for names, miou in lists.items() for found in eight(miou + 40, names=names, prompts=options)]
    rows = rows_of([made[place] for place in order])
    assert {row.group: row.average for row in rows} == {
        "names, words and prompts 2: all names, protocol ovss version 1": 13.5,
        "all names, protocol ovss version 1": 53.5,
        "names, words and prompts 2: all names, protocol ovss version 1, names sclip": 23.5,
        "all names, protocol ovss version 1, names sclip": 63.5,
    }


def test_a_column_of_another_list_does_not_fill_a_gap() -> None:
    rows = rows_of([*eight(10.0)[1:], *eight(20.0, names="sclip")])
    assert {row.group: row.average for row in rows} == {
        "all names, protocol ovss version 1": None,
        "all names, protocol ovss version 1, names sclip": 23.5,
    }


@pytest.mark.parametrize(
    ("changed", "group"),
    [
        ({"unusual": {"protocol.void": "background"}}, "all names, protocol ovss version 1, protocol.void=background"),
        (
            {"prompts": {"source": "vocabulary", "matched": "ground truth"}},
            "matched with ground truth, protocol ovss version 1",
        ),
    ],
)
def test_what_papers_do_not_do_never_stands_under_their_heading(changed: dict[str, Any], group: str) -> None:
    (row,) = rows_of([run("voc21", 70.0, **changed)])
    assert row.group == group


@given(st.permutations([(0, 50.0), (1, 52.0), (2, 51.0)]))
def test_of_two_runs_with_one_seed_the_later_counts(seeds: list[tuple[int, float]]) -> None:
    repeated = [run("voc21", miou, seed=seed) for seed, miou in (*seeds, (0, 49.0))]
    (row,) = rows_of(repeated)
    assert row.miou == {"voc21": pytest.approx((49 + 52 + 51) / 3)}


def test_a_sweep_over_the_eight_ends_with_their_table() -> None:
    runs = [*eight(10.0), *eight(20.0, method="other")]
    text = table(*((f"{place}_x", found) for place, found in enumerate(runs)))
    end = text[text.index("The eight benchmarks") :]
    cells = rows(end)
    assert [row[0] for row in cells] == ["other", "aggregation=goca, decision=offset"]
    assert cells[0][2:] == [f"{value:.1f}" for value in (*(20.0 + i for i in range(8)), 23.5)]
    assert "The eight benchmarks" not in table(("0_x", run("voc21", 1.0)))


@pytest.mark.slow
def test_one_command_gives_the_row_and_its_average(
    sweep: Sweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The sweep itself; what a run would find is made up, as a vocabulary of 171 names takes its time on any model."""

    def found(cfg: DictConfig, folder: Path) -> Summary:
        name, background = cfg.dataset.name, bool(cfg.dataset.get("background"))
        facts = {"dataset": name, "has_background": background, "protocol": cfg.protocol.name, "method": "m" * 300}
        prompts = {"source": "vocabulary" if cfg.prompts._target_ == "goca.prompts.Vocabulary" else "?"}
        run_folder(folder, 0.02 * (1 + list(BENCHMARKS).index(name)), prompts=prompts, **facts)
        return RunFolder(folder).summary()

    monkeypatch.setattr("goca.runs.evaluation.evaluate", found)
    assert sweep("+experiment=ovss8", "output=" + str(tmp_path / "eight")) == 0
    printed = capsys.readouterr().out
    end = printed[printed.index("The eight benchmarks") :]
    assert "all names, protocol ovss version 1, 6 images of val" in end
    (row,) = rows(end)
    runs = [read_summary(path.parent) for path in (tmp_path / "eight").glob("*/summary.json")]
    miou = {summary.dataset: summary.miou or 0.0 for summary in runs}
    assert len(set(miou.values())) == len(BENCHMARKS) == len(runs)
    assert row[:2] == ["m" * 300, "tiny"]  # a long name takes no room from the numbers
    assert row[2:] == [f"{value:.1f}" for value in (*(miou[name] for name in BENCHMARKS), statistics.mean(miou.values()))]
