"""Every configuration composes and builds; a wrong key, value or type stops before anything heavy, naming the choices."""

import itertools
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from goca import config
from goca.errors import ConfigError
from goca.method.refinement import crf
from goca.paths import BUNDLED, CONF
from goca.segmentor import Segmentor


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _overrides(*choices: str) -> list[str]:
    """The choices, and a stand-in for every mandatory value they leave open."""
    from omegaconf import OmegaConf

    if "model=auto" in choices:  # its settings come from a checkpoint
        choices = (*choices, f"model.checkpoint={BUNDLED / 'scenes_unet'}")
    cfg = config.compose(choices)
    return [*choices, *(f"{key}=given" for key in OmegaConf.missing_keys(cfg))]


# Presets and models meet in references such as ${model.layers.cross} alone: each preset with one model of each architecture,
# and each model with the default method, find the same mistakes as all pairs.
PAIRS = [
    *itertools.product(options("preset"), ["scenes_unet", "scenes_dit", "flux_dev"]),
    *itertools.product(["goca"], options("model")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "model"), list(dict.fromkeys(PAIRS)))
def test_presets_and_models_fit(preset, model):
    cfg = config.compose(_overrides(f"preset={preset}", f"model={model}"))
    if "CRF" in str(cfg.refinement) and not crf.available():
        pytest.skip("pydensecrf2 is not installed")
    for key in ("aggregation", "calibration", "refinement", "decision", "model"):
        config.build(cfg, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"),
    [(group.name, option) for group in sorted(CONF.iterdir()) if group.is_dir() for option in options(group.name)],
)
def test_every_option_composes_and_says_when_to_use_it(group, option):
    first = (CONF / group / f"{option}.yaml").read_text().splitlines()[:2]
    assert any(line.startswith("# ") and "@package" not in line for line in first)
    if (CONF / "config.yaml").read_text().count(f"- {group}:"):
        cfg = config.compose(_overrides(f"{group}={option}"))
        if "CRF" in str(cfg.get(group)) and not crf.available():
            pytest.skip("pydensecrf2 is not installed")
        if cfg.get(group) is not None:  # presets choose options of other groups and have no section of their own
            config.build(cfg, group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aggregation", "calibration", "refinement", "decision"),
    [(name, "goca", "affinity", "offset") for name in options("aggregation")]
    + list(itertools.product(["goca"], ["goca", "vanilla", "compound"], ["affinity", "none"], ["offset", "max"])),
)
def test_combinations_of_methods_build(aggregation, calibration, refinement, decision):
    cfg = config.compose(
        [f"aggregation={aggregation}", f"calibration={calibration}", f"refinement={refinement}", f"decision={decision}"]
    )
    for key in ("aggregation", "calibration", "refinement", "decision"):
        config.build(cfg, key)


@pytest.mark.parametrize("protocol", options("protocol"))
@pytest.mark.parametrize("dataset", options("dataset"))
def test_every_data_set_with_every_protocol(dataset, protocol):
    config.build(config.compose(_overrides(f"dataset={dataset}", f"protocol={protocol}")), "data")


def test_a_group_of_the_command_line_beats_what_the_preset_says_key_by_key(caplog):
    """`preset=cliper refinement=pamr` ran CLIPer's own steps, and called itself refinement=pamr."""
    pamr = config.compose(["refinement=pamr"])
    assert config.compose(["preset=cliper", "refinement=pamr"]).refinement == pamr.refinement
    assert "refinement is as chosen on the command line" in caplog.text
    assert not config.compose(["preset=cliper", "refinement=none"]).refinement.steps
    assert config.compose(["preset=seg4diff", "passes=ten"]).passes == config.compose(["passes=ten"]).passes
    both = config.compose(["preset=daam", "decision=offset", "decision.ties=class", "aggregation.clamp=false"])
    usual = config.compose(["decision=offset"]).decision
    assert both.decision == {**usual, "ties": "class"}
    assert both.aggregation.weigh == "pair" and not both.aggregation.clamp  # the preset's, but for one key
    with pytest.raises(ConfigError, match=r"model.timestep: this method has noise levels of its own, \[101\]"):
        config.compose(["preset=cliper", "model.timestep=50"])
    caplog.clear()
    assert config.compose(["preset=cliper", "refinement.steps.0.threshold=0.2"]).refinement.steps[0].threshold == 0.2
    assert config.compose(["preset=goca", "refinement=pamr"]).refinement == pamr.refinement
    assert not caplog.text


