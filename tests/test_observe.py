"""Observing one image: maps, tables and files against what a forward is known to give; wrong input is one message."""

import html
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from goca.errors import ConfigError, DataError, ModelError
from goca.figures.attention_view import NO_TEXT, AttentionView
from goca.method import Method
from goca.method.aggregation import Aggregation
from goca.method.calibration import Calibration
from goca.observe import observe, read_image, read_prompt
from goca.prompts import sources
from goca.segmentor import Segmentor
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline
from tests.helpers.tiny_unet import tiny_unet_backbone

IMAGE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmentor() -> Segmentor:
    backbone = tiny_unet_backbone()
    aggregation = Aggregation("dot_product", "dot_product", backbone.layers.cross, "up_blocks.0.attentions.0.*attn2", "all", 16)
    return Segmentor(backbone, Method(aggregation, Calibration()))


@pytest.fixture(scope="module")
def view(segmentor: Segmentor) -> AttentionView:
    return observe(segmentor, IMAGE, "a circle on the grass")


def test_a_sentence_keeps_its_text_and_its_content_words(view: AttentionView) -> None:
    assert view.prompt.text == "a circle on the grass"
    assert list(view.words) == ["circle", "grass"]
    for word, positions in view.words.items():
        assert "".join(view.prompt.tokens[i] for i in positions) == word


def test_it_agrees_with_the_python_api(segmentor: Segmentor, view: AttentionView) -> None:
    table, (prompt,) = sources.from_names(["circle", "grass"], segmentor.backbone.text_segments)
    same = observe(segmentor, IMAGE, prompt.text)
    plain = segmentor.segment(IMAGE, ["circle", "grass"])
    assert torch.equal(same.prediction.labels, plain.prediction.labels)
    assert torch.allclose(same.token_maps, plain.prediction.token_maps.cpu())
    assert list(table.names[1:]) == list(view.words)


def test_head_maps_weighted_and_summed_are_the_layer_map_for_average_heads(segmentor: Segmentor) -> None:
    kept = segmentor.method
    segmentor.method = Method(Aggregation("average", "average", ("*attn2",), feature_size=16), Calibration())
    try:
        seen = observe(segmentor, IMAGE, "circle, grass", heads=["down*attn2"])
    finally:
        segmentor.method = kept
    assert set(seen.head_maps) == {name for name in seen.observation.layer_maps if name.startswith("down")}
    for layer, maps in seen.head_maps.items():
        expected = seen.observation.layer_maps[layer][0, list(seen.prompt.content)]
        assert torch.allclose(maps.mean(0), expected.cpu(), atol=1e-6)


def test_kinds_of_maps(view: AttentionView) -> None:
    assert view.token_maps.sum(0) == pytest.approx(torch.ones(16, 16))
    assert view.normalised.amin() == 0
    assert view.normalised.amax() == 1
    order = view.token_maps[1].flatten().argsort()
    assert (view.ranking[1].flatten()[order].diff() > 0).all()
    assert view.map_of("circle") == pytest.approx(view.token_maps[list(view.words["circle"])].mean(0).numpy())


def test_scores_of_a_pixel_are_shares_of_words_and_tokens(view: AttentionView) -> None:
    scores = view.scores(31, 23)
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    expected = view.token_maps[list(view.words["circle"]), 15, 15].sum()
    assert scores["circle"] == pytest.approx(float(expected))


@pytest.mark.parametrize("pixel", [(32, 0), (0, 24), (-1, 0)])
def test_a_pixel_outside_is_named_with_the_size(view: AttentionView, pixel: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="outside the image of 32 x 24 pixels"):
        view.scores(*pixel)


def test_positions_of_an_encoder_that_is_missing_are_named() -> None:
    """Stable Diffusion 3 without T5 has zeros in place of its tokens."""
    backbone = tiny_backbone("sd3_without_t5").load(tiny_pipeline("sd3_without_t5"))
    aggregation = Aggregation("average", "average", backbone.layers.cross, feature_size=16)
    view = observe(Segmentor(backbone, Method(aggregation, Calibration())), IMAGE, "a circle on the grass")
    scores = view.scores(3, 4)
    assert sum(scores.values()) == pytest.approx(1, abs=1e-4)
    empty = len(view.token_maps) - len(view.prompt.tokens)
    assert empty > 0
    assert scores[NO_TEXT] == pytest.approx(float(view.token_maps[-empty:, 2, 1].sum()), abs=1e-6)
    assert view.token_rows()[-1][:3] == (len(view.prompt.tokens), f"x {empty}", NO_TEXT)


@pytest.mark.slow
def test_saved_files_hold_pictures_and_tensors(view: AttentionView, tmp_path: Path) -> None:
    paths = view.save(tmp_path, pixels=[(3, 4)], tensors=True)
    names = {path.name for path in paths}
    assert {"segmentation.png", "tokens_raw.png", "tokens_ranking.png", "layers.png", "stages.png", "pixel_3_4.png"} <= names
    for path in paths:
        if path.suffix == ".png":
            assert min(Image.open(path).size) > 50
    with safe_open(tmp_path / "attention.safetensors", "pt") as stored:
        assert torch.equal(stored.get_tensor("token_maps"), view.token_maps)
        assert stored.metadata()["prompt"] == "a circle on the grass"


def test_it_shows_itself_in_a_notebook_with_text_escaped(segmentor: Segmentor) -> None:
    page = observe(segmentor, IMAGE, "circle <script>", words=["circle"])._repr_html_()
    assert "<script>" not in page
    assert html.escape("circle <script>") in page
    assert page.count("data:image/png;base64,") == 2


def test_only_the_words_asked_for(segmentor: Segmentor) -> None:
    segments = segmentor.backbone.text_segments
    assert read_prompt("Circle on grass", ["circle"], segments)[0].names[1:] == ("circle",)
    assert read_prompt("(circle, ring), grass", [], segments)[0].names[1:] == ("circle", "grass")
    with pytest.raises(ConfigError, match="does not contain the word 'snow'"):
        read_prompt("circle on grass", ["snow"], segments)


@pytest.mark.parametrize("prompt", ["", "  ", "the on", ",", "()"])
def test_an_empty_prompt_is_one_message(segmentor: Segmentor, prompt: str) -> None:
    with pytest.raises(ConfigError):
        read_prompt(prompt, [], segmentor.backbone.text_segments)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        read_image(tmp_path / "broken.png")
    with pytest.raises(DataError, match="there is no image"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ConfigError, match="bundled scenes are scenes:0"):
        read_image("scenes:x")
    with pytest.raises(ConfigError, match="uint8"):
        read_image(np.zeros((3, 3)))
    assert read_image("scenes:0").pixels.shape == (64, 64, 3)


def test_unknown_layers_are_named(segmentor: Segmentor) -> None:
    with pytest.raises(ModelError, match=r"heads: no layer of this model matches 'up\.9'"):
        observe(segmentor, IMAGE, "circle", heads=["up.9"])


def test_a_background_of_true_is_the_usual_threshold(segmentor: Segmentor) -> None:
    usual, told = (observe(segmentor, IMAGE, "a circle on the grass", background=asked) for asked in (True, 0.7))
    assert torch.equal(usual.prediction.labels, told.prediction.labels)
    assert usual.prediction.labels.any()  # a threshold of 1, which `True` is as a number, would leave no word a pixel
