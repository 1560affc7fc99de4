"""From the attention of one guided step to a region per token and a foreground (S-CFG). Tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goca.generation.roles import TokenRoles
from goca.method.calibration import Calibration, ClassMaps, PlainGroups
from goca.method.refinement import RefinementContext, Refinements
from goca.ops import gaussian_blur, minmax


@dataclass(frozen=True)
class Regions:
    """Regions of one image: n text positions on a grid of the picture's aspect ratio."""

    tokens: Tensor  # (n, h, w) bool: tokens that score highest at a pixel; several where they tie
    foreground: Tensor  # (h, w) bool
    scores: Tensor  # (n, h, w) refined maps; positions that do not compete are 0
    background: Tensor  # (h, w) the global token's map, 0 ... 1


def find_regions(
    token_maps: Tensor,
    global_map: Tensor,
    roles: TokenRoles,
    calibration: Calibration,
    refinement: Refinements,
    context: RefinementContext,
) -> Regions:
    """Regions and foreground of one image.

    Args:
        token_maps: (n, h, w) aggregated shares of the conditional half.
        global_map: (h, w) aggregated share of the global token, from the half that `roles` names.
        roles: of the prompt's tokens.
        calibration, refinement: the segmentor's own; refinement uses the conditional half's self-attention for both maps.
        context: what the refinement may use.
    """
    maps = calibrate_tokens(token_maps, roles, calibration)
    refined = refine_with(maps, global_map, refinement, context)
    scores = token_maps.new_zeros(len(token_maps), *refined.size)
    scores[list(refined.ids[:-1])] = refined.scores[:-1]
    background = minmax(gaussian_blur(refined.scores[-1]))
    return Regions(region_masks(scores), background < 0.5, scores, background)


def calibrate_tokens(token_maps: Tensor, roles: TokenRoles, calibration: Calibration) -> ClassMaps:
    """Calibrated map of each competing token; only words make up the factor of the per-pixel rescaling.

    A prompt of a single word would be divided by itself, which leaves a constant: there the rescaling is left out.
    """
    if len(roles.content) == 1:
        calibration = replace(calibration, steps=tuple(step for step in calibration.steps if step != "per_pixel"))
    return calibration(token_maps, PlainGroups({i: (i,) for i in roles.competing}, roles.content))


def refine_with(maps: ClassMaps, global_map: Tensor, refinement: Refinements, context: RefinementContext) -> ClassMaps:
    """Refine the token maps together with the global token's map, which becomes the last channel: the affinity runs once."""
    together = replace(
        maps,
        ids=(*maps.ids, -1),
        scores=torch.cat([maps.scores, global_map[None]]),
        raw=torch.cat([maps.raw, global_map[None]]),
    )
    return refinement.refine(together, context)


def region_masks(scores: Tensor) -> Tensor:
    """Where each token scores highest: (n, h, w) -> (n, h, w) bool.

    Tokens that tie share a pixel, as in the authors' code: every map peaks at exactly 1, so ties at peaks are common.
    """
    return scores == scores.amax(0)
