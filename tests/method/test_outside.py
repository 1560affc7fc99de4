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
        ({"ids": torch.tensor([1]), "scores": torch.ones(1, 2, 2), "supporting": torch.full((2, 2), torch.inf)}, "not finite"),
        ({"ids": torch.tensor([1]), "scores": torch.ones(1, 2, 2), "supporting": torch.ones(1, 2, 2)}, "supporting is"),
        ({"ids": torch.tensor([1.5]), "scores": torch.ones(1, 2, 2)}, "whole class numbers"),
    ],
)
def test_what_is_no_class_map_is_refused(tmp_path: Path, tensors: dict, message: str):
    with pytest.raises(DataError, match=message):
        _save(tmp_path, **tensors).of_image("cat")


def test_a_class_that_the_table_lacks_is_refused(tmp_path: Path):
    """257 would become class 1 in a label map of bytes."""
    files = _save(tmp_path, ids=torch.tensor([257]), scores=torch.ones(1, 2, 2))
    assert files.of_image("cat").ids == (257,)
    with pytest.raises(DataError, match="from 1 to 20"):
        files.of_image("cat", classes=21)


def test_without_any_id_there_is_no_map(tmp_path: Path):
    assert _save(tmp_path, ids=torch.zeros(0, dtype=torch.long), scores=torch.zeros(0, 2, 2)).of_image("cat").ids == ()


def test_an_image_without_a_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="dog"):
        MapFiles(tmp_path).of_image("dog")
