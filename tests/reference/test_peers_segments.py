"""DiffSeg (CVPR 2024), DiffCut (NeurIPS 2024) and Seg4Diff's unsupervised mode (NeurIPS 2025): segments and their matching."""

import pytest
import torch

from goca.method.refinement.pamr import median_filter, pamr
from goca.method.segments import kl_merge, naming, normalised_cut
from goca.ops import resize
from tests.helpers.explicit_heads import ExplicitHeads
from tests.helpers.peer_cases import agree, peer_cases
from tests.helpers.reference_cases import Case


def _mixture(case: Case) -> kl_merge.LevelMixture:
    options = case.options
    levels, weights = {}, {}
    for place, side in enumerate(options["levels"]):
        query, key = case.inputs[f"query_{side}"], case.inputs[f"key_{side}"]
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        levels[side, side] = [ExplicitHeads(attention)]
        weights[side, side] = (options["weight_ratio"] or [1.0] * len(options["levels"]))[place]
    given = weights if options["weight_ratio"] else None
    return kl_merge.LevelMixture(levels, (options["grid"],) * 2, given)


@pytest.mark.parametrize("case", peer_cases("b", "diffseg_segment"))
def test_diffseg(case: Case):
    options, mixture = case.options, _mixture(case)
    side = options["grid"]
    agree(case, "aggregated_rows", mixture.rows(torch.tensor(options["row_index"])))
    agree(case, "grid", kl_merge.anchors((side, side), options["points"]))
    proposals, hits = kl_merge.grow(mixture, options["points"], options["thresholds"][0])
    agree(case, "first_hits", hits)  # the released code decides in float16
    agree(case, "first_proposals", proposals[options["first_index"]])
    counts = [len(proposals)]
    for threshold in options["thresholds"][1:]:
        proposals = kl_merge.merge(proposals, threshold)
        counts.append(len(proposals))
    agree(case, "counts", torch.tensor(counts))
    agree(case, "merged", proposals.unflatten(1, (side, side)))
    if options["refine"]:
        proposals = kl_merge.kmeans(mixture, proposals)
    labels = resize(proposals.unflatten(1, (side, side)), (8 * side, 8 * side)).argmax(0)
    agree(case, "labels", labels[:: options["labels_stride"], :: options["labels_stride"]])
    if options["nouns"]:
        _check_names(case, labels)


def _check_names(case: Case, labels: torch.Tensor) -> None:
    size, total = (labels.shape[0], labels.shape[1]), torch.zeros(())
    for side, weight in zip(case.options["levels"], case.options["cross_ratio"], strict=True):
        maps = resize(case.inputs[f"cross_{side}"].double().mean(0).T.unflatten(1, (side, side)), size)
        total = total + weight * maps / maps.sum(0, keepdim=True)
    agree(case, "cross_rows", total.flatten(1).T[:: max(1, labels.numel() // 64)])
    nouns = total[[place + 1 for place, _ in case.options["nouns"]]]
    agree(case, "noun_mean", naming.name_by_attention(labels, nouns, "mean"))
    agree(case, "noun_majority", naming.name_by_attention(labels, nouns, "median"))


def _check_match(case: Case, segments: torch.Tensor, label: torch.Tensor, classes: int) -> None:
    """Counts summed over images."""
    found = [naming.match(one, truth, classes) for one, truth in zip(segments, label, strict=True)]
    for name, parts in (("tp", "hits"), ("fp", "false"), ("fn", "missed")):
        agree(case, name, torch.stack([getattr(image, parts) for image in found]).sum(0).to(case.expected[name].dtype))
    total = torch.tensor(sum(image.total for image in found)).to(case.expected["all"].dtype)
    agree(case, "all", total.reshape(case.expected["all"].shape))


@pytest.mark.parametrize("case", peer_cases("b", "diffseg_hungarian"))
def test_matching(case: Case):
    shape = case.inputs["pred"].shape
    segments, label = case.inputs["pred"].reshape(shape[0], -1), case.inputs["label"].reshape(shape[0], -1)
    _check_match(case, segments, label, case.options["n_class"])


@pytest.mark.parametrize("case", peer_cases("b", "seg4diff_unsup"))
def test_seg4diff_unsupervised(case: Case):
    options = case.options
    token_maps = case.inputs["attn_cache"].mean(1)[0].T.unflatten(1, (options["grid"],) * 2)
    stretched = kl_merge.stretched_over_tokens(token_maps, options["power"])
    agree(case, "normalised", stretched.flatten(1).T[None])
    proposals = kl_merge.token_distributions(token_maps, options["power"])
    merged = kl_merge.merge(proposals, options["kl_threshold"]).unflatten(1, (options["grid"],) * 2)
    agree(case, "merged", merged)
    labels = resize(merged, (options["out_height"], options["out_width"])).argmax(0)
    agree(case, "labels", labels)
    _check_match(case, labels[None], case.inputs["gt"][None], options["n_class"])


@pytest.mark.parametrize("case", peer_cases("b", "diffcut_masks", "diffcut_autosc"))
def test_diffcut(case: Case):
    options = case.options
    grid = tuple(options["grid"])
    unit = normalised_cut.unit_features(case.inputs["features"][0].T.unflatten(1, grid))
    if "tau" in options:
        cuts = normalised_cut.recursive_cuts(normalised_cut.affinity(unit, options["alpha"]), options["tau"])
        marks = torch.stack(cuts.accepted) if cuts.accepted else torch.zeros(0, len(unit), dtype=torch.bool)
        agree(case, "cuts", marks.view(-1, *grid))
        agree(case, "ncut_values", torch.tensor(cuts.values))
        agree(case, "ncut_sizes", torch.tensor(cuts.sizes))
        clusters = cuts.clusters(len(unit)).view(grid)
    else:
        clusters = normalised_cut.eigengap_clusters(unit, options["alphas"], last_alpha=True).view(grid)
    agree(case, "clusters", clusters)
    agree(case, "masks", normalised_cut.assign(unit, clusters, tuple(options["mask_size"])).argmax(0))


@pytest.mark.parametrize("case", peer_cases("b", "diffcut_naming"))
def test_diffcut_names(case: Case):
    logits = naming.class_logits(
        case.inputs["pooled"], case.inputs["classifier"], case.inputs["logit_scale"], case.options["synonyms"]
    )
    agree(case, "logits", logits)
    agree(case, "label", logits[..., :-1].argmax(-1))


@pytest.mark.parametrize("case", peer_cases("b", "diffcut_evaluation"))
def test_diffcut_evaluation(case: Case):
    segments, label, classes = case.inputs["pred"].long(), case.inputs["label"].long(), case.options["n_class"]
    if case.options["many_to_one_background"]:
        segments, label = naming.join_background(segments, label, classes)
    agree(case, "pred_after", segments)
    agree(case, "label_after", label)
    _check_match(case, segments[None], label[None], classes)


@pytest.mark.parametrize("case", peer_cases("b", "diffcut_pamr"))
def test_diffcut_pamr(case: Case):
    labels = case.inputs["labels"].long()
    masks = torch.stack([(labels == number).float() for number in labels.unique()])
    refined = pamr(case.inputs["image"], masks, case.options["iterations"], tuple(case.options["dilations"]))
    agree(case, "refined", refined)
    agree(case, "out", median_filter(refined.argmax(0)[None])[0])
