"""Words for segments: by the attention of nouns, or by one-to-one matching with ground truth."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def name_by_attention(segments: Tensor, noun_maps: Tensor, vote: Literal["mean", "majority", "median"] = "mean") -> Tensor:
    """Noun of each segment: (K,) indices, -1 for a segment without pixels.

    Args:
        segments: (H, W) numbers 0 ... K - 1.
        noun_maps: (N, H, W); each is divided by its L2 norm over pixels first. A map of zeros names nothing while others do.
        vote: the largest mean; the noun that most pixels prefer; or the median of the preferred nouns' numbers, which the
            released code calls majority and which may be a noun that no pixel prefers.
    """
    maps = noun_maps.flatten(1)
    norms = maps.norm(dim=1, keepdim=True)
    silent = (norms == 0) & (norms > 0).any()
    maps = (maps / norms.clamp(min=torch.finfo(maps.dtype).tiny)).masked_fill(silent, -torch.inf)
    members = segments.flatten()
    names = []
    for number in range(int(members.max()) + 1):
        part = maps[:, members == number]
        if not part.shape[1]:
            names.append(-1)
        elif vote == "mean":
            names.append(int(part.mean(1).argmax()))
        elif vote == "majority":
            names.append(int(part.argmax(0).bincount(minlength=len(maps)).argmax()))
        else:
            ordered = part.argmax(0).sort().values
            middle = len(ordered) // 2
            low = int(ordered[middle - 1]) if len(ordered) % 2 == 0 else int(ordered[middle])
            names.append((low + int(ordered[middle])) // 2)
    return torch.tensor(names, device=segments.device)


class Matched(NamedTuple):
    """Counts of one image, by class: (n,) int64 each, and the number of pixels that count."""

    hits: Tensor
    false: Tensor
    missed: Tensor
    total: int
    columns: Tensor  # (n,): the segment of each class
    table: Tensor  # (n, columns) pixels of each class in each segment


def match(segments: Tensor, label: Tensor, classes: int) -> Matched:
    """One segment for every class, for the most hits (PiCIE's protocol).

    Pixels of segments that no class got are missed by their classes and are nobody's false positives; pixels whose label is not
    in 0 ... classes - 1 are in no count.
    """
    segments, label = segments.flatten().long(), label.flatten().long()
    counts = (label >= 0) & (label < classes)
    columns = max(classes, int(segments.max()) + 1)
    table = torch.bincount(label[counts] * columns + segments[counts], minlength=classes * columns).view(classes, columns)
    _, chosen = linear_sum_assignment(table.cpu().numpy(), maximize=True)
    chosen = torch.from_numpy(chosen).to(table.device)
    hits = table.gather(1, chosen[:, None])[:, 0]
    return Matched(hits, table[:, chosen].sum(0) - hits, table.sum(1) - hits, int(table.sum()), chosen, table)


def join_background(segments: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Many segments for the background: those that match no other class become one; the label's -1 becomes the last class.

    Returns:
        segments and label (H, W) to be matched with `classes` classes, the background included.
    """
    found = match(segments, label, classes - 1)
    used = [int(column) for column, row in zip(found.columns, found.table, strict=True) if row[found.columns].any()]
    label = label.clone()
    label[label == -1] = classes - 1
    joined = int(segments.max()) + 1
    keep = torch.isin(segments, torch.tensor(used, dtype=segments.dtype, device=segments.device))
    return segments.masked_fill(~keep, joined), label


def class_logits(pooled: Tensor, classifier: Tensor, log_scale: Tensor, synonyms: list[int]) -> Tensor:
    """Class scores of segments from features pooled over them, a class being the best of its synonyms; the last row is void.

    Args:
        pooled: (..., D).
        classifier: (sum of synonyms + 1, D).
        log_scale: logarithm of the factor, which is at most 100.
    """
    unit = torch.nn.functional.normalize(pooled, dim=-1)
    logits = log_scale.exp().clamp(max=100) * unit @ classifier.T
    parts = [part.amax(-1) for part in logits[..., :-1].split(synonyms, -1)]
    return torch.stack([*parts, logits[..., -1]], -1)
