"""Which layers a method observes: names and globs of the configuration resolved against a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from goca.errors import ModelError
from goca.layer_names import LayerNames, matches, resolve
from goca.method.aggregation import Aggregation
from goca.method.aggregation.concepts import ConceptMaps
from goca.method.aggregation.mixture import Mixture


@dataclass(frozen=True)
class Plan:
    """Which layers give what; the names are resolved, and layers that nobody asked for are not observed.

    Args:
        cross: layers whose text attention is aggregated, each with the self-attention layer of its block.
        reference: layer of the reference affinity, if layer weights need one.
        self_attention: layers whose self-attention a refinement uses.
        features: layers whose dense feature a refinement uses.
        feature_kind: `query` (the layer's image queries) or `output` (its attention output before the
            projection) or `projected` (after it).
        reference_kind: the same of the reference; None: as of the other features.
    """

    cross: Mapping[str, str]
    reference: str | None = None
    self_attention: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    feature_kind: str = "query"
    reference_kind: str | None = None

    @property
    def observed(self) -> tuple[str, ...]:
        """Every layer that has to be observed, each once."""
        paired = tuple(self.cross.values()) if self.reference else ()
        reference = (self.reference,) if self.reference else ()
        return tuple(dict.fromkeys((*self.cross, *paired, *reference, *self.self_attention, *self.features)))


class Layered(Protocol):
    """What planning asks of a backbone."""

    layers: LayerNames
    takes_concepts: ClassVar[bool]

    @property
    def attention_modules(self) -> Mapping[str, Any]:
        """Attention modules of the denoiser by name, in the order of the model."""
        ...

    def is_text_layer(self, layer: str) -> bool:
        """Whether image queries attend to text in this layer."""
        ...

    def paired_self_attention(self, layer: str) -> str:
        """The self-attention layer of the same block; for joint attention the layer itself."""
        ...


def plan_layers(
    backbone: Layered,
    aggregation: Aggregation | Mixture | ConceptMaps,
    self_attention: Sequence[str] = (),
    features: Sequence[str] = (),
    feature_kind: str | None = None,
) -> Plan:
    """Resolve the layer names that an aggregation and a refinement ask for.

    Args:
        backbone: inspected or loaded.
        aggregation: names the cross-attention layers and the reference.
        self_attention, features: names or globs that the refinement needs.
        feature_kind: what those features are, where it is not what the model's reference is.

    Raises:
        ModelError: a name or glob that matches no layer, or none of the right kind.
    """
    if isinstance(aggregation, ConceptMaps) and not backbone.takes_concepts:
        raise ModelError(
            "aggregation=concepts: this model lacks the text branch that concepts go through; SD3, FLUX.1 and FLUX.2 have it"
        )
    if isinstance(aggregation, ConceptMaps) and features:
        raise ModelError(
            f"aggregation=concepts keeps no features, and the refinement wants those of {', '.join(features)}: use one that"
            " spreads maps along self-attention or pixels (affinity, random_walk, pamr)"
        )
    names = list(backbone.attention_modules)
    text = [name for name in names if backbone.is_text_layer(name)]
    paired = {backbone.paired_self_attention(name) for name in text}
    image = [name for name in names if name in paired or name not in text]
    reference = None
    if aggregation.weighs_layers and aggregation.reference is not None:
        (reference,) = resolve([aggregation.reference], names, "aggregation.reference")[:1]
    cross = resolve(aggregation.cross_layers, text, "aggregation.cross_layers")
    if isinstance(aggregation, Mixture):
        cross = tuple(name for name in cross if not matches(name, aggregation.leave_out))
        if not cross:
            raise ModelError(f"aggregation.leave_out: {', '.join(aggregation.leave_out)} leaves no layer of this model")
    return Plan(
        cross={name: backbone.paired_self_attention(name) for name in cross},
        reference=reference,
        self_attention=resolve(self_attention, image, "self-attention layers of the refinement"),
        features=resolve(features, names, "feature layers of the refinement"),
        feature_kind=feature_kind or backbone.layers.feature,
        reference_kind=backbone.layers.feature,
    )
