"""How attention becomes labels: one choice for each stage, in the order of docs/method.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from goca import config
from goca.data.sizes import Sizing, Square, Windows
from goca.errors import ConfigError
from goca.method.aggregation import Aggregation
from goca.method.aggregation.concepts import ConceptMaps
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration
from goca.method.decision import Decision, Hungarian
from goca.method.outside import MapFiles
from goca.method.passes import Passes
from goca.method.plan import Layered, Plan, plan_layers
from goca.method.refinement import Refinements
from goca.method.scored import Scored
from goca.method.views import View, Views

__all__ = ["Method", "Plan", "calibration_of", "plan_layers", "weighed_layers"]


@dataclass(frozen=True)
class Method:
    """A segmentation method: what is done with the attention of a forward.

    Args:
        aggregation: weights of heads and layers; gives a map per token.
        calibration: makes the maps of classes comparable.
        refinement: spreads class maps along the picture.
        decision: class maps to labels.
        views: in how many ways each picture is seen; the maps of all are averaged (test-time augmentation).
        passes: at which noise levels every view is seen; the attention of all is averaged.
        sizing: how large a picture is shown to the model.
    """

    aggregation: Aggregation | Mixture | ConceptMaps
    calibration: Calibration | MapFiles
    refinement: Refinements = dataclasses.field(default_factory=Refinements)
    decision: Decision | Hungarian | Scored = dataclasses.field(default_factory=Decision)
    views: Views = dataclasses.field(default_factory=Views)
    passes: Passes = dataclasses.field(default_factory=Passes)
    sizing: Sizing = dataclasses.field(default_factory=Square)

    def __post_init__(self) -> None:
        if len(self.passes) > 1 and isinstance(self.aggregation, Aggregation):
            raise ConfigError("passes: several time steps go with a mixture of layers (preset=daam), not with layer weights")
        if isinstance(self.calibration, MapFiles) and any(view != View() for view in self.views.views):
            raise ConfigError(
                "calibration=files: maps of a file are of the picture as it stands, and views moves it: use views=single"
            )
        if isinstance(self.calibration, Calibration) and isinstance(self.aggregation, Mixture):
            _check_together(self.aggregation, self.calibration)
        exponents = isinstance(self.calibration, Calibration) and self.calibration.exponents is not None
        if exponents and "power" not in self.calibration.steps:  # type: ignore[union-attr]
            raise ConfigError(
                "calibration.exponents are read by the step power, and calibration.steps has none: add it, as"
                " calibration=loss_power does, or leave the exponents out"
            )
        windows = isinstance(self.sizing, Windows) and self.sizing.merge == "token_maps"
        if windows and isinstance(self.aggregation, Mixture) and self.aggregation.normalise == "spatial_sum":
            raise ConfigError(
                "sizing: aggregation.normalise=spatial_sum divides each window's maps by their own sum, so that a window"
                " without the object would count as much as one with it: use sizing=square or keep_aspect, or merge=class_maps"
            )
        step = self.refinement.without_names
        if step is not None and not isinstance(self.decision, Hungarian):
            raise ConfigError(
                f"refinement: {step} with names=none finds segments without names, which only decision=hungarian can turn into"
                " classes; set the step's names=attention to have them named by the words"
            )
        if step is not None and len(self.views) > 1:
            raise ConfigError(f"views: {step} with names=none finds other segments in every view: use views=single")

    @classmethod
    def from_config(cls, cfg: Any) -> Method:
        """The method of a composed configuration; stages for which it has no section keep their default.

        Raises:
            ConfigError: a key, value or type that does not fit.
        """
        stages = [field.name for field in dataclasses.fields(cls)]
        required = ("aggregation", "calibration", "refinement")
        return cls(**{stage: config.build(cfg, stage) for stage in stages if stage in required or stage in cfg})

    def check_prompts(self, concepts: bool, nothing: bool = False) -> None:
        """Whether the method can do something with prompts of a kind.

        Args:
            concepts: whether their positions are concepts, and not tokens of their text.
            nothing: whether they name no class at all.

        Raises:
            ConfigError: every number would be wrong.
        """
        if concepts and not isinstance(self.aggregation, ConceptMaps):
            raise ConfigError("prompts=concepts goes with aggregation=concepts alone; prompts=classes gives names")
        if not concepts and isinstance(self.aggregation, ConceptMaps):
            raise ConfigError("aggregation=concepts reads concepts, which prompts=concepts gives")
        if concepts and isinstance(self.calibration, Calibration) and self.calibration.exponents is not None:
            raise ConfigError(
                "calibration.exponents measure a text of each class, and prompts=concepts has no texts: use calibration=raw"
            )
        if nothing and self.refinement.without_names is None and isinstance(self.calibration, Calibration):
            raise ConfigError(
                "prompts=unprompted names no class to look for: it goes with a refinement that finds segments and"
                " decision=hungarian (preset=diffcut, diffseg), or with calibration=files; use prompts=classes"
            )

    def check_background(self) -> None:
        """Whether the background's thresholds mean something: but for an offset of 0, all are of maps between 0 and 1.

        Raises:
            ConfigError: class 0 would win or lose everywhere.
        """
        calibration, decision = self.calibration, self.decision
        if isinstance(decision, Hungarian) or (isinstance(decision, Decision) and decision.stretch):
            return
        rule = decision.rule if isinstance(decision, Decision) else "scored"
        if rule == "exact" or (rule == "offset" and 0 in decision.thresholds):
            return
        raw = isinstance(calibration, Calibration) and (not calibration.steps or calibration.steps[-1] == "times_raw")
        match self.aggregation:
            case Mixture(normalise="minmax") | ConceptMaps(softmax=True):
                raw = False
        if not self.refinement.bounded(not raw):
            raise ConfigError(
                f"decision={rule}: thresholds are of maps between 0 and 1, and those of this method have another"
                " scale: use data without background (dataset=voc20, context59, ade20k) or decision=stretched"
            )

    def plan(self, backbone: Layered) -> Plan:
        """The layers of a backbone that this method observes; raises ModelError for names the model lacks."""
        needs = self.refinement.needs
        return plan_layers(backbone, self.aggregation, needs.self_attention, needs.features, needs.feature_kind)

    def at(self, background: float | None) -> Method:
        """This method with one background threshold in place of its sweep; None leaves it as it is.

        Raises:
            ConfigError: a decision without a threshold.
        """
        if background is None:
            return self
        if isinstance(self.decision, Hungarian) or not self.decision.has_threshold:
            how = getattr(self.decision, "rule", "hungarian")
            raise ConfigError(f"background={background}: decision={how} has no threshold; use background=True")
        return dataclasses.replace(self, decision=dataclasses.replace(self.decision, thresholds=(background,)))

    def trying(self, background: float | None) -> Method:
        """This method with a background threshold in its sweep, in place of one equal to six digits; None: as it is."""
        if background is None or isinstance(self.decision, Hungarian) or background in self.decision.thresholds:
            return self
        others = (tau for tau in self.decision.thresholds if f"{tau:g}" != f"{background:g}")  # such as 0.30000000000000004
        thresholds = tuple(sorted((*others, background)))
        return dataclasses.replace(self, decision=dataclasses.replace(self.decision, thresholds=thresholds))


def _check_together(aggregation: Mixture, calibration: Calibration) -> None:
    """Whether the calibration's steps mean something of the aggregation's maps; ConfigError where they do not."""
    if aggregation.normalise == "minmax" and calibration.token_steps:
        raise ConfigError(
            "calibration.token_steps change the maps of all levels together, and aggregation.normalise=minmax takes each"
            " level's: use one of them"
        )
    if aggregation.normalise == "minmax" and "per_pixel" in calibration.steps:
        raise ConfigError(
            "calibration.steps: per_pixel divides shares of attention by their sum, and with aggregation.normalise=minmax maps"
            " are no shares any more: use calibration=raw or minmax, or normalise=none"
        )
    if aggregation.score == "logits" and ("per_pixel" in calibration.steps or "cluster" in calibration.token_steps):
        raise ConfigError(
            "aggregation.score=logits have either sign, and the calibration's per_pixel or cluster takes shares of attention:"
            " use calibration=raw or minmax, or score=softmax, text or exp"
        )


def weighed_layers(method: Method) -> Aggregation:
    """The method's aggregation where heads and layers are weighed one by one, as looking at them and guiding a generation want.

    Raises:
        ConfigError: an aggregation of another kind.
    """
    if isinstance(method.aggregation, Aggregation):
        return method.aggregation
    kind = type(method.aggregation).__name__
    raise ConfigError(f"this goes with an aggregation of heads and layers (goca, vanilla, manual, ...), not with {kind}")


def calibration_of(method: Method) -> Calibration:
    """The method's calibration of token maps.

    Raises:
        ConfigError: class maps that come from files.
    """
    if isinstance(method.calibration, Calibration):
        return method.calibration
    raise ConfigError("this calibrates the attention's own maps; calibration=files hands in others")
