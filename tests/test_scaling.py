"""The experiment on every bundled backbone: shared forwards give the numbers of separate runs."""

import numpy as np
import pytest

from experiments import scaling_report
from experiments.scaling_scenes import MAIN, claim, measure, methods_of
from goca import config
from goca.errors import ConfigError
from goca.paths import BUNDLED
from goca.runs.evaluation import evaluate

pytestmark = pytest.mark.slow

MODEL, COUNT = "scenes_dit", 3
SEPARATE = {"goca": [], "vanilla": ["preset=vanilla"], "t = 200": ["model.timestep=200"]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of one member with all methods of the main set, one change and one reference layer."""
    folder = tmp_path_factory.mktemp("scaling") / MODEL
    every = methods_of(MODEL, ["main", "search", "references"])
    names = [*MAIN, "t = 200", "reference transformer_blocks.1.attn2"]
    claim(folder, BUNDLED / MODEL / "training.json")
    measure(MODEL, {name: every[name] for name in names}, "test", COUNT, [0, 1], folder)
    return folder


@pytest.mark.parametrize("method", SEPARATE)
def test_methods_that_share_a_forward_score_as_separate_runs_do(measured, method, tmp_path):
    quick = ["model.device=cpu", "logger=none", "figures.count=0", "figures.gallery=0", "trainer.enable_progress_bar=false"]
    job = [f"model={MODEL}", f"dataset.count={COUNT}", "seed=1", *SEPARATE[method], *quick]
    summary = evaluate(config.compose(job), tmp_path)
    with np.load(measured / f"{method}.npz") as stored:
        hits, unions = stored["hits"][1].sum(0), stored["unions"][1].sum(0)
    assert 100 * (hits[unions > 0] / unions[unions > 0]).mean() == pytest.approx(summary["miou"], abs=0.2)


def test_every_cross_attention_layer_can_be_the_reference():
    names = methods_of(MODEL, ["references"])
    assert list(names.values()) == [[f"model.layers.reference=transformer_blocks.{block}.attn2"] for block in range(6)]


def test_counts_of_two_trainings_do_not_mix(measured):
    with pytest.raises(ConfigError, match="another training"):
        claim(measured, BUNDLED / "scenes_mmdit" / "training.json")


def test_counts_that_nothing_is_noted_of_are_those_of_the_bundled_training(tmp_path):
    training = tmp_path / "other" / MODEL / "training.json"
    training.parent.mkdir(parents=True)
    training.write_text((BUNDLED / MODEL / "training.json").read_text())
    with pytest.raises(ConfigError, match="another training"):
        claim(tmp_path / "counts", training, counts=True)
    claim(tmp_path / "counts", BUNDLED / MODEL / "training.json", counts=True)
    claim(tmp_path / "counts", training, counts=True)  # a copy of the same


def test_the_report_has_every_table_and_a_plot(measured, tmp_path, monkeypatch, capsys):
    folder = str(measured.parent)
    monkeypatch.setattr("sys.argv", ["scaling_report", folder, str(tmp_path / "plot.png"), "--trainings", folder])
    scaling_report.main()
    printed = capsys.readouterr().out
    assert f"| {MODEL} |" in printed
    columns = ("GoCA - vanilla", "two worst, two best classes", "calibration_only - vanilla")
    for part in (*columns, "t = 200", "transformer_blocks.1.attn2", "mean of 2"):
        assert part in printed
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
