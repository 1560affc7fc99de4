"""What every test begins with: a seed, the material beside the repository, and one tiny checkpoint on disk.

Tests that need what is not here are skipped; the last lines of the report say how many, and what they would have checked.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: its kernels then run on the CPU

import hypothesis
import numpy as np
import pytest
import torch

# On CI property tests draw the same examples each time; elsewhere they go on looking for new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent
ABSENT = "is not here"  # in the reasons of tests that are skipped for want of the shared material
# Folders and files that take long as a whole: whole pipelines, processes of their own, the authors' cases. `make test-fast`
# does not even read them.
LONG = (
    *("backbones", "compare", "generation", "hub", "reference", "scenes", "watching", "attention/test_fused.py"),
    *(
        "data/test_download.py",
        "data/test_samples.py",
        "faults/test_ends.py",
        "faults/test_noise.py",
        "faults/test_pictures.py",
    ),
    *("prompts/test_caption.py", "prompts/test_endpoint.py", "prompts/test_vlm.py", "runs/test_sweeps.py"),
    *("runs/test_naming.py", "test_config.py", "test_run.py", "reliability/test_fuzz.py", "prompts/test_predicted.py"),
    *("method/test_views.py", "data/test_benchmarks.py", "prompts/test_reference_captions.py"),
    *(f"reliability/test_{name}.py" for name in ("bad_inputs", "determinism", "endings", "faults", "logging", "memory")),
    *(f"reliability/test_{name}.py" for name in ("processes", "resume", "secrets")),
    *(f"test_{name}.py" for name in ("app", "dashboard", "extending", "loggers", "observe", "peer_presets", "scaling")),
    *(f"test_{name}.py" for name in ("segmentor", "start", "verify", "sizing", "methods", "docs", "packages", "notebooks")),
)
LONGEST = ("test_notebooks.py", "test_packages.py", "test_docs.py")  # begun first, so that no worker is left alone with them
BROWSER_FIXTURE, MATERIAL_FIXTURES = "chromium", {"shared", "reference"}


class _TorchRandom:
    """torch's generator as hypothesis wants one: seeded before each example, so that a failure can be repeated."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_torch_random = _TorchRandom()  # hypothesis keeps a weak reference
hypothesis.register_random(_torch_random)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random inputs are the same in every run, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _is_long(path: Path) -> bool:
    tests = ROOT / "tests"
    return path.is_relative_to(tests) and any(path.relative_to(tests).is_relative_to(name) for name in LONG)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if "not slow" in config.option.markexpr and _is_long(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, and begin with the longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if _is_long(item.path):
            item.add_marker("slow")
        fixtures = set(getattr(item, "fixturenames", ()))
        if BROWSER_FIXTURE in fixtures:
            item.add_marker("browser")
        if fixtures & MATERIAL_FIXTURES or "reference" in item.path.parent.parts:
            item.add_marker("reference")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A clone without the shared material passes without parity tests: say so."""
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    skipped = [reason for reason in reasons if ABSENT in reason]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} tests of parity with the authors' functions and data were skipped: their material is not here "
            "(GOCA_SHARED, GOCA_REFERENCE)",
            yellow=True,
        )


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        pytest.skip(f"{what} {ABSENT} ({path.name})")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with samples, captions, tables and vocabularies that are not ours to publish."""
    return _folder(Path(os.environ.get("GOCA_SHARED", ROOT.parent / "shared")), "the shared material")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Inputs and outputs of the authors' functions; another set in the same format can be named by GOCA_REFERENCE."""
    return _folder(Path(os.environ.get("GOCA_REFERENCE", ROOT.parent / "shared" / "reference")), "the reference data")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion on disk, with random weights. To be read only."""
    from tests.helpers.tiny_unet import tiny_sd

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """A program that runs `-m MODULE ...` in a process that has what GoCA imports: see tests/helpers/warm.py."""
    from tests.helpers import warm

    with warm.python() as program:
        yield program


@pytest.fixture(scope="session")
def tiny_model(checkpoint: Path) -> list[str]:
    """Overrides that put the tiny checkpoint in place of the bundled one."""
    return [f"model.checkpoint={checkpoint}", "model.size=32", "model.device=cpu"]


@pytest.fixture(scope="session")
def tiny(tiny_model: list[str]) -> list[str]:
    """Overrides of a job that needs a second: 7 images in 4 batches."""
    return [
        *tiny_model, "limit=7", "logger=none", "data.batch_size=2", "figures.count=1", "figures.gallery=0",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")  # a driver that lives on would leave its event loop to other tests
def chromium() -> Iterator[Any]:
    """A browser for tests of pages."""
    from tests.helpers.browser import browser

    with browser() as running:
        yield running
