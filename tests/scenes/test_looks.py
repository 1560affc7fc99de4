"""Two looks of the same scenes: equal labels, and colours that say what an object is in one of them only."""

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from goca.data.protocol import Protocol
from goca.data.scenes import Scenes
from goca.scenes.generator import CLASSES, OBJECTS, STUFF, Scene, scene

LOOKS = ("plain", "camouflage")


def test_the_plain_look_is_what_it_was():
    digest = hashlib.sha256()
    for seed in range(1_000_000, 1_000_010):
        drawn = scene(seed)
        digest.update(drawn.image.tobytes() + drawn.label.tobytes() + ",".join(drawn.words).encode())
    assert digest.hexdigest()[:16] == "8e218f920c5e16b4"


@pytest.mark.parametrize("seed", [0, 3, 1_000_005])
def test_looks_differ_in_paint_alone(seed):
    plain, hidden = (scene(seed, look=look) for look in LOOKS)
    assert (plain.label == hidden.label).all()
    assert plain.words == hidden.words
    assert (plain.image != hidden.image).mean() > 0.9
    assert (hidden.image == scene(seed, look="camouflage").image).all()


def mean_colours(look: str, seeds: range) -> dict[str, np.ndarray]:
    """Mean colour of every object that is seen, by class: (n, 3)."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in OBJECTS}
    for seed in seeds:
        drawn = scene(seed, look=look)
        for i in np.unique(drawn.label):
            if CLASSES[i] in OBJECTS:
                found[CLASSES[i]].append(drawn.image[drawn.label == i].mean(0))
    return {name: np.array(colours) for name, colours in found.items()}


def guessed_by_colour(look: str) -> float:
    """How often the nearest mean colour of the training scenes names an object of others."""
    known = {name: colours.mean(0) for name, colours in mean_colours(look, range(120)).items()}
    names = list(known)
    right = total = 0
    for name, colours in mean_colours(look, range(1_000_000, 1_000_060)).items():
        distances = np.linalg.norm(colours[:, None] - np.stack(list(known.values())), axis=-1)
        right += sum(names[i] == name for i in distances.argmin(1))
        total += len(colours)
    return right / total


def test_colour_names_objects_of_the_plain_look_only():
    plain, hidden = map(guessed_by_colour, LOOKS)
    assert plain > 0.7
    assert hidden < 0.3  # one of eight by chance


def contrast(drawn: Scene) -> list[float]:
    """How far each object's mean colour is from the nearest of the picture's ground, in grey levels."""
    stuff = [drawn.image[drawn.label == i].mean(0) for i in np.unique(drawn.label) if CLASSES[i] in STUFF]
    things = [drawn.image[drawn.label == i].mean(0) for i in np.unique(drawn.label) if CLASSES[i] in OBJECTS]
    return [min(float(np.linalg.norm(thing - ground)) for ground in stuff) for thing in things] if stuff else []


def test_objects_have_the_colours_of_their_ground():
    plain, hidden = (np.median([c for seed in range(60) for c in contrast(scene(seed, look=look))]) for look in LOOKS)
    assert hidden < plain / 2


def test_the_data_set_draws_the_look_and_refuses_what_has_no_meaning():
    protocol = Protocol("standard", "ignore", "skip", "classes")
    dataset = Scenes(protocol=protocol, count=2, look="camouflage")
    dataset.setup()
    assert (dataset.name, Scenes(protocol=protocol).name) == ("scenes_camouflage", "scenes")
    assert (dataset[1].image == scene(1_000_001, look="camouflage").image).all()
    with pytest.raises(ValidationError, match="colours"):
        Scenes(protocol=protocol, look="camouflage", colours="random")
    with pytest.raises(ValidationError, match="look"):
        Scenes(protocol=protocol, look="hidden")
    for options in ({"look": "hidden"}, {"look": "camouflage", "colours": "random"}):
        with pytest.raises(ValueError, match="look"):
            scene(0, **options)
