"""Made-up runs to compare: two models with vanilla and goca, one of another protocol, one that lost its summary."""

from pathlib import Path

import pytest

from goca.figures.thumbnails import write
from tests.helpers.fake_runs import CLASSES, example, run_folder

HOSTILE = "<img src=x onerror=alert(1)></script>"


@pytest.fixture(scope="package")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    for model, method, noise in (
        ("sd15", "vanilla", 0.25),
        ("sd15", "goca", 0.1),
        ("sdxl", "vanilla", 0.2),
        ("sdxl", "goca", 0.05),
    ):
        heads = {"goca": "dot_product", "vanilla": "average"}[method]
        folder = run_folder(
            root / f"{model}_{method}", noise, model=model, method=method, config={"aggregation": {"heads": heads}},
            generator={"held_out_loss_noise": 0.04} if model == "sdxl" else {},
        )  # fmt: skip
        for image in range(6):
            drawn = example(image, noise)
            write(folder / "gallery", drawn.image_id, drawn.image, drawn.truth, drawn.labels, CLASSES)
    run_folder(root / "upstream", 0.01, model="tiny", protocol="upstream", method=HOSTILE)
    lost = run_folder(root / "lost", 0.3)
    (lost / "summary.json").unlink()
    return root
