"""The machine that a run computes on, as far as its numbers depend on it: what adds up floats, and in how many threads."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

# What makes the libraries choose other kernels than the processor's best.
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
_LIBRARIES = {"mkl": r"Kernel Library Version ([\w.]+)", "onednn": r"MKL-DNN v([\w.]+)", "openmp": r"OpenMP (\d+)"}
_THREADS = "OMP_NUM_THREADS"

KEPT_BLOCK = 64 * 2**20  # bytes; larger blocks go back to the system as soon as they are freed
_KEPT_IN_ALL = 2**30
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MALLOC = {_M_MMAP_THRESHOLD: KEPT_BLOCK, _M_TRIM_THRESHOLD: _KEPT_IN_ALL, _M_TOP_PAD: KEPT_BLOCK}
_TUNED_BY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def machine() -> dict[str, Any]:
    """Processor, vector instructions in use, threads and numeric libraries; on a GPU, which one.

    Runs for which these are equal give the same bits; otherwise sums may round differently (docs/reliability.md).
    """
    built = torch.__config__.show()
    libraries = {name: match[1] for name, pattern in _LIBRARIES.items() if (match := re.search(pattern, built))}
    cuda = torch.cuda.is_available()
    if cuda:
        libraries |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in _LIMITS if name in os.environ},
        "threads": torch.get_num_threads(),
        "libraries": libraries,
        "accelerator": torch.cuda.get_device_name() if cuda else None,
    }


def difference(found: Any, other: Any) -> list[str]:
    """In what a machine differs from another: empty where one of them is not known.

    >>> difference({"threads": 2, "libraries": {"mkl": "2024.2"}}, {"threads": 1, "libraries": {"mkl": "2024.2"}})
    ['threads 2 instead of 1']
    """
    if not isinstance(found, Mapping) or not isinstance(other, Mapping):
        return []  # a run of an earlier version, which wrote down the architecture alone
    both = [key for key in found if key in other and found[key] != other[key]]
    return [f"{key} {_short(found[key])} instead of {_short(other[key])}" for key in both]


def keep_threads(device: torch.device, processes: int, begun_on: Any = None) -> None:
    """Have every process of a run on CPU, and its continuation, compute in as many threads as a single process does.

    Lightning would share the cores out among the processes. The 1x1 convolutions of oneDNN add up their input channels in
    another order for each number of threads, and a pixel whose two best scores tie would change sides.

    Args:
        device: on anything but a CPU nothing is changed.
        processes: of this run, on all nodes.
        begun_on: the `machine()` that began the run, where it is continued.
    """
    if device.type != "cpu":
        return
    threads = begun_on.get("threads") if isinstance(begun_on, Mapping) else None
    if isinstance(threads, int) and threads != torch.get_num_threads():
        log.warning("this run was begun in %d threads and goes on in as many, not in %d", threads, torch.get_num_threads())
        torch.set_num_threads(threads)
    if processes > 1:  # Lightning leaves a number that is set alone
        os.environ.setdefault(_THREADS, str(torch.get_num_threads()))


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of up to 64 MB, 1 GB of them in all, for the tensors that come next.

    By itself it returns large blocks to the system when they are freed, and the kernel clears every page of the next one anew:
    one forward of Stable Diffusion 1.5 at 512 px on a CPU asks for 8 GB of such pages (docs/performance.md says what that
    costs). Larger blocks are left alone, since keeping them too would raise the peak of a model that needs them.

    Call it once the model is loaded: weights that are converted while they load would leave holes as large as themselves, which
    glibc does not fill with tensors of the same size.

    Returns:
        Whether it was done: not with another C library, nor where the user has tuned malloc by the environment.
    """
    tuned = any(name in os.environ for name in _TUNED_BY) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(name, value) for name, value in _MALLOC.items()]
    return all(done)


def _processor() -> str:
    """The processor's name; /proc/cpuinfo has it on Linux."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _short(value: Any) -> str:
    return " ".join(f"{key}={part}" for key, part in value.items()) or "none" if isinstance(value, Mapping) else str(value)
