"""Every recipe of docs/extending.md, as it stands there, in a folder of its own."""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import goca
from goca import config, generate
from goca.backbones import registry
from goca.data.classes import ClassTable
from goca.errors import ConfigError, ModelError
from goca.paths import CONF
from goca.runs.evaluation import evaluate
from goca.scenes.generator import TEST_SEEDS, scene

ROOT = CONF.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = [part for part in re.split(r"^## ", TEXT, flags=re.M)[1:] if "\npython -m goca." in part]
QUICK = ["trainer.enable_progress_bar=false", "figures.count=0", "figures.gallery=0", "limit=2"]


def write_files(text: str, folder: Path) -> None:
    """The files that a text shows: `name` in backticks, then the block."""
    for name, block in re.findall(r"`([\w/]+\.(?:py|yaml))`\n\n```\w+\n(.*?)```", text, re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block)


def write_pictures(folder: Path) -> None:
    """Two pictures with masks for the recipe's data set."""
    for seed in TEST_SEEDS[:2]:
        path = folder / "mine" / "val" / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = scene(seed)
        Image.fromarray(drawn.image).save(path)
        Image.fromarray(np.minimum(drawn.label, 2).astype(np.uint8)).save(path.with_name(f"{seed}_mask.png"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with every file of the page, as the current one; its modules are forgotten afterwards."""
    write_files(TEXT, tmp_path)
    write_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if name.startswith("my_") and hasattr(module, "__file__")]:
        del sys.modules[name]
    from goca.method.aggregation import heads, layers
    from goca.method.calibration import STEPS
    from goca.method.decision import RULES

    for known in (heads.METHODS, layers.METHODS, STEPS, RULES):
        for name in ("strongest", "row_cosine", "square", "scaled"):
            known.pop(name, None)


def test_every_kind_of_extension_has_a_recipe():
    rows = re.findall(r"^\| \[([\w ]+)\]\(#([\w-]+)\)", TEXT, flags=re.M)
    assert [title.lower() for title, _ in rows] == [part.partition("\n")[0].lower() for part in RECIPES]
    assert len(rows) == 11


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda part: part.partition("\n")[0].lower().replace(" ", "_"))
def test_a_recipe_runs_as_it_stands(recipe, folder):
    module, *arguments = shlex.split(re.search(r"^python -m (goca\.\w+ .*)$", recipe, flags=re.M)[1])
    mine = None
    if arguments[0] == "--config-dir":
        mine, arguments = arguments[1], arguments[2:]
    assert mine is None or f"`{mine}/" in recipe
    if module == "goca.generate":
        small = ["limit=1", "steps=2", "logger=none", "progress=false"]
        cfg = config.compose([*arguments, *small], "generate", folder=mine)
        summary = generate.generate(cfg, folder / "out")
        assert "gentle" in str(summary or (folder / "out" / "config.yaml").read_text())
        return
    logger = [] if any(argument.startswith("logger=") for argument in arguments) else ["logger=none"]
    summary = evaluate(config.compose([*arguments, *QUICK, *logger], folder=mine), folder / "out")
    assert summary["images"] == 2
    assert 0 < summary["miou"] <= 100
    if "logger" not in recipe.partition("\n")[0].lower():
        assert (folder / "out" / "config.yaml").read_text().count("my_") or "_target_: my_" in recipe or "- {}" in recipe
    else:
        assert (folder / "results.tsv").read_text().startswith("scenes_unet scenes goca\t")


def test_the_table_beside_a_module_is_the_data_sets(folder):
    dataset = config.build(config.compose(["dataset=mine", "paths.data=."], folder="my_conf"), "dataset")
    assert dataset.classes.names == ("background", "snow", "moon")
    assert dataset.classes.synonyms[1] == ("snow", "ice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "should be a list of rows"),
        ("- {words: [x]}", "should be a list of rows"),
        ("- {name: background}", "at least one class"),
        ("- {name: background}\n- {name: a}\n- {name: a}", "each name once"),
        ("- {name: background}\n- {name: a, words: car}", "gives a the words 'car'"),
        ("- {name: background}\n- {name: a, colour: red}", "gives a the colour"),
        ("- {name: [", "cannot be read"),
    ],
)
def test_a_wrong_table_is_one_message(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        ClassTable.load(tmp_path / "mine.yaml")


def test_an_installed_package_offers_an_adapter(tmp_path, monkeypatch):
    package = tmp_path / "their_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[goca.backbones]\ntheirs = their_adapters:Theirs\n")
    (tmp_path / "their_adapters.py").write_text("class Theirs:\n    pipelines = ('TheirPipeline',)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.find_adapter("TheirPipeline").__name__ == "Theirs"
    with pytest.raises(ModelError, match=r"OtherPipeline, which no adapter takes; .*FluxPipeline"):
        registry.find_adapter("OtherPipeline")


def test_two_adapters_for_one_pipeline_are_refused():
    class Other:
        pipelines = ("FluxPipeline",)

    registry.find_adapter("FluxPipeline")
    with pytest.raises(ConfigError, match=r"two adapters take FluxPipeline: goca\.backbones\.flux\.FluxBackbone and .*Other"):
        registry.backbone(Other)


def test_the_package_has_a_version_and_imports_lazily():
    code = (
        "import sys, goca; assert 'torch' not in sys.modules; from goca import Segmentor, observe; "
        "import goca.observe as module; assert callable(observe) and module.observe and goca.observe is observe; "
        "from goca.segmentor import Segmentor as same; assert Segmentor is same; print(goca.__version__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == goca.__version__, ran.stderr
    with pytest.raises(AttributeError, match="no attribute 'Segmenter'"):
        _ = goca.Segmenter


@pytest.mark.slow
def test_an_installed_wheel_runs_a_users_own_model_data_and_calibration(warm_python, tmp_path):
    """Built, unpacked and used in a folder that holds nothing but the user's files."""
    pytest.importorskip("hatchling", reason="builds the wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert goca.__version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    here = tmp_path / "here"
    write_files(TEXT, here)
    write_pictures(here)
    (here / "my_conf" / "calibration").mkdir(parents=True)
    (here / "my_conf" / "calibration" / "squared.yaml").write_text(
        "# Ours.\ndefaults:\n  - goca\nsteps: [per_pixel, minmax, my_steps.square]\n"
    )
    run = [warm_python, "-m", "goca.run", "--config-dir", "my_conf", "dataset=mine", "model=emphatic", "calibration=squared"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    ran = subprocess.run(
        [*run, "paths.data=.", "output=out", "logger=none"],
        cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    written = (here / "out" / "config.yaml").read_text()
    assert "my_backbone.Emphasis" in written
    assert "my_steps.square" in written
    assert f"checkpoint: {tmp_path / 'installed'}" in written  # its own bundled backbone, not the checkout's


def test_a_users_preset_names_the_method(folder):
    from goca.runs.naming import method_name

    (folder / "my_conf" / "preset").mkdir()
    (folder / "my_conf" / "preset" / "soft.yaml").write_text(
        "# @package _global_\n# Ours.\ndefaults:\n  - override /refinement: blur\n  - override /views: darker\n"
    )
    assert method_name(config.compose(["preset=soft"], folder="my_conf")) == "soft"
    assert method_name(config.compose(["refinement=blur"], folder="my_conf")) == "goca, refinement=blur"


def test_auto_takes_a_users_model_config_with_the_same_layers_and_a_users_adapter(folder):
    from goca.paths import BUNDLED

    own = {"name": "auto", "checkpoint": str(BUNDLED / "scenes_unet")}
    (folder / "my_conf" / "model" / "ours.yaml").write_text(
        f"# Ours.\ndefaults:\n  - scenes_unet\ncheckpoint: {BUNDLED / 'scenes_unet'}\nname: ours\ntimestep: 77\n"
    )
    overrides = ["model=auto", f"model.checkpoint={own['checkpoint']}"]
    assert config.compose(overrides, folder="my_conf").model.timestep == 77
    assert config.compose(overrides).model.timestep == 100
    assert "ours" in (config.compose([], folder="my_conf") and config.options("model"))
