"""Commands keep freed memory, and leave alone what the user has set up."""

import os
import platform
import subprocess
import sys

import pytest

from goca.config.allocator import KEPT_BLOCK

# A block larger than what glibc keeps by itself (32 MB), written and freed 40 times: how many pages had to be cleared.
FAULTS = f"""
import resource, torch
def main():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.empty({KEPT_BLOCK * 3 // 4}, dtype=torch.uint8).fill_(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = KEPT_BLOCK * 3 // 4 // os.sysconf("SC_PAGE_SIZE")


def faults(run: str, **environment: str) -> int:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    code = f"{FAULTS}\n{run}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain | environment)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept by a setting of glibc's")
def test_a_command_uses_freed_memory_again() -> None:
    assert faults("main()") > 39 * PAGES
    assert faults("from goca import config; config.command(main)") < 20 * PAGES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept by a setting of glibc's")
def test_settings_of_the_user_stay() -> None:
    command = "from goca import config; config.command(main)"
    assert faults(command, MALLOC_MMAP_THRESHOLD_="1000000") > 39 * PAGES
    assert faults(command, GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1000000") > 39 * PAGES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from goca.config import allocator

    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
