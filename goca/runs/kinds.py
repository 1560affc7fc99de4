"""Which runs answer the same question, so that their numbers can be ranked: one rule for a sweep's table and `goca.compare`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from goca.runs.records import Summary

Regime = Literal["all names", "chosen names", "predicted names", "ground-truth names", "no names", "matched with ground truth"]

# What a method knows about an image beforehand; numbers of two regimes are never ranked together.
TOLD: Mapping[Regime, str] = {
    "all names": "every class name of the data set, the same for each image",
    "chosen names": "a chosen list of names, the same for each image",
    "predicted names": "words that another network or a file gives for the image, not its ground truth",
    "ground-truth names": "the classes in the image, from its ground truth (an oracle; prompts=vocabulary gives all names)",
    "no names": "nothing",
    "matched with ground truth": "which segment is which class, by each image's ground truth (an upper bound)",
}


def regime(prompts: Mapping[str, Any]) -> Regime:
    """What a run's prompts tell the method about an image.

    Args:
        prompts: as a source of prompts describes itself, in the summary; `maps` says that class maps came from files, `matched`
            that segments got their classes from ground truth.

    >>> regime({"source": "classes", "ground_truth": True}), regime({"source": "vocabulary", "words": None})
    ('ground-truth names', 'all names')
    >>> regime({"source": "vlm", "ground_truth": False, "on_missing": "classes"})
    'ground-truth names'
    >>> regime({"source": "unprompted"}), regime({"source": "unprompted", "maps": "files"})
    ('no names', 'predicted names')
    >>> regime({"source": "vocabulary", "matched": "ground truth"})
    'matched with ground truth'
    """
    if prompts.get("matched"):
        return "matched with ground truth"
    if prompts.get("ground_truth") or prompts.get("add_missing") or prompts.get("on_missing") == "classes":
        return "ground-truth names"
    if prompts.get("maps"):
        return "predicted names"
    match prompts.get("source"):
        case "classes":
            return "ground-truth names"
        case "unprompted":
            return "no names"
        case "vocabulary" | "template" | "concepts":
            return "chosen names" if prompts.get("words") else "all names"
    return "predicted names"


def image_set(image_ids: Iterable[str]) -> str:
    """A short hash that is equal for equal sets of images.

    >>> image_set(["b", "a"]) == image_set(["a", "b"]) != image_set(["a"])
    True
    """
    return hashlib.sha256("\n".join(sorted(image_ids)).encode()).hexdigest()[:12]


def rules(summary: Summary) -> str:
    """What numbers of one data set must share besides the protocol's name, in short."""
    return f"{summary.rules_version}-{summary.rules_hash}" if summary.rules_hash else ""


def unusual(summary: Summary) -> str:
    """The rules of a run that its protocol does not promise, as they are set: `protocol.void=background`; empty as a rule."""
    return ", ".join(f"{key}={value}" for key, value in summary.unusual.items())


@dataclass(frozen=True)
class Kind:
    """What two runs must have in common for their numbers to be ranked."""

    dataset: str
    split: str | None
    protocol: str
    prompts: str
    classes: tuple[str, ...]
    has_background: bool
    images: int  # that are judged
    image_set: str
    rules: str  # version of the protocol, and hash of names, words and how prompts are made; empty in runs of earlier versions
    unusual: str = ""  # rules that are not those of the protocol, by their settings
    content: str = ""  # hash of the first image's picture and mask; empty in runs of earlier versions

    @classmethod
    def of(cls, summary: Summary, image_ids: Sequence[str] | None = None) -> Kind:
        """The kind of a run; the judged images are those that its summary knows of, unless they are given."""
        source, told = summary.prompts["source"], regime(summary.prompts)
        oracle = {"ground-truth names": " (with ground truth)", "matched with ground truth": " (matched with ground truth)"}
        known = summary.images - summary.failed if summary.judged is None else summary.judged
        return cls(
            dataset=summary.dataset,
            split=summary.split,
            protocol=summary.protocol,
            prompts=f"{source}{oracle.get(told, '')}{', class maps from files' if summary.prompts.get('maps') else ''}",
            classes=tuple(summary.classes),
            has_background=summary.has_background,
            images=known if image_ids is None else len(image_ids),
            image_set=summary.image_set if image_ids is None else image_set(image_ids),
            rules=rules(summary),
            unusual=unusual(summary),
            content=summary.pictures.get("content", ""),
        )

    @property
    def title(self) -> str:
        background = "with background" if self.has_background else "without background"
        return (
            f"{self.dataset} {self.split} - protocol {self.protocol}, prompts {self.prompts}, "
            f"{len(self.classes) - 1} classes {background}, {self.images} images{f', {self.unusual}' if self.unusual else ''}"
        )


def kind_titles(kinds: Sequence[Kind], image_ids: Mapping[Kind, Sequence[str]] | None = None) -> dict[Kind, str]:
    """The title of every kind; where several have the same one, with what else they differ in."""
    titles = {kind: kind.title for kind in kinds}
    seen = Counter(titles.values())
    for title in (title for title, count in seen.items() if count > 1):
        same = [kind for kind in kinds if titles[kind] == title]
        ids = {kind: (image_ids or {}).get(kind, (kind.image_set,)) for kind in same}
        traits = {
            "classes": {kind: _span(kind.classes[1:]) for kind in same},
            "rules": {kind: kind.rules or "of an earlier version" for kind in same},
            "images": {kind: _span(ids[kind]) for kind in same},
            "pictures": {kind: kind.content or "of an earlier version" for kind in same},
        }
        differing = {name: values for name, values in traits.items() if len(set(values.values())) > 1} or traits
        for number, kind in enumerate(same, start=1):
            apart = ", ".join(f"{name} {values[kind]}" for name, values in differing.items())
            titles[kind] = f"{title} - set {number}: {apart}"
    return titles


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} ... {names[-1]}"
