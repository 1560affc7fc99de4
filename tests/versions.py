"""`python -m tests.versions lowest|newest|main`: tests of models and whole runs in an environment of other library versions.

`lowest`: the lowest torch, diffusers and transformers that pyproject.toml allows. `newest`: the newest of everything that
the registry has. `main`: as `newest`, with diffusers' main branch. The environments are `.venv-lowest` and so on.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "diffusers", "transformers")
TESTS = (
    "tests/backbones/test_families.py",
    "tests/backbones/test_architectures.py",
    "tests/attention",
    "tests/prompts",
    "tests/test_regression.py",
)
DIFFUSERS_MAIN = "diffusers @ git+https://github.com/huggingface/diffusers"


def lowest(project: Path = ROOT / "pyproject.toml") -> list[str]:
    """The lowest versions of the libraries, as requirements of exactly those.

    >>> [line.partition("==")[0] for line in lowest()]
    ['torch', 'diffusers', 'transformers']
    """
    found = {}
    for requirement in tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]:
        match = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if match and match[1] in LIBRARIES:
            found[match[1]] = f"{match[1]}=={match[2]}"
    return [found[name] for name in LIBRARIES]


def main(which: str) -> int:
    """Make the environment, say what is in it, and run the tests there."""
    extra = {"lowest": lowest(), "newest": [], "main": [DIFFUSERS_MAIN]}[which]
    environment = ROOT / f".venv-{which}"
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run(
        [*install, "--upgrade-strategy", "only-if-needed" if which == "lowest" else "eager", *extra, "-e", ".[test]"],
        check=True,
        cwd=ROOT,
    )
    names = [*LIBRARIES, "tokenizers", "huggingface-hub", "accelerate", "peft"]
    show = f"from importlib.metadata import version; print(', '.join(n + ' ' + version(n) for n in {names}))"
    subprocess.run([str(python), "-c", show], check=True)
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(python), "-m", "pytest", "-n", "auto", *TESTS], check=False, cwd=ROOT, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
