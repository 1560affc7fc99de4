"""Refinements of class maps; they compose as a list (METHOD 2.4)."""

from goca.refinement.activation import Activation
from goca.refinement.affinity import Affinity
from goca.refinement.base import Needs, Refinement, RefinementContext, Refinements, SelfAttention
from goca.refinement.crf import CRF
from goca.refinement.pamr import PAMR
from goca.refinement.prototype import Prototype
from goca.refinement.random_walk import RandomWalk
from goca.refinement.space_merge import SpaceMerge

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
