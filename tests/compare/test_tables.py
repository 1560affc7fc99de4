"""Tables of a comparison as files, quoted rows beside the runs', and the same files from the page."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from goca import config
from goca.compare.__main__ import compare
from goca.compare.quoted import read_quoted
from goca.compare.runs import load
from goca.compare.tables import worst_images
from goca.errors import ConfigError
from goca.runs.benchmark_row import BENCHMARKS
from tests.helpers.browser import Page
from tests.helpers.fake_runs import run_folder

FILES = ("csv", "md", "tex")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a comparison: two methods on two of the eight benchmarks, one also told the classes."""
    root = tmp_path_factory.mktemp("row")
    facts: dict[str, Any] = {"protocol": "ovss", "prompts": {"source": "vocabulary"}, "model": "sd15"}
    for method, noise in (("vanilla", 0.25), ("goca", 0.1)):
        run_folder(root / f"{method}_21", noise, method=method, dataset="voc21", judged=1449, **facts)
        run_folder(root / f"{method}_20", noise, method=method, dataset="voc20", judged=1449, has_background=False, **facts)
    oracle = facts | {"prompts": {"source": "classes", "ground_truth": True}}
    run_folder(root / "oracle", 0.01, method="goca", dataset="voc21", judged=1449, **oracle)
    compare(config.compose([f"runs=[{root}]", f"output={root / 'out'}", "settings.samples=10"], "compare"))
    return root / "out"


def test_quoted_rows_stand_beside_the_runs_of_their_regime_and_say_where_they_are_from(written: Path) -> None:
    rows = list(csv.DictReader((written / "benchmarks.csv").open(encoding="utf-8")))
    by_group: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_group.setdefault(row["group"], []).append(row)
    ours, sclip = by_group["all names, protocol ovss version 1"], next(row for row in rows if row["method"] == "SCLIP (quoted)")
    assert {"goca", "vanilla", "SCLIP (quoted)"} <= {row["method"] for row in ours}
    assert [row["method"] for row in by_group["ground-truth names, protocol ovss version 1"]] == ["goca"]
    assert [row["method"] for row in by_group["predicted names, protocol ovss version 1"]] == ["iSeg (quoted)"]
    assert (sclip["VOC21"], sclip["ADE"], sclip["average"]) == ("59.6", "16.5", "39.05")
    assert {row["source"] == "measured" for row in rows if "(quoted)" not in row["method"]} == {True}
    assert all(row["source"] not in ("", "measured") for row in rows if "(quoted)" in row["method"])
    assert all(row["average"] == "" for row in rows if row["method"] == "goca")


def test_the_package_s_quoted_rows_are_whole_and_add_up() -> None:
    rows = {(row.method, row.model): row for row in read_quoted()}
    assert all(0 < value < 100 for row in rows.values() for value in row.miou.values())
    averages = [row.average for row in rows.values() if row.average is not None]
    assert len(averages) == len([row for row in rows.values() if len(row.miou) == 8]) >= 7
    corrclip = [round(row.average or 0, 1) for (method, _), row in rows.items() if method == "CorrCLIP"]
    assert corrclip == [51.0, 55.4]  # as its authors give them


def test_rows_of_one_s_own_can_be_quoted_or_none(tmp_path: Path, written: Path) -> None:
    entry = {"method": "Mine", "model": "m", "regime": "all names", "source": "s", "setting": "t", "miou": {"voc21": 1.0}}
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump([entry]))
    assert [row.method for row in read_quoted(mine)] == ["Mine"]
    wrong = (({"regime": "all"}, "entry 0.regime"), ({"miou": {"voc": 1.0}}, "no benchmark is called voc; there are"))
    for damage, reason in wrong:
        mine.write_text(yaml.safe_dump([entry | damage]))
        with pytest.raises(ConfigError, match=reason):
            read_quoted(mine)
    with pytest.raises(ConfigError, match=r"settings\.quoted: .*cannot be read"):
        read_quoted(tmp_path / "absent.yaml")
    options = [f"runs=[{written.parent}]", f"output={tmp_path / 'out'}", "settings.samples=10", "settings.quoted=false"]
    compare(config.compose(options, "compare"))
    assert "quoted" not in (tmp_path / "out" / "benchmarks.csv").read_text()


def test_every_table_of_several_runs_is_written_in_three_forms(written: Path) -> None:
    for name in ("benchmarks", "leaderboard", "iou_by_class_1", "iou_by_class_3", "tables/thresholds_1", "tables/ablation_1_1"):
        assert [(written / f"{name}.{ending}").stat().st_size > 50 for ending in FILES] == [True] * 3
    latex = (written / "leaderboard.tex").read_text(encoding="utf-8")
    assert latex.count("\\multicolumn") == latex.count("\\midrule") == 3  # groups between rules
    assert latex.count("\\textbf") == 2  # of the groups of two; one alone is not the best of anything
    assert "## Eight benchmarks" in (written / "results.md").read_text(encoding="utf-8")


def test_a_comparison_of_other_data_sets_has_no_such_table(tmp_path: Path) -> None:
    run_folder(tmp_path / "a")
    compare(config.compose([f"runs=[{tmp_path}]", f"output={tmp_path / 'out'}", "settings.samples=10"], "compare"))
    assert not list((tmp_path / "out").glob("benchmarks.*"))


def test_the_worst_images_are_those_with_the_lowest_miou(tmp_path: Path) -> None:
    ((run,), _) = load([run_folder(tmp_path / "a", images=30)])
    own = dict(zip(run.image_ids, run.counts.miou_by_image(), strict=True))
    rows = worst_images(run).rows
    assert [row[0] for row in rows] == sorted(own, key=lambda image: own[image])[:20]
    assert [row[1] for row in rows] == pytest.approx(sorted(own.values())[:20], abs=0.006)


def test_the_page_saves_its_tables_as_the_files_are(chromium: Any, written: Path) -> None:
    page = Page(chromium, (written / "index.html").as_uri())
    assert page.texts("#row thead th")[2:11] == [*(benchmark.title for benchmark in BENCHMARKS.values()), "average"]
    assert page.page.locator("#row tr.quoted").count() == len(read_quoted())
    assert len(page.texts("#row tbody th")) == 3
    for place, name in (("benchmarks", "benchmarks"), ("leaderboard", "leaderboard")):
        for title, ending in zip(("CSV", "Markdown", "LaTeX"), FILES, strict=True):
            with page.page.expect_download() as found:
                page.page.locator(f"#{place} .files button", has_text=title).click()
            assert found.value.suggested_filename == f"{name}.{ending}"
            assert Path(found.value.path()).read_bytes() == (written / f"{name}.{ending}").read_bytes()
    page.page.select_option("#kind", index=1)
    with page.page.expect_download() as found:
        page.page.locator("[data-kind=iou_by_class] button", has_text="LaTeX").click()
    assert Path(found.value.path()).read_bytes() == (written / "iou_by_class_2.tex").read_bytes()
    assert page.page.locator("#worst-images tbody tr").count() == 6
    with page.page.expect_download() as found:
        page.page.locator("[data-run=confusion] button", has_text="CSV").click()
    assert Path(found.value.path()).read_text(encoding="utf-8").startswith("ground truth,")
    assert page.errors == []
    assert page.fits()
