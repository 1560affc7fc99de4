"""Frechet distance, CLIP score, cache and comparisons against independent implementations."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPModel

from goca.errors import DataError, ModelError
from goca.generation.frechet import Gaussian, bootstrap, frechet_distance
from goca.generation.image_sets import ImageSet, measured
from goca.generation.measures import ClipScore, InceptionFeatures
from goca.generation.results import Run, baseline_of, differences, estimates
from tests.helpers.tiny_clip import tiny_clip


class _Projection(nn.Module):
    """Features of tiny images, for torchmetrics and for us."""

    num_features = 6

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(3 * 4 * 4, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images.to(self.weight.dtype).flatten(1) @ self.weight / 255


def test_the_distance_is_the_one_of_torchmetrics():
    images = torch.randint(0, 256, (2, 40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    extractor = _Projection()
    metric = FrechetInceptionDistance(feature=extractor, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    ours = frechet_distance(*(Gaussian.of(extractor(one).double().numpy()) for one in images))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-4)


def test_statistics_are_kept_in_the_published_form(tmp_path):
    features = np.random.default_rng(0).normal(size=(50, 4))
    whole = Gaussian.of(features)
    whole.save(tmp_path / "stats.npz")
    assert frechet_distance(Gaussian.load(tmp_path / "stats.npz"), whole) == pytest.approx(0, abs=1e-9)
    (tmp_path / "other.npz").write_bytes(b"nothing")
    for name in ("other.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            Gaussian.load(tmp_path / name)


def test_pairs_share_their_luck():
    """Two runs on the same pictures differ by a constant shift: the paired interval is far narrower than each one's own."""
    rng = np.random.default_rng(0)
    features, reference = rng.normal(size=(80, 3)), Gaussian.of(rng.normal(size=(500, 3)))
    noisy = rng.normal(50, 10, 80)
    ids = tuple(map(str, range(80)))
    plain = Run("a", "cfg", 3.0, ids, {"score": noisy}, features)
    better = Run("b", "goca", 3.0, ids, {"score": noisy + 1}, features + 0.01)
    assert baseline_of(better, [plain, better]) is plain and baseline_of(plain, [plain, better]) is None
    assert baseline_of(Run("c", "goca", 5.0, ids), [plain, better]) is None
    alone, paired = estimates(better, reference, "d", 50), differences(better, plain, reference, "d", 50)
    assert paired["score"].value == pytest.approx(1) and paired["score"].margin < 1e-9 < alone["score"].margin
    assert paired["d"].margin < alone["d"].margin / 3
    assert len(bootstrap(features, reference, 4)) == 4


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (16, 16 if i else 24), (40 * i, 10, 0)).save(folder / f"{i}.png")
    return folder


def test_measured_chunks_are_kept_until_a_file_changes(pictures, tmp_path):
    calls = []

    def measure(images, texts):
        calls.append(len(images))
        return {"features": images.float().mean((2, 3))}

    def run():
        return measured(ImageSet.open(str(pictures)), measure, "mean", (16, 16), "crop", tmp_path / "cache", 2, 2)["features"]

    first = run()
    assert calls == [2, 2, 1] and first.shape == (5, 3)
    assert torch.equal(run(), first) and calls == [2, 2, 1]
    Image.new("RGB", (16, 16), "white").save(pictures / "3.png")
    assert not torch.equal(run(), first) and calls == [2, 2, 1, 2]
    for file in (tmp_path / "cache").glob("*.safetensors"):
        file.write_bytes(b"broken")
    run()
    assert calls == [2, 2, 1, 2, 2, 2, 1]


def test_folders_that_cannot_be_judged(pictures, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        ImageSet.open(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no image"):
        ImageSet.open(str(tmp_path))
    (pictures / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2\.png is not a readable image"):
        ImageSet.open(str(pictures)).read(2, (16, 16), "crop")
    (pictures / "manifest.jsonl").write_text(json.dumps({"image_id": "1", "file": "1.png", "prompt": "x"}) + "\n")
    assert ImageSet.open(str(pictures)).prompts == ("x",)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


class _Tensors(CLIPModel):
    """Features as plain tensors, as torchmetrics 1.9 expects them; Transformers 5 returns objects instead."""

    def get_image_features(self, *args, **kwargs):
        return super().get_image_features(*args, **kwargs).pooler_output

    def get_text_features(self, *args, **kwargs):
        return super().get_text_features(*args, **kwargs).pooler_output


def test_the_clip_score_is_the_one_of_torchmetrics(clip_folder):
    images = torch.randint(0, 256, (6, 3, 40, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    texts = ["moon, grass", "star", "sky", "a ring on sand", "snow", "heart"]
    score = ClipScore(model=str(clip_folder))
    score.load()
    ours = score(images, texts)["score"]
    theirs = []
    for image, text in zip(images, texts, strict=True):
        metric = CLIPScore(model_name_or_path=lambda: (_Tensors.from_pretrained(clip_folder), score._processor))
        theirs.append(metric(image, text).item())
    torch.testing.assert_close(ours, torch.tensor(theirs), atol=1e-3, rtol=1e-4)


def test_the_fid_is_the_one_of_torchmetrics(tmp_path, monkeypatch):
    """With weights from a local file, seeded in place of the published ones."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="the extra fid is not installed")
    file = tmp_path / "inception.pth"
    torch.save({}, file)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))
    torch.save(network.state_dict(), file)
    images = torch.randint(0, 256, (2, 6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(file))
    metric.update(images[0], real=True)
    metric.update(images[1], real=False)
    features = InceptionFeatures(weights=str(file), device="cpu")
    features.load()
    ours = frechet_distance(*(Gaussian.of(features(one, [])["features"].numpy()) for one in images))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-3)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"clip\.model"):
        ClipScore(model=str(tmp_path)).load()
    with pytest.raises(ModelError, match=r"weights.*absent\.pth"):
        InceptionFeatures(weights=str(tmp_path / "absent.pth")).load()
