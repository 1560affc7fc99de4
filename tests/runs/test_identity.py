"""Runs begun before a change of the configuration can be continued; what decides a number still tells runs apart."""

from pathlib import Path

import pytest
import yaml

from goca import config
from goca.config.identity import decisive, difference, group_of
from goca.paths import BUNDLED
from goca.runs.sweeps import config_hash

BEFORE = yaml.safe_load(Path(__file__).with_name("begun_before.yaml").read_text().replace("bundled/", f"{BUNDLED}/"))


@pytest.mark.parametrize("name", BEFORE)
def test_a_run_begun_before_is_the_same_run_now(name):
    before = BEFORE[name]["config"]
    now = config.plain(config.compose([*BEFORE[name]["overrides"], "output=outputs/new"]))
    assert difference(before, now) == {}
    assert config_hash(before) == config_hash(now)
    assert group_of(before) == group_of(now)


@pytest.mark.parametrize(("key", "values"), [("background_words", (False, True)), ("across", ("each", "sink"))])
def test_words_for_the_background_and_a_shared_rescaling_make_another_run_of_a_vocabulary(key, values):
    before = BEFORE["voc_walk"]["config"]
    overrides = [entry for entry in BEFORE["voc_walk"]["overrides"] if key not in entry]
    assert difference(before, config.plain(config.compose(overrides))) == {f"prompts.{key}": values}


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "shard=1/2",
        "refinement=random_walk",
        "refinement.steps=[]",
        "views=noises",
        "views=mirrored",
        "aggregation.rows=100",
        "decision.thresholds=[0.1]",
        "calibration.parity=true",
        "model.timestep=50",
        "dataset.count=50",
    ],
)
def test_what_decides_numbers_makes_another_run(override):
    before, now = BEFORE["default"]["config"], config.plain(config.compose([override]))
    assert difference(before, now) != {}
    assert config_hash(before) != config_hash(now)


@pytest.mark.parametrize("override", ["group=other", "batch_size=3", "paths.output=elsewhere", "logger=none", "output=x"])
def test_what_decides_nothing_makes_none(override):
    before, now = BEFORE["default"]["config"], config.plain(config.compose([override]))
    assert difference(before, now) == {}


def test_a_step_of_a_refinement_is_compared_key_by_key():
    one = {"refinement": {"steps": [{"_target_": "old.place.Affinity", "order": 1}]}}
    other = {"refinement": {"steps": [{"_target_": "new.place.Affinity", "order": 2}]}}
    assert difference(one, other) == {"refinement.steps.0.order": (1, 2)}
    assert decisive(one)["refinement.steps"] == 1
