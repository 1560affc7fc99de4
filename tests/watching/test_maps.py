"""What is added up, beside the plain way: every head's map of every layer and step at hand, and averaged."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from goca.attention.running import Kept, RunningStatistics
from goca.attention.statistics import AttentionStatistics
from goca.attention.tap import AttentionTap
from goca.method import Method
from goca.method.aggregation import Aggregation
from goca.method.aggregation.mixture import Mixture
from goca.method.calibration import Calibration
from goca.method.refinement import Affinity, Refinements
from goca.segmentor import Segmentor
from goca.watching.session import Options, Watch
from tests.helpers.drawing import draw, drawing, watching
from tests.helpers.materialising import KeepingProcessor
from tests.helpers.oracle import aggregate, attention_maps, head_weights
from tests.helpers.tiny_pipelines import tiny_backbone


def watch(segmentor, pipeline, **options):
    return Watch(pipeline, segmentor, Options(**options))


def around(pipeline, aggregation, refinement=(), family="sd"):
    backbone = tiny_backbone(family).borrow(pipeline)
    return Segmentor(backbone, Method(aggregation, Calibration(("per_pixel", "minmax")), Refinements(tuple(refinement))))


@pytest.mark.parametrize("model", ["scenes_unet", "scenes_dit", "scenes_mmdit"])
def test_mean_maps_are_those_of_explicit_processors(model):
    segmentor = Segmentor.from_config(model, "aggregation=vanilla", "refinement=none")
    backbone, pipeline = segmentor.backbone, segmentor.backbone.pipeline
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "clean_caption": False}
    plain = draw(pipeline, **options)
    with watch(segmentor, pipeline, negative=True) as seen:
        watched = draw(pipeline, **options)
    assert torch.equal(plain, watched)
    cross = segmentor.plan().cross
    with watch(segmentor, pipeline, scale=dict.fromkeys(cross, 1.0)):
        assert torch.equal(plain, draw(pipeline, **options))
    with watch(segmentor, pipeline, scale={next(iter(cross)): [0.0, 1.0, 1.0, 1.0]}):  # one head of four
        assert not torch.equal(plain, draw(pipeline, **options))
    processors = {name: KeepingProcessor() for name in cross}
    for name, processor in processors.items():
        backbone.attention_modules[name].set_processor(processor)
    explicit = draw(pipeline, **options)
    torch.testing.assert_close(explicit, plain, rtol=1e-3, atol=1e-3)
    size = (segmentor.method.aggregation.feature_size,) * 2
    for half, row in (("prompt", 1), ("negative", 0)):
        total = torch.zeros(())
        for name in cross:
            for kept in processors[name].kept:
                mean = kept[row].mean(0)  # (S, n)
                side = round(len(mean) ** 0.5)
                maps = mean.T.unflatten(1, (side, side))
                total = total + F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
        expected = total / sum(len(processors[name].kept) for name in cross)
        found = seen.only if half == "prompt" else seen.negative.only
        torch.testing.assert_close(found.token_maps, expected, rtol=0, atol=1e-5)
        assert len(found.times) == len(processors[next(iter(cross))].kept) == 2


def test_weights_are_those_of_each_evaluation():
    """GoCA's weights by the oracle, one evaluation at a time, then the mean of the maps."""
    pipeline = drawing("sd")
    layers = tiny_backbone("sd").layers
    aggregation = Aggregation("dot_product", "dot_product", layers.cross, layers.reference, feature_size=16, rows="all")
    segmentor = around(pipeline, aggregation)
    backbone, calls = segmentor.backbone, []

    def keep(raw):
        call = backbone.canonical(raw.rows(slice(1, 2)), (16, 32))
        if not calls or call.layer in calls[-1]:
            calls.append({})
        calls[-1][call.layer] = call

    with watch(segmentor, pipeline) as seen, AttentionTap(backbone.attention_modules, keep):
        draw(pipeline)
    plan, maps, weights = segmentor.plan(), [], []
    for evaluation in calls:
        cross = {name: evaluation[name] for name in plan.cross}
        own = {name: evaluation[paired] for name, paired in plan.cross.items()}
        query = evaluation[plan.reference].query
        reference = query.transpose(2, 3).flatten(1, 2).unflatten(2, evaluation[plan.reference].grid)
        square = Aggregation("dot_product", "dot_product", layers.cross, layers.reference, feature_size=16, rows="all")
        _, found = aggregate(square, cross, own, reference)
        weights.append(found)
        total = torch.zeros(())
        for name, call in cross.items():
            layer = (attention_maps(call) * head_weights("dot_product", call)[..., None]).sum(1)
            grids = layer.transpose(1, 2).unflatten(2, call.grid)
            grids = F.interpolate(grids, (16, 32), mode="bilinear", align_corners=False)
            total = total + grids * found[name][:, None, None, None]
        maps.append(total[0])
    assert len(calls) == 2
    torch.testing.assert_close(seen.only.token_maps, torch.stack(maps).mean(0), rtol=1e-4, atol=1e-5)
    for name, weight in seen.layers.items():
        assert weight == pytest.approx(float(torch.stack([found[name] for found in weights]).mean()), abs=1e-4)


