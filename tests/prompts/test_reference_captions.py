"""Captions aligned by the authors' captioner on CLIP's vocabulary: equal to ours but for its known defects, which are counted.

The reference folder holds, per caption, the captioner's own output (`upstream`), its entities aligned by true offsets
(`offset_reference`) and how a parser without defects splits the caption (`parsed_robust`).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from goca.data.classes import ClassTable
from goca.data.colours import distinct_colours
from goca.prompts import Entity, Prompt, TextSegment
from goca.prompts.align import align
from goca.prompts.caption import parse, place, split

DATASETS = {
    "voc": "voc",
    "context": "context",
    "coco-object": "coco_object",
    "coco-stuff": "coco_stuff",
    "city": "cityscapes",
    "ade": "ade20k",
    "synthetic": None,
}
SEARCH = {
    "entity_found_earlier",
    "token_offset_wrong",
}  # the reference's flags for its string search gone wrong (docs/parity.md, C2, C3)


@pytest.fixture(scope="module", params=DATASETS)
def captions(request: pytest.FixtureRequest, reference: Path) -> dict[str, Any]:
    file = reference / "captions" / f"{request.param}.json"
    if not file.is_file():
        pytest.skip(f"no captions of {request.param} in this reference")
    return json.loads(file.read_text(encoding="utf-8"))


def test_upstream_class_tables_are_the_captioners(captions: dict[str, Any]) -> None:
    name = DATASETS[captions["dataset"]]
    assert name is not None
    assert [list(words) for words in ClassTable.load(name, "upstream").synonyms] == captions["class_table"]


def test_every_difference_is_a_known_defect(captions: dict[str, Any], clip: Any, record_property: Any) -> None:
    """Counts captions by the defect that explains their difference; one that no listed defect explains fails."""
    table, axis = _table(captions["class_table"]), (TextSegment(clip, 77),)
    kinds: Counter[str] = Counter()
    for case in captions["cases"]:
        kind = _difference(case, _options(captions, case), table, axis)
        assert kind != "unexplained", f"{case['file_name']}: {case['caption']!r}"
        kinds[kind] += 1
    record_property("kinds", dict(kinds))
    print(captions["dataset"], dict(kinds))


def _difference(case: dict[str, Any], options: dict[str, bool], table: ClassTable, axis: tuple[TextSegment, ...]) -> str:
    upstream, flags = case["upstream"], set(case["flags"])
    ours = _prompt(case, table, options, axis, sorted(case["gt"]))
    if (ours.text, _summary(ours)) == (upstream["caption"], _expected(upstream)):
        return "identical"
    if "parse_regrouped" in flags:
        return "parse_regrouped"
    if "parse_lost_text" in flags:  # what the captioner kept, ours has too
        kept = {entity["prompt"] for entity in case["entities"]}
        return "parse_lost_text" if kept <= {entity.text for entity in ours.entities} else "unexplained"
    kind = "string_search"
    if case["missing_class_order"] != sorted(case["missing_class_order"]):
        kind = "missing_in_set_order"
        ours = _prompt(case, table, options, axis, case["missing_class_order"])
    expected = case["offset_reference"] if flags & SEARCH else upstream
    return kind if (ours.text, _summary(ours)) == (upstream["caption"], _expected(expected)) else "unexplained"


def test_parser_splits_like_the_repaired_one(captions: dict[str, Any]) -> None:
    for case in captions["cases"]:
        background = ", background" if _options(captions, case)["add_background_token"] else ""
        assert split(case["caption"].removesuffix(".").lower() + background) == case["parsed_robust"]


def test_true_offsets_of_the_captioners_own_entities(captions: dict[str, Any], clip: Any) -> None:
    """Alignment alone, whatever the parser did: every caption, also those whose text the captioner lost."""
    for case in captions["cases"]:
        prompt = align(place([Entity(e["prompt"], e["aligned_class"]) for e in case["entities"]]), (TextSegment(clip, 77),))
        assert prompt.text == case["upstream"]["caption"]
        assert _summary(prompt) == _expected(case["offset_reference"]), case["caption"]
        ids = clip(prompt.text, truncation=True, max_length=77)["input_ids"]
        assert ids == case["input_ids"]


def _table(synonyms: list[list[str]]) -> ClassTable:
    count = len(synonyms)
    return ClassTable(
        names=tuple(str(i) for i in range(count)),
        synonyms=tuple(map(tuple, synonyms)),
        colours=tuple(distinct_colours(count)),
        things=(False,) * count,
    )


def _options(captions: dict[str, Any], case: dict[str, Any]) -> dict[str, bool]:
    return case.get("option_flags") or captions["flags"]


def _prompt(
    case: dict[str, Any], table: ClassTable, options: dict[str, bool], axis: tuple[TextSegment, ...], missing: list[int]
) -> Prompt:
    entities = parse(
        case["caption"],
        table,
        allowed=case["gt"],
        missing=missing if options["add_missing_class"] else (),
        background_token=options["add_background_token"],
    )
    return align(entities, axis)


def _summary(prompt: Prompt) -> dict[str, Any]:
    return {
        "classes": {i: list(positions) for i, positions in prompt.class_tokens.items()},
        "background": [list(group) for group in prompt.background_groups],
        "content": list(prompt.content),
        "start": list(prompt.special["start"]),
    }


def _expected(output: dict[str, Any]) -> dict[str, Any]:
    """The captioner's output without its empty groups: classes that lost all tokens are left out here."""
    return {
        "classes": {int(i): positions for i, positions in output["existent_objects"].items() if positions},
        "background": [group for group in output["background_objects"] if group],
        "content": output["rescaling_token_id"],
        "start": output["global_token_id"],
    }
