"""Class maps from files: what a folder may hold, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from goca.errors import DataError
from goca.method.outside import MapFiles


def _save(folder: Path, **tensors: torch.Tensor) -> MapFiles:
    save_file(tensors, folder / "cat.safetensors")
    return MapFiles(folder)


def test_maps_as_they_are(tmp_path: Path):
    scores = torch.rand(2, 4, 5)
    maps = _save(tmp_path, ids=torch.tensor([7, 3]), scores=scores).of_image("cat")
    assert maps.ids == (7, 3) and torch.equal(maps.scores, scores) and torch.equal(maps.raw, scores)
    assert maps.size == (4, 5) and not maps.supporting.any()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"scores": torch.rand(1, 2, 2)}, "needs ids"),
        ({"ids": torch.tensor([1, 2]), "scores": torch.rand(1, 2, 2)}, "needs ids"),
        ({"ids": torch.tensor([0]), "scores": torch.rand(1, 2, 2)}, "from 1 on"),
        ({"ids": torch.tensor([2, 2]), "scores": torch.rand(2, 2, 2)}, "each once"),
        ({"ids": torch.tensor([1]), "scores": torch.full((1, 2, 2), torch.nan)}, "not finite"),
    ],
)
def test_what_is_no_class_map_is_refused(tmp_path: Path, tensors: dict, message: str):
    with pytest.raises(DataError, match=message):
        _save(tmp_path, **tensors).of_image("cat")


def test_an_image_without_a_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="dog"):
        MapFiles(tmp_path).of_image("dog")
