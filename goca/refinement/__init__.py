"""Refinements of class maps; they compose as a list (METHOD 2.4)."""

from goca.refinement.activation import Activation
from goca.refinement.affinity import Affinity
from goca.refinement.base import Needs, Refinement, RefinementContext, Refinements, SelfAttention

__all__ = ["Activation", "Affinity", "Needs", "Refinement", "RefinementContext", "Refinements", "SelfAttention"]
