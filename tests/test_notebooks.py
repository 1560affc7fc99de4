"""Every notebook runs as it stands, in an empty folder, in under two minutes."""

import json
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra notebooks")
nbclient = pytest.importorskip("nbclient", reason="the extra notebooks")
pytest.importorskip("ipykernel", reason="the extra notebooks")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_four():
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_says_what_to_change_for_a_real_model(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "results are not kept in the repository"
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert "**For Stable Diffusion 1.5 on a GPU:**" in first


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, warm_python, tmp_path_factory, tmp_path, monkeypatch):
    kernel = tmp_path_factory.mktemp("jupyter")
    (kernel / "kernels" / "warm").mkdir(parents=True)
    command = [warm_python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernels" / "warm" / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "warm"}))
    monkeypatch.setenv("JUPYTER_PATH", str(kernel))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("WANDB_MODE", "offline")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="warm", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    last = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) or output.get("text") for output in last)
