"""Fixtures that find the material beside the repository; tests that need it are skipped where it is absent."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# On CI property tests draw the same examples each time; elsewhere they go on looking for new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        pytest.skip(f"{what} is not here ({path.name})")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with samples, captions, tables and vocabularies that are not ours to publish."""
    return _folder(Path(os.environ.get("GOCA_SHARED", ROOT.parent / "shared")), "the shared material")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Inputs and outputs of the authors' functions; another set in the same format can be named by GOCA_REFERENCE."""
    return _folder(Path(os.environ.get("GOCA_REFERENCE", ROOT.parent / "shared" / "reference")), "the reference data")
