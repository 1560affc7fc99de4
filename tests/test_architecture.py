"""The house as it is imported: data flows one way, nothing imports a command, and every file can be read in one sitting."""

from goca.paths import PACKAGE
from tests.helpers.import_graph import circle, commands, imports, modules, rooms

# From the ground up: a room may import those before it.
FLOORS = (
    *("errors", "paths", "registry", "disk", "timing", "ops", "config", "layer_names", "hub", "data", "prompts"),
    *("method", "attention", "backbones", "prediction", "figures", "segmentation", "segmentor", "runs", "loggers", "compare"),
)
API = "goca.observe"  # a command that is also a function of the Python API
LONGER = {"goca.hub.repositories": 380}  # lines that a module may have beyond the 350 of all others


def test_no_room_leads_back_to_itself() -> None:
    assert circle(rooms()) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_arrows_point_down() -> None:
    arrows = [(source, target) for source, targets in rooms().items() for target in targets]
    known = [(source, target) for source, target in arrows if source in FLOORS and target in FLOORS]
    assert len(known) > 40
    assert [arrow for arrow in known if FLOORS.index(arrow[0]) < FLOORS.index(arrow[1])] == []


def test_nothing_imports_a_command() -> None:
    runnable = {name for name in commands() if name != API}
    assert {"goca.run", "goca.app", "goca.generate"} <= runnable
    assert [(name, target) for name, targets in imports().items() for target in targets & runnable] == []


def test_the_root_holds_few_modules_and_no_file_is_long() -> None:
    assert len([path for path in PACKAGE.glob("*.py") if path.stem != "__init__"]) <= 22
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > LONGER.get(name, 350)} == {}
