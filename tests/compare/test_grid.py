"""Methods against models: what is averaged, and what is never in one grid."""

from pathlib import Path

from goca.compare.grid import grids
from goca.compare.runs import load
from tests.helpers.fake_runs import run_folder


def made(folder: Path, method: str, model: str, noise: float, **summary: object) -> float:
    path = folder / f"{method}_{model}_{len(list(folder.iterdir())) if folder.exists() else 0}"
    run_folder(path, noise=noise, method=method, model=model, **summary)
    (run,), _ = load([path])
    return float(run.summary.miou or 0)


def test_methods_and_models_make_a_grid(tmp_path: Path) -> None:
    best = [made(tmp_path, "goca", "unet", 0.1), made(tmp_path, "goca", "unet", 0.2)]  # two seeds
    other = made(tmp_path, "goca", "dit", 0.2)
    worst = made(tmp_path, "vanilla", "dit", 0.5, prompts={"source": "template", "ground_truth": True}, rules_hash="other")
    made(tmp_path, "vanilla", "unet", 0.5, seconds_per_image=2.0)
    (grid,) = grids(load([tmp_path])[0])
    assert (grid.methods, grid.models) == (("goca", "vanilla"), ("dit", "unet"))
    assert grid.miou["goca", "unet"] == sum(best) / 2
    assert grid.table().rows[0] == ("goca", round(other, 2), round(sum(best) / 2, 2))
    assert grid.miou["vanilla", "dit"] == worst
    assert grid.seconds["vanilla", "unet"] == 2.0
    assert "ground-truth names" in grid.title
    assert len(grid.json()["points"]) == 4


def test_what_methods_are_told_and_the_images_divide_grids(tmp_path: Path) -> None:
    for model in ("unet", "dit"):
        for method in ("goca", "vanilla"):
            made(tmp_path, method, model, 0.2)
            made(tmp_path, method, model, 0.2, prompts={"source": "vocabulary", "ground_truth": False})
            made(tmp_path, method, model, 0.2, dataset="other")
    assert len(grids(load([tmp_path])[0])) == 3


def test_other_labels_pictures_or_weights_are_not_averaged(tmp_path: Path) -> None:
    for model in ("unet", "dit"):
        for method in ("goca", "vanilla"):
            made(tmp_path, method, model, 0.2)
            made(tmp_path, method, model, 0.5, unusual={"dataset.colours": "random"})
            made(tmp_path, method, model, 0.5, pictures={"ids": "a", "first": "b", "content": "c"})
    made(tmp_path, "goca", "unet", 0.4, checkpoint="tuned")
    found = grids(load([tmp_path])[0])
    assert [grid.models for grid in found] == [("dit", "unet", "unet (tuned)"), ("dit", "unet"), ("dit", "unet")]
    assert found[1].title.endswith("dataset.colours=random")


def test_one_model_alone_is_no_grid(tmp_path: Path) -> None:
    made(tmp_path, "goca", "unet", 0.1)
    made(tmp_path, "vanilla", "unet", 0.2)
    assert grids(load([tmp_path])[0]) == []
