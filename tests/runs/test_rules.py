"""Thresholds that are fixed beforehand, and the hash of what the words are."""

import dataclasses
from pathlib import Path

import pytest
import torch

from goca import config
from goca.errors import ConfigError
from goca.method import Method
from goca.method.decision import Decision, Hungarian
from goca.method.scored import Scored
from goca.prompts.sources import Classes, Published, Vocabulary
from goca.runs.records import Facts, ImageRecord
from goca.runs.rules import fixed_threshold, rules_hash, threshold_name, unusual_rules
from goca.runs.summary import compact, summarize
from tests.data.conftest import build_dataset


@pytest.mark.parametrize(
    ("decision", "threshold"),
    [
        (Decision(), 0.0),
        (Decision(rule="constant", thresholds=(0.3, 0.4), stretch=True), 0.7),
        (Decision(rule="constant", thresholds=(0.4,)), 0.4),
        (Decision(rule="exact", thresholds=(0.0,)), 0.0),
        (Scored(thresholds=(0.3, 0.5)), 0.4),
        (Hungarian(), None),
    ],
)
def test_the_data_set_fixes_what_a_sweep_leaves_open(decision, threshold) -> None:
    dataset = build_dataset("voc21", protocol="ovss", threshold={"offset": 0.0, "stretched": 0.7, "scored": 0.4})
    assert fixed_threshold(dataset, decision) == threshold
    assert fixed_threshold(build_dataset("voc20", protocol="ovss"), decision) is None  # nothing is compared with a background
    assert fixed_threshold(build_dataset("voc21"), decision) is None


@pytest.mark.parametrize("name", ["voc21", "context60", "coco_object", "coco_object_panoptic"])
@pytest.mark.parametrize("scale", ["offset", "max", "average", "constant", "stretched", "scored"])
def test_every_set_with_a_background_fixes_a_threshold_for_every_sweep(name: str, scale: str) -> None:
    assert scale in build_dataset(name).threshold


def test_a_sweep_without_a_fixed_threshold_is_refused() -> None:
    dataset = build_dataset("voc21", protocol="ovss", threshold={"offset": 0.0})
    message = r"voc21 has none for 'constant' \(it has: offset\); give decision.thresholds=\[0.5\]"
    with pytest.raises(ConfigError, match=message):
        fixed_threshold(dataset, Decision(rule="constant", thresholds=(0.3, 0.4)))


def test_a_fixed_threshold_joins_the_sweep() -> None:
    method = Method.from_config(config.compose(["decision.thresholds=[-0.1,0.1]"]))
    assert method.trying(0.0).decision.thresholds == (-0.1, 0.0, 0.1)
    assert method.trying(0.1) is method.trying(None) is method
    computed = Method.from_config(config.compose([f"decision.thresholds=[0.1,{0.1 + 0.2}]"]))
    assert computed.trying(0.3).decision.thresholds == (0.1, 0.3)  # they go by six digits, which are those of 0.1 + 0.2


def test_the_number_is_that_of_the_fixed_threshold_and_not_of_the_best() -> None:
    facts = Facts(
        dataset="voc21", split="val", model="m", method="m", protocol="ovss", prompts={"source": "vocabulary"},
        classes=["background", "cat"], unseen_classes="skip", has_background=True, thresholds=[0.0, 0.1], fixed_threshold=0.0,
    )  # fmt: skip
    counts = torch.tensor([[[2, 2], [2, 2]], [[4, 0], [0, 4]]])  # all right at 0.1, half at 0
    found = summarize(facts, [ImageRecord(image_id="a", confusion=compact(counts), near_ties=(3, 0))])
    assert found.miou == pytest.approx(100 / 3, abs=1e-3)
    assert (found.threshold, found.threshold_choice, found.threshold_index, found.near_ties) == (0.0, "fixed beforehand", 0, 3)
    assert found.miou_by_threshold == {"0": pytest.approx(100 / 3, abs=1e-3), "0.1": 100.0}
    assert (found.mean_accuracy, found.pixel_accuracy) == (50.0, 50.0)
    assert found.accuracy_by_class == {"background": 50.0, "cat": 50.0}
    unseen = summarize(facts, [ImageRecord(image_id="a", near_ties=(3, 0))])
    assert (unseen.miou, unseen.threshold, unseen.threshold_choice) == (None, 0.0, "fixed beforehand")