def test_other_words_of_a_unet_compete_among_themselves():
    """Keys of the prompt itself, without padding: each head's rows divided by their sum over the real tokens."""
    pipeline = drawing("sd")
    cross = tiny_backbone("sd").layers.cross
    segmentor = around(pipeline, Aggregation("average", "average", cross, feature_size=16))
    backbone, rows = segmentor.backbone, []
    plan = segmentor.plan()

    def keep(raw):
        if raw.layer in plan.cross:
            rows.append(backbone.canonical(raw.rows(slice(1, 2)), (16, 32)))

    with watch(segmentor, pipeline, reads=("circle, grass",)) as seen, AttentionTap(backbone.attention_modules, keep):
        draw(pipeline, num_inference_steps=1)
    (segment,) = backbone.text_segments
    real = [token.kind != "padding" for token in segment.tokens("circle, grass")]
    total = torch.zeros(())
    for call in rows:
        shares = attention_maps(call)[0] * torch.tensor(real)
        mean = (shares / shares.sum(-1, keepdim=True)).mean(0).T.unflatten(1, call.grid)
        total = total + F.interpolate(mean[None], (16, 32), mode="bilinear", align_corners=False)[0] / len(rows)
    found = seen.reads["circle, grass"].only
    torch.testing.assert_close(found.token_maps, total, rtol=1e-4, atol=1e-6)
    assert found.token_maps[[not one for one in real]].abs().max() == 0


def test_steps_and_layers_are_kept_on_request_and_average_to_the_whole():
    pipeline = drawing("sd")
    cross = tiny_backbone("sd").layers.cross
    segmentor = around(pipeline, Aggregation("average", "average", cross, feature_size=16))
    with watch(segmentor, pipeline, steps=16, layers=16) as seen:
        draw(pipeline, num_inference_steps=3)
    word = seen.words["grass"]
    assert word.steps.shape == (3, 16, 32)
    torch.testing.assert_close(word.steps.mean(0), word.values, rtol=2e-3, atol=1e-4)  # kept in half precision
    torch.testing.assert_close(torch.stack(list(word.layers.values())).mean(0), word.values)
    assert set(word.layers) == set(segmentor.plan().cross)


@pytest.mark.parametrize(
    "aggregation",
    [
        lambda layers: Aggregation("dot_product", "dot_product", layers.cross, layers.reference, feature_size=16),
        lambda layers: Mixture(layers.cross, weigh="pair", resize="bicubic", clamp=True, feature_size=16),
    ],
    ids=["goca", "clamped mixture"],
)
def test_memory_does_not_grow_with_the_number_of_steps(aggregation):
    """Everything that is held after 2 and after 12 evaluations, in bytes of tensors."""
    pipeline = drawing("sd")
    layers = tiny_backbone("sd").layers
    held = []
    for steps in (2, 12):
        segmentor = around(pipeline, aggregation(layers), [Affinity(layers=layers.affinity, order=1)])
        session = watch(segmentor, pipeline)
        with session:
            draw(pipeline, num_inference_steps=steps)
        held.append(_bytes(session._prompts[0].statistics))
        assert len(session._prompts[0].statistics.evaluations) == steps
    assert held[0] == held[1] > 0


