"""The comparison of methods: shared forwards change no count, and what the oracle chooses is what is then run."""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import command_line, cross, heads, methods, methods_report, oracle, sizes
from goca.attention.call import AttentionCall
from goca.errors import ConfigError
from goca.method.calibration import Calibration, PlainGroups
from goca.paths import BUNDLED

MODEL, COUNT = "scenes_dit", 2
FAST = ("vanilla", "goca", "lift_walk", "nerve", "goca, colours")


@pytest.fixture(scope="module")
def rows() -> dict[str, methods.Row]:
    """Some rows of one model, which share a backbone."""
    made = {}
    backbone = None
    for name in FAST:
        cfg, segmentor, prompts = methods.build(MODEL, methods.NAMED[name], "present")
        backbone = backbone or segmentor.backbone.load()
        segmentor.backbone = backbone
        made[name] = methods.Row(name, segmentor, prompts, cfg)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("look", methods.LOOKS)
def test_methods_that_share_a_forward_count_as_each_alone(rows: dict[str, methods.Row], look: str) -> None:
    (group,) = methods.groups_of(list(rows.values()))
    dataset = methods.scenes(look, COUNT)
    together = methods.measure(group, dataset, range(COUNT), seed=1)
    for name, row in rows.items():
        alone = methods.measure([row], dataset, range(COUNT), seed=1)[name]
        assert np.array_equal(together[name], alone), name
        assert alone[:, 0].sum() > 0.2 * alone[:, 1].sum()


def test_other_prompts_noise_levels_and_views_have_forwards_of_their_own() -> None:
    made = []
    for overrides in (
        ["preset=goca"],
        ["preset=vanilla", "model.timestep=100"],
        ["preset=refam"],
        ["preset=goca", "views=mirrored"],
        ["preset=goca", "passes.timesteps=[50]"],
    ):
        cfg, segmentor, prompts = methods.build(MODEL, overrides, "present")
        made.append(methods.Row(str(overrides), segmentor, prompts, cfg))
    assert [len(group) for group in methods.groups_of(made)] == [2, 1, 1, 1]


def options(folder: Path, **own: object) -> argparse.Namespace:
    usual = {
        "models": [MODEL],
        "trained": None,
        "methods": ["goca", "vanilla", "concept_attention"],
        "without": [],
        "looks": ["plain"],
    }
    return argparse.Namespace(**{**usual, "names": ["present"], "count": 3, "round": 2, "seeds": [0], "out": folder, **own})


@pytest.mark.slow
def test_a_stopped_run_is_gone_on_with_and_refusals_are_kept(tmp_path, capsys, monkeypatch):
    methods.run(options(tmp_path, count=2))
    (first,) = (tmp_path / "plain" / "present" / MODEL / "goca").iterdir()
    before = first.stat().st_mtime_ns
    methods.run(options(tmp_path))
    files = sorted(path.name for path in first.parent.iterdir())
    assert files == ["0_0000_0002.npz", "0_0002_0003.npz"]
    assert first.stat().st_mtime_ns == before
    refused = json.loads((tmp_path / "refused.json").read_text())
    assert "text branch" in refused[f"{MODEL}/present/concept_attention"]
    (tmp_path / "plain" / "present" / MODEL / "vanilla" / "0_0002_0003.npz").unlink()
    monkeypatch.setattr("sys.argv", ["methods_report", str(tmp_path)])
    methods_report.main()
    printed = capsys.readouterr().out
    assert "2 scenes x 1 seed |" in printed  # only what all rows have
    assert "| `goca` |" in printed


def another_training(folder: Path) -> Path:
    """A folder for `--trained` with a pipeline of other weights, by its report."""
    report = json.loads((BUNDLED / MODEL / "training.json").read_text())
    (folder / MODEL).mkdir(parents=True)
    (folder / MODEL / "training.json").write_text(json.dumps(report | {"held_out_loss": 0.5}))
    return folder