def test_the_hash_tells_labels_and_rules_apart() -> None:
    """Under the same name of the protocol: other labels, other pictures, or a rule that was set by hand."""
    usual = {
        name: rules_hash(build_dataset(name, protocol="ovss"), Vocabulary()) for name in ("voc21", "coco_object", "coco_stuff")
    }
    by_hand = build_dataset("voc21", protocol="ovss")
    by_hand.protocol = dataclasses.replace(by_hand.protocol, void="background", unseen_classes="zero")
    assert rules_hash(by_hand, Vocabulary()) != usual["voc21"]
    panoptic = build_dataset("coco_object", protocol="ovss", annotation="panoptic")
    assert rules_hash(panoptic, Vocabulary()) != usual["coco_object"]
    same = build_dataset("coco_object", protocol="ovss", annotation="stuffthingmaps")
    assert rules_hash(same, Vocabulary()) == usual["coco_object"]
    shifted = build_dataset("coco_stuff", protocol="ovss", shift=True)
    assert rules_hash(shifted, Vocabulary()) != usual["coco_stuff"]
    scenes = [build_dataset("scenes"), build_dataset("scenes", colours="random"), build_dataset("scenes", size=128)]
    assert len({rules_hash(dataset, Classes()) for dataset in scenes}) == 3


def test_rules_that_a_protocol_does_not_promise_are_named() -> None:
    assert unusual_rules(build_dataset("voc21", protocol="ovss")) == {}
    turned = build_dataset("voc21", protocol="ovss", palette="index", orientation="stored")
    assert unusual_rules(turned) == {"dataset.palette": "index", "dataset.orientation": "stored"}
    assert rules_hash(turned, Vocabulary()) != rules_hash(build_dataset("voc21", protocol="ovss"), Vocabulary())
    assert unusual_rules(build_dataset("scenes", colours="random")) == {"dataset.colours": "random"}
    by_hand = build_dataset("coco_object", protocol="ovss", annotation="panoptic")
    by_hand.protocol = dataclasses.replace(by_hand.protocol, void="background")
    assert unusual_rules(by_hand) == {"dataset.annotation": "panoptic", "protocol.void": "background"}


def test_a_threshold_of_the_data_set_that_was_changed_is_part_of_the_method() -> None:
    usual, changed = (build_dataset("voc21", protocol="ovss", threshold={"offset": tau, "scored": 0.4}) for tau in (0.0, 0.3))
    assert threshold_name(usual, Decision(), 0.0) == threshold_name(usual, Decision(), None) == ""
    assert threshold_name(changed, Decision(), 0.3) == "dataset.threshold.offset=0.3"
    assert threshold_name(changed, Decision(thresholds=(0.3,)), 0.3) == ""  # the method's own name says it
    assert threshold_name(changed, Scored(thresholds=(0.3, 0.5)), 0.4) == ""


def test_the_hash_tells_names_words_and_prompts_apart(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text('{"image_id": "1", "caption": "cat"}\n')
    other.write_text('{"image_id": "1", "caption": "dog"}\n')
    voc = build_dataset("voc21")
    hashes = [
        rules_hash(voc, Classes()),
        rules_hash(voc, Classes(background_token=True)),
        rules_hash(voc, Vocabulary()),
        rules_hash(build_dataset("voc20"), Vocabulary()),
        rules_hash(build_dataset("voc21", synonyms="upstream"), Vocabulary()),
        rules_hash(voc, Published(path=path)),
        rules_hash(voc, Published(path=other)),
    ]
    assert len(set(hashes)) == len(hashes)
    assert all(len(found) == 12 for found in hashes)
    (tmp_path / "moved.jsonl").write_bytes(path.read_bytes())
    assert rules_hash(voc, Published(path=tmp_path / "moved.jsonl")) == hashes[-2]
    assert rules_hash(build_dataset("voc"), Vocabulary()) == hashes[2]
