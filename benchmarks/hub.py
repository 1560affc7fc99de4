"""The README's command against a local server of the hub's protocol, with a full-size SD 1.5 of random weights behind it.

    python -m benchmarks.hub                      # writes to outputs/benchmarks_hub; needs some 13 GB of disk
    python -m benchmarks.hub dataset=voc paths.data=DIR limit=1

The repository has the official layout: full precision, the variant fp16, pickles and other files that nobody needs. One line
per run: seconds, bytes that the server sent, requests, and peak resident memory of the command.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, random_pipelines
from tests.helpers.hub_repositories import DECOYS
from tests.helpers.hub_server import LARGE, HubServer

NAME = "stable-diffusion-v1-5/stable-diffusion-v1-5"
OUTPUT = Path("outputs/benchmarks_hub")


def build(folder: Path) -> None:
    """The repository on disk; kept for the next time."""
    if (folder / "complete").exists():
        return
    pipeline: Any = random_pipelines.build("sd15", torch.float32)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    for decoy in DECOYS:
        path = folder / decoy.format(denoiser="unet")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not to be read")
    (folder / "complete").touch()


def run(server: HubServer, what: str, cache: Path, arguments: list[str], **environment: str) -> dict[str, Any]:
    """One command in a process of its own, and what it cost."""
    server.forget()
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(cache), "XDG_CACHE_HOME": str(cache / "own"), **environment}
    command = [sys.executable, "-m", "goca.run", "model=sd15", "logger=none", "figures.count=0", *arguments]
    command.append(f"output={OUTPUT / 'runs' / what.replace(' ', '_')}_{time.time_ns()}")
    started = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    found = {
        "benchmark": "hub",
        "run": what,
        "exit": done.returncode,
        "seconds": round(time.perf_counter() - started, 1),
        "bytes": server.bytes_sent,
        "requests": len(server.requests),
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,  # of the largest command so far
        **machine.context(torch.get_num_threads()),
    }
    print(json.dumps(found), flush=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
    else:
        print("\n".join(line for line in done.stdout.splitlines() if "loading" in line), flush=True)
    return found


def main(arguments: list[str]) -> None:
    repository = OUTPUT / "repository"
    build(repository)
    (repository / "complete").rename(OUTPUT / "complete")
    server = HubServer()
    commit = server.add(NAME, repository).names["main"]
    (OUTPUT / "complete").rename(repository / "complete")
    for file in server.repositories[NAME].commits[commit].values():
        if file.name.endswith(LARGE):
            server.sha256(file)  # before anyone waits for it
    arguments = arguments or ["dataset=scenes", "limit=1"]
    cache = OUTPUT / f"cache_{time.time_ns()}"
    try:
        rows = [
            run(server, "first", cache, arguments),
            run(server, "second", cache, arguments),
            run(server, "pinned", cache, [*arguments, f"model.revision={commit}"]),
            run(server, "offline", cache, arguments, HF_HUB_OFFLINE="1"),
            run(server, "variant fp16 on an empty cache", cache / "half", [*arguments, "model.variant=fp16"]),
        ]
    finally:
        server.close()
    (OUTPUT / "results.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
