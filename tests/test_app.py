"""The app in a real browser, on a small backbone with random weights."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", reason="the extra app is not installed")

from goca import config  # noqa: E402
from goca.app import Setting, Studio, differing, launch, legend, shown  # noqa: E402
from goca.errors import ConfigError, GocaError  # noqa: E402
from goca.paths import CONF  # noqa: E402
from tests.helpers.browser import DESKTOP, PHONE, WAIT, Page  # noqa: E402

SETTING = Setting("scenes_unet", "goca", "goca", "affinity", None)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(tiny_model: list[str]) -> Iterator[str]:
    cfg = config.compose([f"port={free_port()}"], "app")
    cfg.overrides = tiny_model
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):  # as in the command, Hydra is at work already
        page = launch(cfg, wait=False)
        yield page.local_url
        page.close()


# gradio's own frontend says these; the first is a fetch of a font or a script from another host that it does without.
_GRADIO = ("net::ERR", "Manifest", "Method not implemented.")


def own_errors(page: Page) -> list[str]:
    """Errors that are not gradio's."""
    return [error for error in page.errors if not any(known in error for known in _GRADIO)]


def test_a_backbone_is_loaded_once_and_settings_change_the_result(tiny_model: list[str], picture: Path) -> None:
    studio = Studio(tiny_model)
    goca = studio.view(picture, "circle, grass", SETTING)
    backbone = studio._backbones["scenes_unet"]
    vanilla = studio.view(picture, "circle, grass", Setting("scenes_unet", "vanilla", "vanilla", "none", 0.1))
    assert studio._backbones["scenes_unet"] is backbone
    assert not (goca.token_maps == vanilla.token_maps).all()
    overlay, factor = shown(goca)
    assert overlay.size == (32 * factor, 24 * factor)


def test_the_legend_shows_text_as_text(tiny_model: list[str], picture: Path) -> None:
    view = Studio(tiny_model).view(picture, "<b>circle, grass", SETTING)
    assert "<b>" not in legend(view)
    assert "&lt;b&gt;circle" in legend(view)


def test_nothing_to_look_for_is_one_message(tiny_model: list[str], picture: Path) -> None:
    with pytest.raises(GocaError, match="names nothing to look for"):
        Studio(tiny_model).view(picture, "", SETTING)


def test_a_port_in_use_is_one_message() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be used"):
            launch(config.compose([f"port={port}"], "app"), wait=False)