def test_a_command_line_choice_beats_the_preset():
    cfg = config.compose(["preset=vanilla", "aggregation=goca"])
    assert cfg.aggregation.heads == "dot_product"
    assert list(cfg.calibration.steps) == ["minmax"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataset=vocc"], ["vocc", "voc", "ade20k"]),
        (["aggregation.head=average"], ["aggregation.head", "heads", "layers"]),
        (["agregation.heads=average"], ["agregation", "aggregation"]),
        (["aggregation.heads=dot"], ["aggregation.heads", "dot_product", "l2_norm"]),
        (["model.timestep=1200"], ["model.timestep", "999"]),
        (["model.size=big"], ["model.size", "integer", "big"]),
        (["data.batch_size=0"], ["batch_size", "1"]),
        (["decision.rule=ofset"], ["decision.rule", "offset"]),
        (["calibration.steps=[per_pixl]"], ["per_pixl", "per_pixel", "minmax"]),
        (["data.shard=4/3"], ["4/3", "k/n"]),
        (["protocol.void=drop"], ["protocol", "background", "ignore"]),
        (["model.dtype=float8"], ["model.dtype", "bfloat16"]),
        (["aggregation.cross_layers=[]"], ["cross_layers"]),
        (["limit=none"], ["limit", "whole number"]),
    ],
)
def test_a_wrong_setting_names_the_key_and_the_choices(overrides, expected):
    def build_all():
        cfg = config.compose(overrides)
        for key in ("data", "prompts", "aggregation", "calibration", "refinement", "decision", "model", "logger"):
            config.build(cfg, key)

    with pytest.raises(ConfigError) as caught:
        build_all()
    for word in expected:
        assert word in str(caught.value)


@pytest.mark.slow
def test_the_command_prints_one_message_and_no_traceback():
    ran = subprocess.run(
        [sys.executable, "-m", "goca.run", "aggregation.head=average"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: there is no key 'aggregation.head' (did you mean 'heads'?)")
    assert "Traceback" not in ran.stderr


def test_building_the_parts_reads_no_weights():
    cfg = config.compose(["model=sd15", "model.checkpoint=/does/not/exist"])
    Segmentor.build(cfg)


@pytest.mark.parametrize(("override", "now"), [("run.dir=x", "output=DIR"), ("experiment=mine", "group=NAME")])
def test_a_setting_that_was_renamed_is_named_by_its_present_name(override, now):
    with pytest.raises(ConfigError, match=f"any more: .*{now}"):
        config.compose([override])


@pytest.mark.parametrize(
    ("overrides", "config_name", "key", "expected"),
    [
        (["pipeline_options={eta: 1.0}"], "generate", "pipeline_options", {"eta": 1.0}),
        (["pipeline_options.eta=1.0"], "generate", "pipeline_options", {"eta": 1.0}),
        (["++pipeline_options.eta=1.0"], "generate", "pipeline_options", {"eta": 1.0}),
        (
            ["pipeline_options.eta=0", "pipeline_options.deep.key=a"],
            "generate",
            "pipeline_options",
            {"eta": 0, "deep": {"key": "a"}},
        ),
        (["scheduler_options={timestep_spacing: trailing}"], "generate", "scheduler_options", {"timestep_spacing": "trailing"}),
        (["prompts=openai", "prompts.options={temperature: 0}"], "config", "prompts.options", {"temperature": 0}),
        (
            ["preset=daam", "aggregation.weights=null"],
            "config",
            "aggregation.weights",
            None,
        ),  # a section whose keys are numbers
    ],
)
def test_sections_that_are_passed_on_take_any_key_as_it_is_documented(overrides, config_name, key, expected):
    cfg = config.compose(overrides, config_name)
    assert config.plain(OmegaConf.select(cfg, key)) == expected


def test_a_misspelt_key_within_braces_is_named_and_not_its_section():
    with pytest.raises(
        ConfigError, match=r"no key 'attention\.max_byte' \(did you mean 'max_bytes'\?\); attention has max_bytes"
    ):
        config.compose(["attention={max_byte: 3}"], "generate")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["refinement=pamr", "refinement.steps.0.dilations=[0]"],
            "refinement.steps.0.dilations.0: should be greater than 0 (got 0)",
        ),
        (["preset=cliper", "+refinement.steps.0.head=3"], "refinement.steps.0: head=3 is for combine=select"),
    ],
)
def test_a_value_within_a_list_is_named_once_as_it_is_typed(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(config.compose(overrides), "refinement")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
