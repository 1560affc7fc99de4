"""What people install and read first: wheel and sdist, containers, workflows, templates, and every command of the pages."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import goca
from goca import config
from goca.__main__ import COMMANDS
from goca.config.settings import SETTINGS
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# ------------------------------------------------------------------------------------------------- commands of the pages
def _commands():
    """(page, command, arguments) of every line in a block of the pages that begins with `goca` or `python -m goca.`."""
    for page in PAGES:
        for block in re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:goca|python -m goca\.)\s*([\w.-]+)\s*(.*)", line)
                if match and not line.lstrip().startswith("goca --"):
                    yield page.name, match[1], shlex.split(match[2], comments=True)


def _one_of_each(arguments):
    """The settings of a command, a sweep's first values."""
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not key.startswith(("hydra", "-")):
            yield argument if value[:1] in "[{(\"'" else f"{key}={value.split(',')[0]}"


def test_every_command_of_the_pages_exists_and_takes_its_settings():
    names = {module.removeprefix("goca."): name for name, (module, _) in COMMANDS.items()} | {name: name for name in COMMANDS}
    wrong, seen = [], 0
    for page, command, arguments in dict.fromkeys((page, name, tuple(rest)) for page, name, rest in _commands()):
        if command not in names:
            wrong.append(f"{page}: goca {command}")
            continue
        config_name = "config" if names[command] == "run" else names[command].replace("-", "_")
        if config_name not in SETTINGS or {"--config-dir", "..."} & set(arguments) or "<" in "".join(arguments):
            continue  # folders of the reader's own; test_extending runs those
        text = ("image=", "prompt=", "words=", "images=", *["prompts="] * (config_name == "generate"))  # quoted by the command
        literal = [part for part in _one_of_each(arguments) if not part.startswith(text)]
        try:
            config.compose(literal, config_name)
            seen += 1
        except Exception as error:
            wrong.append(f"{page}: goca {command} {' '.join(arguments)}: {str(error).splitlines()[0]}")
    assert wrong == []
    assert seen > 40


# -------------------------------------------------------------------------------------------------------------- packages
@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """sdist, and the wheel made of the sdist alone."""
    pytest.importorskip("hatchling", reason="builds the packages")
    folder = tmp_path_factory.mktemp("dist")

    def build(kind, source):
        command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
        subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)

    build("sdist", ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    build("wheel", folder / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return sdist, wheel, folder / "installed"


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_is_needed_and_no_more(built):
    sdist, wheel, installed = built
    assert goca.__version__ in wheel.name
    assert wheel.stat().st_size < 40 * 2**20
    for file in (
        "goca/py.typed",
        "goca/conf/config.yaml",
        "goca/data/tables/voc.yaml",
        "goca/bundled/scenes_unet/model_index.json",
    ):
        assert (installed / file).is_file(), file
    (facts,) = installed.glob("*.dist-info")
    assert "goca = goca.__main__:main" in (facts / "entry_points.txt").read_text()
    metadata = (facts / "METADATA").read_text(encoding="utf-8")
    assert "arxiv.org/abs/2603.06178" in metadata
    assert {path.name.split("-")[0] for path in installed.iterdir()} == {"goca"}
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.md",
        "CHANGELOG.md",
        "docs/start.md",
        "tests/test_packages.py",
        "notebooks/1_words_and_stages.ipynb",
    } <= names
    assert not [name for name in names if name.startswith(("outputs/", "build/", ".venv"))]


@pytest.mark.slow
def test_the_commands_of_the_readme_run_from_the_wheel_in_an_empty_folder(built, warm_python, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(built[2]), "WANDB_MODE": "offline"}

    def goca_(*arguments):
        command = [warm_python, "-m", "goca", *arguments]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=500)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert goca_("--version").strip() == f"goca {goca.__version__}"
    table = goca_("run", "-m", "preset=vanilla,goca", "dataset.count=4", "figures.count=1", "trainer.enable_progress_bar=false")
    assert "vanilla" in table
    assert len(list((tmp_path / "outputs").rglob("summary.json"))) == 2
    goca_("compare", "outputs", "settings.samples=50")
    assert list((tmp_path / "outputs").rglob("index.html"))
    goca_("observe", "image=scenes:3", "prompt=circle, ring, grass", "model=scenes_unet_tiny")
    assert list((tmp_path / "outputs").rglob("*.png"))
    (written, *_) = (tmp_path / "outputs").rglob("config.yaml")
    assert f"checkpoint: {built[2]}" in written.read_text()  # the wheel's own backbone


def test_pins_exist_for_all_that_is_required():
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    pinned = {name.lower().replace("_", "-") for name in pins}
    free = {"goca", "torchao", "bitsandbytes"}  # quantization is not installed where the tests run
    required = [*PROJECT["dependencies"], *(part for extra in PROJECT["optional-dependencies"].values() for part in extra)]
    names = {re.match(r"[\w.-]+", part)[0].lower().replace("_", "-") for part in required}
    assert names - pinned - free == set()


def test_metadata_say_what_is_true():
    lowest = PROJECT["requires-python"].removeprefix(">=")
    versions = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", text)]
    assert versions[0] == lowest
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == versions
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    names = [author["family-names"] for author in citation["preferred-citation"]["authors"]]
    assert names == ["Meng", "Xu", "Wang", "Cao", "Huang", "Huang"]
    assert citation["version"] == goca.__version__
    assert f"[{goca.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- containers and templates
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_containers_are_linted_and_copy_what_the_build_needs(name):
    file = ROOT / "docker" / f"{name}.Dockerfile"
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"!goca", "!conf", "!pyproject.toml", "!constraints.txt", "!README.md", "!LICENSE"} <= set(lines)
    extras = re.search(r"/src\[([\w,]+)\]", file.read_text(encoding="utf-8"))[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    ran = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_workflows_and_templates_are_readable_and_call_what_exists():
    targets = set(re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    targets |= {"test", "test-fast", "test-machines"}
    for file in sorted((ROOT / ".github").rglob("*.yml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert content, file
        for target in re.findall(r"run: make ([\w-]+)", file.read_text(encoding="utf-8")):
            assert target in targets, (file.name, target)
        if file.parent.name == "ISSUE_TEMPLATE" and file.stem != "config":
            assert {"name", "description", "body"} <= set(content)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}  # what they run has the versions of constraints.txt
    ours = {hook["entry"].split()[0] for hook in hooks["repos"][0]["hooks"] if hook["language"] == "system"}
    dev = {re.match(r"[\w.-]+", part)[0] for part in PROJECT["optional-dependencies"]["dev"]}
    assert {entry.removeprefix(".venv/bin/") for entry in ours} <= dev
