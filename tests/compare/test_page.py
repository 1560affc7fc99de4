"""The page in a real browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goca import config
from goca.compare.__main__ import compare
from goca.compare.runs import load
from goca.runs.summary import expand
from tests.compare.conftest import HOSTILE
from tests.helpers.browser import DESKTOP, PHONE, Page

pytest.importorskip("plotly", reason="plotly is not installed")


@pytest.fixture(scope="module")
def address(outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    overrides = [f"runs=[{outputs}]", f"output={folder}", "settings.samples=50", "title='A & <b>B</b>'"]
    overrides += ["+settings.generative_power.geneval.scores={sd15: 0.4, sdxl: 0.5}"]
    return compare(config.compose(overrides, "compare")).as_uri()


@pytest.fixture(scope="module")
def page(chromium: Any, address: str) -> Page:
    return Page(chromium, address)


def names(page: Page) -> list[str]:
    return page.texts("#board tbody td:nth-child(5)")


def test_it_opens_without_an_error_and_asks_for_nothing_else(page: Page, address: str) -> None:
    assert page.texts("h1") == ["A & <b>B</b>"]
    assert len(page.texts("#board tbody")) == 2
    page.page.wait_for_selector("#scaling svg.main-svg", state="attached")  # plotly draws after the load event
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [address]


def test_text_of_runs_stays_text(page: Page) -> None:
    assert HOSTILE in page.texts("#board tbody td:nth-child(3)")
    assert page.page.locator("#board img").count() == 0


def test_it_sorts_within_groups_only(page: Page) -> None:
    heading = page.page.locator("#board th button", has_text="mIoU")
    heading.click()
    best_first = names(page)
    heading.click()
    assert best_first == ["sdxl_goca", "sd15_goca", "sdxl_vanilla", "sd15_vanilla", "upstream"]
    assert names(page) == ["sd15_vanilla", "sdxl_vanilla", "sd15_goca", "sdxl_goca", "upstream"]
    assert page.page.locator("#board th[aria-sort=ascending]").inner_text().startswith("mIoU")


def test_it_filters_by_text_and_by_choice(page: Page) -> None:
    page.page.fill("#filter", "sdxl")
    assert set(names(page)) == {"sdxl_vanilla", "sdxl_goca"}
    page.page.select_option("#filter-method", "goca")
    assert names(page) == ["sdxl_goca"]
    page.page.fill("#filter", "")
    page.page.select_option("#filter-method", "")
    page.page.select_option("#filter-protocol", "upstream")
    assert names(page) == ["upstream"]
    page.page.select_option("#filter-protocol", "")
    assert len(names(page)) == 5


def test_one_quantity_at_a_time_is_on_the_axis_of_the_scaling_plot(page: Page) -> None:
    axis = page.page.locator("#scaling .xtitle")
    axis.get_by_text("GenEval (higher is better)").wait_for()
    assert page.texts("#scale option") == ["GenEval", "held-out loss of the noise"]
    assert page.texts("#scaling-note") == [""]
    page.page.select_option("#scale", "held_out_loss_noise")
    axis.get_by_text("held-out loss of the noise (lower is better)").wait_for()
    assert page.texts("#scaling-note")[0].startswith("Not shown, as their held-out loss of the noise is not known: sd15 (")
    page.page.select_option("#scale", "geneval")


def test_the_gallery_shows_pictures_sorted_by_disagreement(page: Page) -> None:
    page.page.select_option("#order", "differs")
    shares = [float(text.split(" %")[0]) for text in page.texts("#images h4 small")]
    assert len(shares) == 6
    assert shares == sorted(shares, reverse=True)
    assert page.page.locator("#images img").count() > 0
    page.page.wait_for_function("[...document.querySelectorAll('#images img')].every(i => i.complete && i.naturalWidth > 0)")
    two = page.page.locator("#images figure").count()
    page.page.check("#all-runs")
    assert page.page.locator("#images figure").count() == two + 12
    page.page.uncheck("#all-runs")


def test_choosing_runs_changes_difference_and_gallery(page: Page) -> None:
    before = page.texts("#pair")
    page.page.select_option("#run-a", label="sd15, goca")
    after = page.texts("#pair")
    assert before != after
    assert after[0].startswith("A less B: +")
    page.page.select_option("#kind", index=1)
    assert page.texts("#pair") == ["There is one run in this group, and none to compare it with."]
    assert not page.page.locator("#difference").is_visible()
    page.page.select_option("#kind", index=0)
    assert page.errors == []


def test_the_gallery_begins_with_the_worst_image_of_run_a(page: Page) -> None:
    def scores() -> list[float]:
        captions = page.texts("#images figcaption")
        return [float(text.rsplit("mIoU ", 1)[1]) for text in captions if text.startswith("A: ")]

    page.page.select_option("#order", "worst")
    worst = scores()
    assert len(worst) == 6
    assert worst == sorted(worst)
    page.page.select_option("#order", "best")
    assert scores() == worst[::-1]


def test_a_filter_without_hits_says_so(page: Page) -> None:
    page.page.fill("#filter", "nothing is called so")
    assert page.page.locator("#no-rows").is_visible()
    page.page.click("#no-filter")
    assert not page.page.locator("#no-rows").is_visible()
    assert len(names(page)) == 5


def test_the_confusion_matrix_is_that_of_run_a(page: Page, outputs: Path) -> None:
    page.page.wait_for_selector("#confusion svg.main-svg", state="attached")
    drawn = page.page.evaluate("document.getElementById('confusion').data[0]")
    assert drawn["x"] == ["background", "cat", "grass &lt;b&gt;", "$ky|"]
    chosen = next(run for run in load([outputs])[0] if run.name == "sdxl_goca")  # the best one
    counts = sum(expand(record["confusion"], 4)[1].numpy() for record in chosen.records)
    np.testing.assert_allclose(drawn["z"], 100 * counts / counts.sum(1, keepdims=True), atol=0.06)


def test_one_point_alone_has_room_around_it(page: Page) -> None:
    page.page.select_option("#scale", "held_out_loss_noise")
    page.page.wait_for_function("document.getElementById('scaling').layout.xaxis.range[0] < 1")
    low, high = sorted(page.page.evaluate("document.getElementById('scaling').layout.xaxis.range"))
    assert (low, high) == pytest.approx((0.036, 0.044))
    page.page.select_option("#scale", "geneval")


@pytest.mark.parametrize("width", [1400, 400])
def test_miou_is_seen_without_scrolling(chromium: Any, address: str, width: int) -> None:
    page = Page(chromium, address, {"width": width, "height": 900})
    for selector in ("#board th:nth-child(2)", "#ablations tbody td:nth-child(2)"):
        box = page.page.locator(selector).first.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width
    assert page.texts("#board th:nth-child(2)") == ["mIoU"]
    assert page.texts("#ablations thead th:nth-child(2)")[0] == "mIoU"


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_sticks_out_sideways(chromium: Any, address: str, viewport: dict[str, int]) -> None:
    page = Page(chromium, address, viewport)
    for plot in ("scaling", "classes", "differences", "curves"):
        page.page.wait_for_selector(f"#{plot} svg.main-svg", state="attached")
    assert page.fits()
    assert page.errors == []


def test_methods_and_models_are_a_heat_map_with_cost_below(page: Page) -> None:
    assert page.texts("#heat th") == ["method", "sd15", "sdxl"]
    methods = page.texts("#heat td:first-child")
    assert methods == ["goca", "vanilla"]  # by their mean
    values = [float(text) for text in page.texts("#heat td.number")]
    assert sum(values[:2]) > sum(values[2:])
    page.page.wait_for_selector("#cost svg.main-svg", state="attached")
    assert page.page.locator("#cost .scatterlayer .trace").count() == 2
