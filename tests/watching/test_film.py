"""Films of how the maps of words form."""

import numpy as np
import pytest
from PIL import Image

from goca import errors
from goca.errors import ConfigError
from goca.watching.film import film_kind, save_film
from tests.helpers.drawing import draw, drawing, watching

STEPS = 5


@pytest.fixture(scope="module")
def seen():
    pipeline = drawing("sd")
    with watching("sd", pipeline, steps=8) as found:
        draw(pipeline, num_inference_steps=STEPS)
    return found.only


def frames_of_gif(path):
    with Image.open(path) as film:
        for index in range(film.n_frames):
            film.seek(index)
            yield np.asarray(film.convert("RGB"))


def test_a_gif_has_a_frame_for_every_evaluation(seen, tmp_path):
    frames = list(frames_of_gif(save_film(seen, Image.new("RGB", (64, 32)), tmp_path / "film.gif")))
    assert [frame.shape for frame in frames] == [(148, 512, 3)] * STEPS  # two words of 256 x 128, and their names
    assert len({frame.tobytes() for frame in frames}) == STEPS


def test_an_mp4_shows_what_the_gif_shows(seen, tmp_path):
    av = pytest.importorskip("av", reason="the extra video is not installed")
    image = Image.new("RGB", (51, 33), "grey")  # sides that H.264 would not take as they are
    with av.open(str(save_film(seen, image, tmp_path / "film.mp4"))) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == STEPS
    gif = list(frames_of_gif(save_film(seen, image, tmp_path / "film.gif")))
    for frame, expected in zip(frames, gif, strict=True):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 6  # of 255: a palette in one, subsampled colours in the other


def test_what_a_film_may_be(monkeypatch):
    assert [film_kind(value) for value in ("gif", True, False, None, "none")] == ["gif", "gif", "none", "none", "none"]
    with pytest.raises(ConfigError, match="film: choose among gif, mp4, none; got 'avi'"):
        film_kind("avi")
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"film=mp4 needs the package av.*\[video\]"):
        film_kind("mp4")
