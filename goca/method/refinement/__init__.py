"""Refinements of class maps; they compose as a list."""

from goca.method.refinement.activation import Activation
from goca.method.refinement.affinity import Affinity
from goca.method.refinement.base import Needs, Refinement, RefinementContext, Refinements, SelfAttention
from goca.method.refinement.crf import CRF
from goca.method.refinement.pamr import PAMR
from goca.method.refinement.prototype import Prototype
from goca.method.refinement.random_walk import RandomWalk
from goca.method.refinement.space_merge import SpaceMerge

__all__ = [
    "Activation",
    "Affinity",
    "CRF",
    "Needs",
    "PAMR",
    "Prototype",
    "RandomWalk",
    "Refinement",
    "RefinementContext",
    "Refinements",
    "SelfAttention",
    "SpaceMerge",
]
