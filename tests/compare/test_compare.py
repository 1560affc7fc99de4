"""Reading run folders, grouping them, and the tables made of them."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from goca import config
from goca.compare.__main__ import compare
from goca.compare.content import Comparison, Settings, repeats
from goca.compare.page import markdown
from goca.compare.runs import load
from goca.compare.scaling import Scale, generative_power
from goca.config.arguments import folders_first
from goca.errors import ConfigError, DataError
from goca.runs.folder import RunFolder
from goca.runs.summary import expand
from goca.runs.sweeps import FINISHED
from tests.helpers.fake_runs import run_folder

SETTINGS = Settings(200, 0, 0.95, None, {"loss": Scale("loss", "lower"), "geneval": Scale("GenEval", scores={"sd15": 0.43})})


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
    assert table.columns == ("method", "mIoU", "difference", "low", "high", "aggregation.heads")
    base, goca = table.rows
    assert (base[0], base[-1]) == ("vanilla", "average")
    assert base[2] is None
    assert goca[2] == pytest.approx(goca[1] - base[1], abs=1e-3)
    assert goca[3] < goca[2] < goca[4]


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
        (lambda f: (f / "summary.json").write_text("[]"), "is damaged"),
        (lambda f: (f / "records.jsonl").write_text((f / "records.jsonl").read_text().splitlines()[0] + "\n"), "1 of 6 images"),
        (lambda f: (f / "config.yaml").unlink(), "it has no config.yaml"),
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
    assert note == "a: 1 image failed and does not count"
    assert (len(runs[0].image_ids), runs[0].kind.images) == (5, 5)


def test_jobs_that_were_finished_before_are_found_where_they_are_and_once(tmp_path: Path) -> None:
    run_folder(tmp_path / "first" / "0_x")
    sweep = tmp_path / "second"
    run_folder(sweep / "2_x", 0.1)
    for name, run in (("0_x", "first/0_x"), ("1_x", "first/0_x"), ("3_x", "gone/0_x")):
        (sweep / name).mkdir()
        (sweep / name / FINISHED).write_text(json.dumps({"run": str(tmp_path / run)}))
    (sweep / "4_x").mkdir()
    (sweep / "4_x" / FINISHED).write_text("{")
    for given in ([sweep], [tmp_path], [sweep, tmp_path / "first"]):
        runs, notes = load(given)
        assert [run.path for run in runs] == [tmp_path / "first" / "0_x", sweep / "2_x"]
        lost, damaged = notes
        assert lost.startswith(f"{sweep / '3_x'} was not computed, as {tmp_path / 'gone' / '0_x'} held its results")
        assert damaged.startswith(f"{sweep / '4_x' / FINISHED} names no run")
    assert [run.path for run in load([sweep / "0_x"])[0]] == [tmp_path / "first" / "0_x"]


def test_runs_that_differ_in_their_seed_have_a_mean_and_a_deviation(tmp_path: Path) -> None:
    for seed in range(3):
        run_folder(tmp_path / f"g{seed}", 0.1 + 0.05 * seed, seed=seed, config={"seed": seed})
    run_folder(tmp_path / "other", method="vanilla", config={"aggregation": {"heads": "max"}})
    runs, _ = load([tmp_path])
    ((method, model, mean, deviation, low, high, seeds),) = repeats(runs).rows
    miou = [run.summary["miou"] for run in runs if run.name != "other"]
    assert (method, model, seeds) == ("goca", "tiny", 3)
    assert (mean, deviation) == pytest.approx((statistics.mean(miou), statistics.stdev(miou)), abs=0.006)
    assert (low, high) == pytest.approx((min(miou), max(miou)), abs=0.006)


def test_a_repeated_seed_counts_once_by_its_later_folder(tmp_path: Path) -> None:
    noise = {"1_first": 0.3, "2_second": 0.1, "3_third": 0.15, "4_first_again": 0.2}
    for (name, amount), seed in zip(noise.items(), (0, 1, 2, 0), strict=True):
        run_folder(tmp_path / name, amount, seed=seed, config={"seed": seed})
    runs, _ = load([tmp_path])
    by_name = {run.name: run.miou for run in runs}
    (row,) = repeats(runs).rows
    assert row[-1] == 3
    assert row[2] == pytest.approx(statistics.mean(by_name[name] for name in list(noise)[1:]), abs=0.006)


def test_differences_are_taken_from_the_baseline_of_the_same_seed(tmp_path: Path) -> None:
    for seed in range(2):
        for method, amount in (("vanilla", 0.4 - 0.1 * seed), ("goca", 0.1)):
            changed = {"seed": seed, "aggregation": {"heads": method}}
            summary = {"method": method, "config": changed}
            path = run_folder(tmp_path / f"{method}_{seed}", amount, seed=seed, **summary)
            found = json.loads((path / "summary.json").read_text())
            (path / "summary.json").write_text(json.dumps({**found, "seed": seed}))
    runs, _ = load([tmp_path])
    (table,) = Comparison(runs, SETTINGS).ablations(runs).values()
    rows = {(row[0], row[table.columns.index("seed")]): row for row in table.rows}
    for seed in range(2):
        base, goca = rows["vanilla", seed], rows["goca", seed]
        assert base[2] is None
        assert goca[2] == pytest.approx(goca[1] - base[1], abs=1e-3)


def test_an_ablation_with_many_settings_says_how_many_are_not_shown(tmp_path: Path) -> None:
    for value in range(2):
        run_folder(tmp_path / str(value), 0.1 + 0.1 * value, config={f"setting_{i}": i if value else -i - 1 for i in range(11)})
    runs, _ = load([tmp_path])
    (table,) = Comparison(runs, SETTINGS).ablations(runs).values()
    assert table.columns[-1] == "and 3 more settings"
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_images_have_their_own_miou_in_a_csv(outputs: Path, tmp_path: Path) -> None:
    compare(config.compose([f"runs=[{outputs}]", f"output={tmp_path}", "settings.samples=10"], "compare"))
    rows = list(csv.DictReader((tmp_path / "images.csv").open(encoding="utf-8")))
    assert len(rows) == 5 * 6
    row = next(row for row in rows if (row["image"], row["run"]) == ("image 2", "sd15_goca"))
    counts = expand(RunFolder(outputs / "sd15_goca").records()[2]["confusion"], 4)[1].double()
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    assert float(row["mIoU"]) == pytest.approx(100 * float(iou.nanmean()), abs=0.006)


def test_groups_of_the_same_title_say_what_sets_them_apart(tmp_path: Path) -> None:
    run_folder(tmp_path / "a", classes=["background", "x", "y", "z"])
    run_folder(tmp_path / "b", classes=["background", "x", "y", "w"])
    titles = list(Comparison(load([tmp_path])[0], SETTINGS).titles.values())
    assert len(set(titles)) == 2
    assert all(f"set {number}: classes x ... " in title for number, title in enumerate(titles, start=1))


def test_a_baseline_that_no_run_has_is_one_message(outputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run has the method 'nope'; there are .*goca; vanilla"):
        compare(config.compose([f"runs=[{outputs}]", f"output={tmp_path}", "settings.baseline=nope"], "compare"))
    with pytest.raises(ConfigError, match=r"settings\.samples"):
        compare(config.compose([f"runs=[{outputs}]", f"output={tmp_path}", "settings.samples=0"], "compare"))


def test_an_image_without_a_class_to_judge_has_no_miou(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a")
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    lines[0]["confusion"] = [[] for _ in lines[0]["confusion"]]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    compare(config.compose([f"runs=[{folder}]", f"output={tmp_path / 'out'}", "settings.samples=10"], "compare"))
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").open(encoding="utf-8")))
    assert [row["mIoU"] == "" for row in rows] == [True, *[False] * 5]


def test_a_run_without_any_evaluated_pixel_is_left_out_with_the_reason(tmp_path: Path) -> None:
    run_folder(tmp_path / "good")
    void = {"miou": None, "miou_by_threshold": {"0": None, "0.25": None, "0.5": None}}
    run_folder(tmp_path / "bad", **void)
    runs, (note,) = load([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert note == "bad: has no evaluated pixel, so there is no number to compare"


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
    assert f"| 1 | **{summary['miou']:.2f}** | goca | sdxl | sdxl_goca |" in (tmp_path / "results.md").read_text(
        encoding="utf-8"
    )


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
