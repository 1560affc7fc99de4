"""Runs on a CPU keep freed memory once the model is loaded, and leave alone what the user has set up."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from goca import config
from goca.backbones.loading.pretrained import Pretrained
from goca.runs import evaluation, machine
from goca.runs.machine import KEPT_BLOCK

# A block larger than what glibc keeps by itself (32 MB), written and freed 40 times: how many pages had to be cleared.
FAULTS = f"""
import resource, torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.empty({KEPT_BLOCK * 3 // 4}, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
KEEP = "from goca.runs.machine import keep_freed_memory; keep_freed_memory()"
PAGES = KEPT_BLOCK * 3 // 4 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept by a setting of glibc's")


def faults(before: str, **environment: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", f"{FAULTS}\n{before}\nprint(faults())"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=plain | environment).stdout)


@glibc
@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    assert faults("") > 39 * PAGES
    assert faults(KEEP) < 20 * PAGES


@glibc
@pytest.mark.slow
def test_settings_of_the_user_stay() -> None:
    assert faults(KEEP, MALLOC_MMAP_THRESHOLD_="1000000") > 39 * PAGES
    assert faults(KEEP, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1000000") > 39 * PAGES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "libc_ver", lambda: ("", ""))
    assert not machine.keep_freed_memory()


def test_a_run_keeps_it_once_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[str] = []
    load = Pretrained.load

    def loading(backbone: Pretrained, *arguments: object) -> object:
        done.append("loaded")
        return load(backbone, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Pretrained, "load", loading)
    monkeypatch.setattr(evaluation, "keep_freed_memory", lambda: done.append("kept"))
    quiet = ["logger=none", "figures.count=0", "trainer.enable_progress_bar=false", "model.device=cpu", "limit=1"]
    evaluation.evaluate(config.compose(["model=scenes_unet_tiny", *quiet]), tmp_path / "run")
    assert done == ["loaded", "kept"]