def _bytes(value, seen=None):
    """Bytes of all tensors within an object."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(one, seen) for one in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_bytes(one, seen) for one in value)
    return _bytes(vars(value), seen) if hasattr(value, "__dict__") else 0


def test_refinements_take_the_attention_of_the_evaluation_nearest_to_the_usual_noise():
    pipeline = drawing("sd")
    layers = tiny_backbone("sd").layers
    aggregation = Aggregation("average", "average", layers.cross, feature_size=16)
    segmentor = around(pipeline, aggregation, [Affinity(layers=layers.affinity, order=2)])
    keys = []
    name = segmentor.plan().self_attention[0]

    def keep(raw):
        keys.append(raw.key[1:])

    modules = {name: segmentor.backbone.attention_modules[name]}
    with watch(segmentor, pipeline) as seen, AttentionTap(modules, keep):
        draw(pipeline, num_inference_steps=10)
    nearest = min(range(10), key=lambda step: abs(seen.steps[step] - segmentor.backbone.timestep))
    assert 0 < nearest < 9
    kept = seen.only._one().self_attention_calls[name]
    assert torch.equal(kept.key, keys[nearest])
    picture = np.full((32, 64, 3), 128, np.uint8)
    refined = seen.segmentation(picture)
    assert refined.label_map.shape == (32, 64)
    plain = around(pipeline, aggregation)
    with watch(plain, pipeline) as unrefined:
        draw(pipeline, num_inference_steps=10)
    assert not np.array_equal(unrefined.segmentation(picture).class_maps["circle"], refined.class_maps["circle"])


def test_one_evaluation_is_seen_as_the_statistics_of_one_forward_see_it():
    """`finish` of a single evaluation is `AttentionStatistics.finish`."""
    pipeline = drawing("sd")
    layers = tiny_backbone("sd").layers
    segmentor = around(pipeline, Aggregation("cosine", "mse", layers.cross, layers.reference, feature_size=8))
    plan, backbone = segmentor.plan(), segmentor.backbone
    running = RunningStatistics(segmentor.method.aggregation, plan, 100, kept=Kept())
    single = AttentionStatistics(segmentor.method.aggregation, plan)
    running.begin(5.0)
    modules = {name: backbone.attention_modules[name] for name in plan.observed}

    def both(raw):
        call = backbone.canonical(raw, (16, 16))
        running.observe(call), single.observe(call)

    with torch.no_grad(), AttentionTap(modules, both):
        backbone.denoiser(torch.randn(2, 4, 16, 16), 10, encoder_hidden_states=torch.randn(2, 20, 16))
    running.end()
    _, found = running.finish()
    expected = single.finish()
    torch.testing.assert_close(found.token_maps, expected.token_maps)
    for name in plan.cross:
        torch.testing.assert_close(found.layer_weights[name], expected.layer_weights[name])
        torch.testing.assert_close(found.head_weights[name], expected.head_weights[name])


@pytest.mark.parametrize("family", ["qwen_image_21", "hidream_i1"])
def test_sequences_of_their_own_kind_are_read_as_an_explicit_softmax_reads_them(family, monkeypatch):
    """Qwen-Image-2.1 keeps the text's keys from the first step; HiDream fills a picture up that is not square."""
    pipeline = drawing(family)
    with watching(family, pipeline, negative=True) as seen:
        draw(pipeline, family)
    kept, attend = [], F.scaled_dot_product_attention

    def explicit(query, key, value, attn_mask=None, **options):
        logits = query.double() @ key.double().mT * query.shape[-1] ** -0.5
        if attn_mask is not None and attn_mask.dtype == torch.bool:  # those of text encoders are numbers
            logits = logits.masked_fill(~attn_mask, -torch.inf)
        kept.append(logits.softmax(-1).mean(1))  # (B, S, n)
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", explicit)
    draw(pipeline, family)
    if family == "qwen_image_21":  # the image's calls: the prompt's layers, then the negative prompt's
        image = [maps[0] for maps in kept if maps.shape[2] > maps.shape[1]]
        layers = len(pipeline.transformer.transformer_blocks)
        halves = {half: [maps for i, maps in enumerate(image) if i // layers % 2 == half] for half in (0, 1)}
        read = {half: [maps[:, : maps.shape[1] - maps.shape[0]] for maps in found] for half, found in halves.items()}
        assert len(read[0]) == len(read[1]) == 2 * layers
    else:  # negative first; image, filled up to the longest sequence, then three stretches of text
        joint = [maps for maps in kept if maps.shape[0] == 2 and maps.shape[2] > pipeline.transformer.max_seq]
        read = {half: [maps[1 - half, :128, pipeline.transformer.max_seq :] for maps in joint] for half in (0, 1)}
        assert len(read[0]) == 8
    for half, picture in enumerate((seen.only, seen.negative.only)):
        grids = [maps.T.unflatten(1, (-1, round((2 * len(maps)) ** 0.5))) for maps in read[half]]
        mean = torch.stack([F.interpolate(maps[None], (8, 16), mode="bilinear")[0] for maps in grids]).mean(0).float()
        torch.testing.assert_close(picture.token_maps[: len(mean)], mean, rtol=0, atol=1e-5)
        assert not picture.token_maps[len(mean) :].any()