def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is built; what would be is noted in this list."""
    asked: list[str] = []
    monkeypatch.setattr(methods.Table, "row", lambda table, model, names, name: asked.append(name))
    monkeypatch.setattr(oracle.Oracle, "__init__", lambda *_: None)
    monkeypatch.setattr(oracle.Oracle, "everything", lambda _: asked.append("oracle") or {})
    return asked


def test_counts_of_other_weights_are_not_taken_for_those_asked_for(tmp_path, monkeypatch):
    asked, trained = asked_for(monkeypatch), another_training(tmp_path / "trained")
    one, other = tmp_path / "one", tmp_path / "other"
    named = {"methods": ["goca"], "count": 2}
    command_line.save(one / "plain" / "present" / MODEL / "goca" / "0_0000_0002.npz", hits=np.ones(1), unions=np.ones(1))
    with pytest.raises(ConfigError, match=rf"one.*{MODEL}: the counts there are of another training than .*trained.*--out"):
        methods.run(options(one, trained=trained, **named))
    methods.run(options(one, **named))  # of a version before weights were noted: bundled ones, as they are by default
    methods.run(options(one, trained=BUNDLED, **named))
    assert asked == []
    methods.run(options(other, trained=trained, **named))
    assert asked == ["goca"]
    for folder, weights in ((one, trained), (other, None), (other, BUNDLED)):
        for work in (methods.run, methods.timed):
            with pytest.raises(ConfigError, match="another training"):
                work(options(folder, trained=weights, **named))
    with pytest.raises(ConfigError, match=r"--trained: there is no .*scenes_unet_tiny.training\.json"):
        methods.run(options(tmp_path / "new", trained=trained, models=["scenes_unet_tiny"]))


def test_the_oracle_takes_no_file_of_other_weights_or_scenes(tmp_path, monkeypatch):
    asked, trained = asked_for(monkeypatch), another_training(tmp_path / "trained")
    named = {"fit": 3, "count": 4}
    file = tmp_path / "one" / f"{MODEL}_plain.json"
    file.parent.mkdir()
    file.write_text(json.dumps(named))
    oracle.run(options(file.parent, **named))
    assert asked == []
    for changed, message in (
        ({"trained": trained}, "another training"),
        ({"fit": 5}, r"_plain\.json was made with --fit 3; .*--out"),
        ({"count": 5}, "was made with --count 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            oracle.run(options(file.parent, **(named | changed)))
    oracle.run(options(tmp_path / "other", trained=trained, **named))
    assert asked == ["oracle"]
    assert json.loads((tmp_path / "other" / file.name).read_text()) == named
    with pytest.raises(ConfigError, match="another training"):
        oracle.run(options(tmp_path / "other", **named))


def test_a_claim_alone_is_no_result(tmp_path, monkeypatch):
    asked_for(monkeypatch)
    oracle.run(options(tmp_path, fit=3, count=4))
    (tmp_path / f"{MODEL}_plain.json").unlink()
    monkeypatch.setattr("sys.argv", ["oracle", "--report", "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="holds no results"):
        oracle.main()


def test_counts_that_a_kill_cut_off_are_computed_again(tmp_path, monkeypatch):
    """What is there counts as done, so that half a file would do so for ever."""
    counts, whole = np.arange(6.0).reshape(2, 3), np.savez_compressed
    monkeypatch.setattr(sizes, "measure", lambda *_: (counts, 2 * counts))

    def killed(file, **arrays):
        whole(file, **arrays)
        file.truncate(40)
        raise KeyboardInterrupt

    file = tmp_path / "model" / "goca | lift.npz"
    monkeypatch.setattr(np, "savez_compressed", killed)
    with pytest.raises(KeyboardInterrupt):
        sizes.counted(file, "model", [], [])
    monkeypatch.setattr(np, "savez_compressed", whole)
    assert list(file.parent.iterdir()) == []
    assert np.array_equal(sizes.counted(file, "model", [], []).unions, 2 * counts)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("path", sorted(Path(methods.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_counts_are_written_as_a_whole(path):
    """By `command_line.save`, or beside their place and then renamed."""
    if path.stem not in ("command_line", "generated_labels"):
        assert "np.savez" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_cell_of_the_cross_is_the_run_of_its_parts():
    dataset = methods.scenes("plain", COUNT)
    cells = cross.Cross(MODEL).measure(dataset, range(COUNT))
    assert set(cells) >= {"goca | goca | affinity", "vanilla | magnets | none", "goca | elbo | walk + pamr"}
    parts = ["calibration=lift", "refinement=random_walk"]
    walk, pamr = (methods.build(MODEL, [*parts, f"refinement={name}"], "present")[1] for name in ("random_walk", "pamr"))
    cfg, segmentor, prompts = methods.build(MODEL, parts, "present")
    segmentor.backbone.load()
    steps = (*walk.method.refinement.steps, *pamr.method.refinement.steps)
    object.__setattr__(segmentor.method.refinement, "steps", steps)
    alone = methods.measure([methods.Row("", segmentor, prompts, cfg)], dataset, range(COUNT), 0)[""]
    # Rows of attention are summed in blocks of another size there, which may move a pixel whose two classes nearly tie.
    assert np.abs(alone - cells["goca | lift | walk + pamr"]).sum() <= 4


def test_the_best_cell_is_chosen_on_one_half_and_judged_on_the_other(tmp_path, monkeypatch, capsys):
    """One cell is a little better everywhere, another only on the scenes that choose."""
    scenes, classes, size = 40, 3, 100
    hits = {"goca | goca | affinity": [50, 50], "goca | lift | walk": [60, 60], "goca | lift | pamr": [90, 40]}
    parts = itertools.product(cross.WEIGHTS, cross.CALIBRATIONS, [(), ("affinity",), ("walk",), ("pamr",)])
    hits = {cross.cell(*part): [10, 10] for part in parts} | hits
    for look, model in itertools.product(cross.LOOKS, cross.MODELS):
        counts = {name: np.full((scenes, 2, classes), size) for name in hits}
        for name, (even, odd) in hits.items():
            counts[name][::2, 0], counts[name][1::2, 0] = even, odd
        (tmp_path / "train" / look).mkdir(parents=True, exist_ok=True)
        np.savez(tmp_path / "train" / look / f"{model}_0000.npz", **counts)
    monkeypatch.setattr("sys.argv", ["cross", "--report", "--out", str(tmp_path)])
    cross.main()
    printed = capsys.readouterr().out
    assert "train scenes: [40]" in printed
    assert "| goca / lift / walk | +10.0 | +10.0 | +10.0 [+10.0, +10.0] |" in printed
    assert "Chosen on every second scene: goca / lift / pamr (+40.0 at the worst); on the other scenes -10.0, -10.0" in printed


def test_greedy_takes_what_helps_and_stops():
    worth = {0: 1.0, 1: 5.0, 2: 3.0, 3: -2.0}
    assert oracle.greedy(4, lambda chosen: sum(worth[i] for i in chosen)) == ([1, 2, 0], 9.0)


def test_gains_and_offsets_are_found():
    """One class is twice as loud as it should be, and another hides below a constant."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 8, 8, generator=generator)
    label = 1 + truth.argmax(0)
    spoilt = truth * torch.tensor([2.0, 1.0, 1.0])[:, None, None] - torch.tensor([0.0, 0.0, 0.25])[:, None, None]
    image = oracle.Shown(torch.zeros(0), torch.zeros(0), PlainGroups({}, ()), label)
    maps = Calibration(steps=())(spoilt, PlainGroups({1: (0,), 2: (1,), 3: (2,)}, (0, 1, 2)))

    def score(gains: np.ndarray, offsets: np.ndarray) -> float:
        return oracle.miou([image], [maps], gains, offsets, 4)

    before = score(np.ones(4), np.zeros(4))
    assert score(*oracle.ascend(score, 4)) > before + 15


