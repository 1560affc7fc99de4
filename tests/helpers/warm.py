"""An interpreter whose processes need not import torch again: forked from one that has.

For tests of what a command does from its arguments to its exit code, in a process of its own. What a process imports, and what
it says meanwhile, is tested with `sys.executable`. GoCA itself is imported anew each time, so that a wheel can be tried;
variables that libraries read when they are imported (`HF_*`, `OMP_*`) are those of the tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What stands for the interpreter: hands arguments, folder, variables and the three streams over, and ends as the process does.
CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
arguments = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
if arguments[:1] != ["-m"]:
    os.execv({python!r}, [{python!r}, *arguments])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
server.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(n.to_bytes(4, sys.byteorder) for n in (0, 1, 2)))])
server.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
signal.signal(signal.SIGINT, lambda *_: server.sendall(b"c"))
code = server.recv(1)
sys.exit(code[0] if code else 70)
"""


@contextlib.contextmanager
def python() -> Iterator[str]:
    """The path of a program that runs `-m MODULE ARGUMENTS...` as the tests' interpreter would, and leaves all else to it."""
    folder = tempfile.TemporaryDirectory(prefix="goca_")  # a socket's path has at most 104 characters on some systems
    address, program = Path(folder.name, "socket"), Path(folder.name, "python")
    command = [sys.executable, "-m", "tests.helpers.warm", str(address)]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdin is not None
    assert server.stdout.readline() == "ready\n"
    program.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    program.chmod(0o755)
    try:
        yield str(program)
    finally:
        server.stdin.close()  # it ends
        server.wait(60)
        folder.cleanup()


def main(address: str) -> None:
    """Fork a process for each that asks, until standard input ends."""
    _import()
    place = [entry for entry in sys.path if entry not in ("", str(ROOT)) and entry not in _listed(os.environ)]
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(address)
        waiting.listen(16)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([waiting, sys.stdin], [], [])
            with contextlib.suppress(ChildProcessError):  # there is none
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass  # those that have looked after a process; their times count as the tests'
            if sys.stdin in readable:
                return
            asked, _ = waiting.accept()
            if os.fork():
                asked.close()
                continue
            waiting.close()
            streams = socket.recv_fds(asked, 1, 3)[1]
            arguments, folder, variables = json.loads(asked.makefile("rb").readline())
            process = os.fork()
            if process:
                _look_after(process, asked)
            asked.close()
            for i, stream in enumerate(streams):
                os.dup2(stream, i)
                os.close(stream)
            sys.executable = str(Path(address).with_name("python"))  # processes of the process are warm as well
            _become(arguments, folder, variables, place)
            return


def _import() -> None:
    """All that a run imports, but GoCA."""
    import goca.observe
    import goca.runs.evaluation  # noqa: F401

    for name in [name for name in sys.modules if name.partition(".")[0] == "goca"]:
        del sys.modules[name]


def _listed(variables: dict[str, str] | os._Environ[str]) -> list[str]:
    return [entry for entry in variables.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _become(arguments: list[str], folder: str, variables: dict[str, str], place: list[str]) -> None:
    """This process goes on as `python -m ...`, and ends as that does."""
    _, module, *rest = arguments
    os.chdir(folder)
    variables.pop("JPY_PARENT_PID", None)  # a kernel would end, as that is not its parent
    os.environ.clear()
    os.environ.update(variables)
    if module == "ipykernel_launcher":
        import matplotlib

        dict.__setitem__(matplotlib.rcParams, "backend", "module://matplotlib_inline.backend_inline")
    sys.path[:] = [folder, *_listed(variables), *place]
    sys.argv[1:] = rest
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _look_after(process: int, asked: socket.socket) -> None:
    """Hand Ctrl-C on, tell the exit code; end the process when nobody waits for it any more."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            asked.sendall(bytes([code if code >= 0 else 128 - code]))
            os._exit(0)
        if select.select([asked], [], [], 0.02)[0]:
            pressed = asked.recv(1)
            os.kill(process, signal.SIGINT if pressed else signal.SIGKILL)
            if not pressed:
                os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
