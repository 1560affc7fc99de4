"""Views of one picture: shifted, mirrored and with other noise; what they show comes back to its place."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from goca import config
from goca.backbones import base
from goca.data.base import Sample
from goca.method.calibration import ClassMaps
from goca.method.views import View, Views
from goca.scenes.generator import scene
from goca.segmentor import Segmentor

PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


def _maps(stack: Tensor) -> ClassMaps:
    return ClassMaps((4,), stack[:1], stack[1], stack[:1])


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.125, 0.0), (0.0, -0.125), (-0.0625, 0.125)])
def test_what_a_view_shows_comes_back_to_its_place(shift, mirror):
    view = View(shift, mirror)
    seen = view.pixels(PICTURE)
    assert seen.shape == PICTURE.shape
    assert torch.equal(seen, PICTURE) == (shift == (0.0, 0.0) and not mirror)
    inner = slice(4, 28)  # the border is reflected in the picture and repeated in the maps
    torch.testing.assert_close(view.restore(seen, PICTURE)[:, inner, inner], PICTURE[:, inner, inner])


def test_maps_coarser_than_the_shift_move_by_part_of_a_cell():
    ramp = torch.arange(8.0).expand(1, 8, 8)
    half = View((0.0, 2 / 32)).restore(ramp, PICTURE)  # two of 32 pixels are half of one of eight cells
    torch.testing.assert_close(half[0, 0], torch.tensor([0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]))


def test_every_view_but_the_first_has_noise_of_its_own():
    sample = Sample("7", PICTURE.numpy(), None, (), pixels=PICTURE)
    first, second, third = Views((View(), View(), View(mirror=True))).of(sample)
    assert [first.image_id, second.image_id, third.image_id] == ["7", "7/1", "7/2"]
    torch.testing.assert_close(third.pixels, PICTURE.flip(-1))


def test_the_merged_maps_are_the_mean_of_the_restored_ones():
    sample = Sample("7", PICTURE.numpy(), None, (), pixels=PICTURE)
    stack = torch.rand(2, 8, 8)
    merged = Views((View(), View(mirror=True))).merge([_maps(stack), _maps(stack)], sample)
    torch.testing.assert_close(merged.stack(), (stack + stack.flip(-1)) / 2)
    assert Views().merge([_maps(stack)], sample).stack().equal(stack)


@pytest.mark.parametrize("wrong", [{"views": []}, {"views": [{"shift": [0.5, 0]}]}, {"views": [{"mirrored": True}]}])
def test_impossible_views_are_refused(wrong):
    with pytest.raises(ValidationError):
        Views(**wrong)


def test_a_mirrored_view_alone_gives_the_mirrored_result():
    picture = scene(3).image
    options = ["model.device=cpu", "refinement=pamr"]  # a refinement that also needs the picture as the view shows it
    mirrored = Segmentor.from_config("scenes_unet", *options, "views.views=[{mirror: true}]").segment(
        picture, ["grass", "star"]
    )
    plain = Segmentor.from_config("scenes_unet", *options).segment(picture[:, ::-1].copy(), ["grass", "star"])
    assert (mirrored.label_map == plain.label_map[:, ::-1]).mean() > 0.99


def test_two_views_are_the_mean_of_each_alone(monkeypatch):
    monkeypatch.setattr(base, "image_noise", lambda shape, ids, seed: torch.zeros(len(ids), *shape))  # the same in each view
    picture, plain, mirrored = scene(5).image, "{}", "{mirror: true}"
    first, second, both = (
        Segmentor.from_config("scenes_unet", "model.device=cpu", f"views.views=[{views}]").segment(picture, ["water", "circle"])
        for views in (plain, mirrored, f"{plain},{mirrored}")
    )
    for name in ("water", "circle"):
        assert abs(first.class_maps[name] - second.class_maps[name]).max() > 0.05
        np.testing.assert_allclose(both.class_maps[name], (first.class_maps[name] + second.class_maps[name]) / 2, atol=1e-5)


def test_every_option_of_the_group_composes():
    for name, count in {"single": 1, "mirrored": 2, "noises": 4, "shifted": 4}.items():
        assert len(config.build(config.compose([f"views={name}"]), "views")) == count