@pytest.mark.slow
def test_chosen_heads_are_the_heads_that_are_run():
    """The mixture of the overrides has the token maps of an equal mean of those heads."""
    model, dataset = "scenes_unet_tiny", methods.scenes("plain", 1)
    one = oracle.Oracle(model, None, dataset, dataset)
    plain = one.row(["aggregation=vanilla"])
    (image,), names = oracle.shown(plain.segmentor, plain.prompts, dataset)
    chosen = [1, 9, 14, len(names) - 1]
    weights = torch.zeros(len(names))
    weights[chosen] = 1.0
    row = one.row(["refinement=none", *oracle.as_overrides(names, chosen, one._grids(plain))])
    ((_, own),) = one.finished(row, dataset)
    with torch.inference_mode():
        expected = row.segmentor.method.calibration(image.token_maps(weights), image.words)
    assert own.ids == expected.ids
    assert (own.scores - expected.scores).abs().max() < 1e-4


def test_outputs_of_content_words_alone_are_those_rows_of_the_softmax_times_their_values():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 5, generator=generator) for n in (4, 7, 7))
    rows = (query @ key.transpose(-1, -2) * 0.5).softmax(-1)
    call = AttentionCall("layer", (2, 2), query, key, 0.5, slice(0, 7), value=value, output=rows @ value)
    content = torch.zeros(2, 7)
    content[0, [1, 4]] = 1.0  # the second image has no content words
    found = heads.content_alone(call, content).output
    expected = rows[0, :, :, 1, None] * value[0, :, None, 1] + rows[0, :, :, 4, None] * value[0, :, None, 4]
    assert torch.allclose(found[0], expected, atol=1e-6)
    assert not found[1].any()
    assert torch.allclose(heads.content_alone(call, torch.ones(2, 7)).output, call.output, atol=1e-6)
    weights = heads.given(heads.content_attention(call, content).output, None, None)
    assert torch.allclose(weights[0], rows[0, :, :, [1, 4]].sum(-1) / rows[0, :, :, [1, 4]].sum((0, -1)), atol=1e-6)
    centred = heads.centred(call, content).output
    assert centred.mean(2).abs().max() < 1e-6
    assert torch.allclose(centred[:, :, 0] - centred[:, :, 1], call.output[:, :, 0] - call.output[:, :, 1], atol=1e-6)


@pytest.mark.slow
def test_variants_of_head_weights_share_a_forward_and_count_as_each_alone(tmp_path, capsys, monkeypatch):
    few = ("vanilla", "goca, equal heads", "goca", "goca, clamped", "goca, content words")
    monkeypatch.setattr(heads, "VARIANTS", {name: heads.VARIANTS[name] for name in few})
    model, dataset = "scenes_unet_tiny", methods.scenes("plain", COUNT)
    named = argparse.Namespace(pipelines=[model], look="plain", count=COUNT, fit=1, out=tmp_path)
    heads.run(named)
    found = json.loads((tmp_path / f"{model}.json").read_text())
    for name in ("vanilla", "goca, clamped"):
        cfg, segmentor, prompts = methods.build(model, heads.VARIANTS[name][0], "present")
        segmentor.backbone.load()
        alone = methods.measure([methods.Row("", segmentor, prompts, cfg)], dataset, range(COUNT), 0)[""]
        assert np.array_equal(alone, found["counts"][name]), name
    assert found["counts"]["goca, content words"] != found["counts"]["goca"]
    heads.report(named)
    assert f"`{model}`" in capsys.readouterr().out
