"""How the process of a command gets memory for its tensors: freed memory is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import platform

KEPT_BLOCK = 64 * 2**20  # bytes; larger blocks go back to the system as soon as they are freed
KEPT_IN_ALL = 2**30
_PADDING = 64 * 2**20
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_TUNED_BY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of up to 64 MB, 1 GB of them in all, for the tensors that come next.

    glibc returns large blocks to the system when they are freed, and the kernel clears every page of the next one anew: one
    forward of Stable Diffusion 1.5 at 512 px asks for 8 GB of such pages (what that costs: docs/performance.md). Blocks
    above 64 MB are left as they were, since keeping them too would raise the peak of a large model.

    Every command does this when it starts. The Python API does not, because the process belongs to the caller, who may call it.

    Returns:
        Whether it was done: not with another C library, nor where the user has tuned malloc by the environment.
    """
    tuned = any(name in os.environ for name in _TUNED_BY) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    values = {_M_MMAP_THRESHOLD: KEPT_BLOCK, _M_TRIM_THRESHOLD: KEPT_IN_ALL, _M_TOP_PAD: _PADDING}
    done = [mallopt(name, value) for name, value in values.items()]
    return all(done)
