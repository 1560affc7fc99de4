"""The machine in the summary, threads that a continued run keeps, and what a comparison says of other machines."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from goca import config
from goca.compare.runs import load
from goca.runs.evaluation import evaluate
from goca.runs.machine import difference, keep_threads, machine
from tests.helpers.fake_runs import run_folder


@pytest.fixture
def threads() -> Iterator[int]:
    """How many are in use; put back behind the test."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_it_says_which_kernels_and_libraries_add_up(threads: int) -> None:
    torch.set_num_threads(3)
    found = machine()
    assert found["threads"] == 3
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert found["processor"]
    assert found["libraries"]["onednn"].count(".") >= 1
    assert json.loads(json.dumps(found)) == found


def test_limits_of_the_libraries_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)  # such as the one by which this suite runs with fewer vector instructions
    before = machine()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert difference(machine(), before) == ["limits ONEDNN_MAX_CPU_ISA=AVX2 instead of none"]
    assert difference(before, before) == []
    assert difference("x86_64", before) == []


def test_lightning_is_told_the_threads_of_a_single_process(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "x")
    monkeypatch.delenv("OMP_NUM_THREADS")
    import os

    keep_threads(torch.device("cuda"), 4)
    keep_threads(torch.device("cpu"), 1)
    assert "OMP_NUM_THREADS" not in os.environ
    keep_threads(torch.device("cpu"), 2)
    assert os.environ["OMP_NUM_THREADS"] == str(threads)


@pytest.mark.slow
def test_a_continued_run_keeps_the_threads_it_was_begun_in(tiny: list[str], tmp_path: Path, threads: int) -> None:
    cfg = config.compose([*tiny, "limit=4", "figures.count=0"])
    torch.set_num_threads(3)
    expected = evaluate(cfg, tmp_path)
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_bytes(b"".join(lines[:2]))
    torch.set_num_threads(1)
    summary = evaluate(cfg, tmp_path)
    assert summary["machine"]["threads"] == torch.get_num_threads() == 3
    assert summary["miou_by_threshold"] == expected["miou_by_threshold"]


def test_a_comparison_names_runs_of_other_machines(tmp_path: Path) -> None:
    here = {"processor": "A", "instructions": "AVX512", "threads": 2}
    for name, found in {"a": here, "b": here, "c": here | {"threads": 1}, "d": "x86_64"}.items():
        run_folder(tmp_path / name, 0.1, machine=found)
    _, problems = load([tmp_path])
    assert problems == [
        "c: computed on another machine than a (threads 1 instead of 2); mIoU may differ by rounding, see docs/reliability.md"
    ]
