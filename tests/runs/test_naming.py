"""One configuration has one name, and two methods never share one."""

import itertools

import pytest

from goca.config import compose
from goca.runs.naming import method_name

SAME = [
    ("goca", [[], ["preset=goca"], ["aggregation.heads=dot_product"], ["model.timestep=100"], ["decision=offset", "seed=3"]]),
    ("lift_walk", [["preset=lift_walk"], ["calibration=lift", "refinement=random_walk"]]),
    ("vanilla, calibration=raw", [["preset=vanilla", "calibration=raw"], ["aggregation=vanilla", "calibration=raw"]]),
    ("goca, views=shifted", [["views=shifted"], ["preset=goca", "views=shifted"]]),
    ("goca, refinement=none", [["refinement=none"], ["refinement.steps=[]"]]),
    ("refam", [["preset=refam"], ["preset=refam", "prompts.names=all"]]),
    ("vanilla", [["preset=vanilla"], ["preset=vanilla", "prompts=sentence"], ["preset=refam", "prompts=classes"]]),
    ("daam", [["preset=daam"], ["preset=daam", "prompts=classes"]]),
    ("diffcut", [["preset=diffcut"], ["preset=diffcut", "model=scenes_dit"]]),
    ("goca, refinement.steps.0.order=3", [["refinement.steps.0.order=3"]]),
    ("goca, calibration=raw, model.timestep=77", [["calibration=raw", "model.timestep=77"]]),
]


@pytest.mark.parametrize(("name", "ways"), SAME)
def test_a_method_has_one_name_however_it_was_chosen(name: str, ways: list[list[str]]) -> None:
    assert {method_name(compose(overrides)) for overrides in ways} == {name}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["preset=iseg", "prompts.emphasis=null"], "iseg, prompts.emphasis.factor=null, prompts.emphasis.way=null"),
        (["preset=ovam", "prompts.reads=prompt"], "ovam, prompts.reads=null"),
        (["preset=diffsegmenter", "prompts.each=false"], "diffsegmenter, prompts.each=null"),
        (["preset=vanilla", "model.heads=l2_norm"], "vanilla"),  # whose heads are averaged
        (["preset=nerve", "model.affinity_order=5"], "nerve"),  # which has no affinity
        (["model.affinity_order=5"], "goca, model.affinity_order=5"),
    ],
)
def test_the_name_says_what_was_done_and_nothing_else(overrides: list[str], name: str) -> None:
    assert method_name(compose(overrides)) == name


def test_different_methods_have_different_names() -> None:
    settings = (["preset=goca", "preset=vanilla"], ["views=single", "views=mirrored"], ["decision=offset", "decision=max"])
    names = [method_name(compose(overrides)) for overrides in itertools.product(*settings)]
    assert len(set(names)) == 8


def test_the_name_does_not_depend_on_the_model_or_on_what_decides_no_number() -> None:
    for overrides in (["model=sd15"], ["model=scenes_dit"], ["logger=none"], ["data.batch_size=3"], ["limit=2"]):
        assert method_name(compose(overrides)) == "goca"
