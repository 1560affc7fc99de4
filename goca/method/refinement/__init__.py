"""Refinements of class maps; they compose as a list."""

from goca.method.refinement.activation import Activation
from goca.method.refinement.affinity import Affinity
from goca.method.refinement.base import Needs, Refinement, RefinementContext, Refinements, SelfAttention
from goca.method.refinement.crf import CRF
from goca.method.refinement.entropy_affinity import EntropyAffinity
from goca.method.refinement.global_walk import GlobalWalk
from goca.method.refinement.head_chain import HeadChain
from goca.method.refinement.level_powers import LevelPowers
from goca.method.refinement.pamr import PAMR
from goca.method.refinement.prototype import FeaturePrototypes, Prototype
from goca.method.refinement.random_walk import RandomWalk
from goca.method.refinement.rounds import Round, Rounds
from goca.method.refinement.segment_formers import ColourSegments, CutFeatures, MergedAttention
from goca.method.refinement.space_merge import SpaceMerge

__all__ = [
    "Activation",
    "Affinity",
    "CRF",
    "ColourSegments",
    "CutFeatures",
    "EntropyAffinity",
    "FeaturePrototypes",
    "GlobalWalk",
    "HeadChain",
    "LevelPowers",
    "MergedAttention",
    "Needs",
    "PAMR",
    "Prototype",
    "RandomWalk",
    "Refinement",
    "RefinementContext",
    "Refinements",
    "Round",
    "Rounds",
    "SelfAttention",
    "SpaceMerge",
]
