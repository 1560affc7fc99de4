"""What a person sees besides the answer: nothing that a library says about things that are as they should be."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

API = "from goca.segmentor import Segmentor; Segmentor.from_config('scenes_unet_tiny')"
# Two import what there is to import; the others say what they say when all is there.
COLD = ("from_config", "observe")
COMMANDS = {
    "from_config": ["-c", API],
    "layers": ["-m", "goca.layers"],
    "observe": ["-m", "goca.observe", "image=scenes:3", "prompt=circle, grass", "model=scenes_unet_tiny", "output={here}"],
    "caption": ["-m", "goca.caption", "limit=1", "paths.output={here}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_libraries_are_quiet(name: str, warm_python: str, tmp_path: Path) -> None:
    arguments = [argument.replace("{here}", str(tmp_path)) for argument in COMMANDS[name]]
    python = sys.executable if name in COLD else warm_python
    ran = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""


def test_an_error_is_one_line_and_hydra_adds_none(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "goca.observe", "image=nowhere.png", "prompt=(cat, fur), grass", f"output={tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "error: there is no image nowhere.png\n"