def test_it_listens_on_this_machine_alone_and_is_not_shared(tiny_model: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it bound to every address, no other loopback address could be bound to the same port."""
    assert config.compose([], "app").host == "127.0.0.1"
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    monkeypatch.setenv("GRADIO_SHARE", "True")
    page = launch(config.compose([f"port={free_port()}"], "app"), wait=False)
    try:
        assert page.local_url == f"http://127.0.0.1:{page.server_port}/"
        assert not page.share
        with socket.socket() as other:
            other.bind(("127.0.0.2", page.server_port))
    finally:
        page.close()


def test_an_unknown_model_is_named_beside_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"no model 'sd99'; choices are .*sd15"):
        launch(config.compose(["models=[sd99]"], "app"), wait=False)


def test_a_person_segments_clicks_a_pixel_and_compares(chromium: Any, address: str, picture: Path) -> None:
    page = Page(chromium, address)
    window = page.page
    window.set_input_files("#picture input[type=file]", str(picture))
    window.locator("#picture img").wait_for(timeout=WAIT)  # until it is uploaded
    window.fill("#prompt textarea, #prompt input", "circle, <i>grass")
    window.click("#run")
    overlay = window.locator("#overlay-A img")
    overlay.wait_for(timeout=WAIT)
    assert "circle" in window.inner_text("#legend-A")
    assert "<i>grass" in window.inner_text("#legend-A")
    window.locator("#map-A").scroll_into_view_if_needed()
    window.locator("#map-A img").wait_for(timeout=WAIT)
    overlay.click()
    window.locator("#scores-A", has_text="%").wait_for(timeout=WAIT)
    before = window.get_attribute("#map-A img", "src")
    window.locator("#words-A label", has_text="grass").click()
    window.wait_for_function("before => document.querySelector('#map-A img').src !== before", arg=before, timeout=WAIT)
    window.check("#both input")
    window.click("#run")
    window.locator("#legend-B", has_text="%").wait_for(timeout=WAIT)
    window.locator("#overlay-B").scroll_into_view_if_needed()  # pictures further down are loaded when they come into view
    window.locator("#overlay-B img").wait_for(timeout=WAIT)
    assert own_errors(page) == []


def test_the_result_is_in_view_beside_the_picture(chromium: Any, address: str, picture: Path) -> None:
    page = Page(chromium, address, {"width": 1400, "height": 900})
    window = page.page
    window.set_input_files("#picture input[type=file]", str(picture))
    window.locator("#picture img").wait_for(timeout=WAIT)
    window.fill("#prompt textarea, #prompt input", "circle, grass")
    window.check("#both input")
    window.click("#run")
    window.locator("#difference", has_text="% of the pixels").wait_for(timeout=WAIT)
    boxes = [window.locator(f"#{name}").bounding_box() for name in ("picture", "overlay-A", "overlay-B", "difference")]
    assert all(box["y"] + box["height"] <= 900 for box in boxes)
    assert boxes[0]["y"] == boxes[1]["y"] == boxes[2]["y"]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]


def test_a_file_that_is_no_picture_is_one_message_on_the_page(chromium: Any, address: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    page = Page(chromium, address)
    page.page.set_input_files("#picture input[type=file]", str(tmp_path / "bad.png"))
    page.page.fill("#prompt textarea, #prompt input", "circle")
    page.page.wait_for_timeout(1000)  # the upload shows nothing: there is no picture
    page.page.click("#run")
    page.page.get_by_text("cannot read the image").first.wait_for(timeout=WAIT)


def test_what_differs_is_judged_by_the_words(tiny_model: list[str], picture: Path) -> None:
    studio = Studio(tiny_model)
    one = studio.view(picture, "circle, grass", SETTING)
    other = studio.view(picture, "grass, circle", SETTING)
    labels = [np.array(view.classes.names)[view.prediction.labels[0].numpy()] for view in (one, other)]
    drawn, said = differing(one, other)
    share = float((labels[0] != labels[1]).mean())
    assert f"{100 * share:.1f} %" in said
    assert (np.asarray(drawn) > 0).mean() == pytest.approx(share)


def test_a_mistake_is_shown_on_the_page(chromium: Any, address: str) -> None:
    page = Page(chromium, address)
    page.page.click("#run")
    page.page.get_by_text("there is no picture yet").first.wait_for(timeout=WAIT)


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_sticks_out_sideways(chromium: Any, address: str, viewport: dict[str, int]) -> None:
    page = Page(chromium, address, viewport)
    page.page.locator("#run").wait_for(timeout=WAIT)
    assert page.fits()


def test_a_person_draws_and_looks_at_the_words(chromium: Any, address: str) -> None:
    page = Page(chromium, address)
    page.page.get_by_role("tab", name="Draw one").click()
    page.page.locator("#draw-prompt textarea").fill("circle, grass")
    page.page.locator("#draw-run").click()
    page.page.locator("#drawn-word img").wait_for()
    page.page.locator("#drawn-steps img").wait_for()
    first = page.page.locator("#drawn-word img").get_attribute("src")
    page.page.locator("#drawn-words label", has_text="grass").click()
    page.page.wait_for_function("src => document.querySelector('#drawn-word img').src != src", arg=first)
    page.page.locator("#draw-prompt textarea").fill(" ")
    page.page.locator("#draw-run").click()
    page.page.get_by_text("there is no prompt yet").wait_for()
    assert own_errors(page) == []
