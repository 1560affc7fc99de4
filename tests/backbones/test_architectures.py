"""Every model config names layers that exist in the full-size model, built on the meta device from published values."""

import time

import pytest
import transformers
from packaging.version import Version

from goca import config
from goca.backbones.loading import architectures
from goca.backbones.loading.memory import parameters, weights_memory
from goca.backbones.observable import observable_layers
from goca.backbones.registry import ADAPTERS, find_adapter
from goca.method import plan_layers
from goca.paths import CONF
from tests.conftest import ROOT

# The scenes models are small, trained here, and have tests of their own.
MODELS = sorted(file.stem for file in (CONF / "model").glob("*.yaml") if not file.stem.startswith(("auto", "scenes")))

# model: text layers observed, keys that are text, size of a UNet's or transformer's weights in millions of parameters
EXPECTED = {
    "aura_flow": (36, 256, 6859),
    "chroma": (57, 512, 8900),
    "cogview4": (28, 128, 6369),
    "ernie_image": (36, 256, 8033),
    "fibo": (46, 256, 8286),
    "flux2_dev": (56, 512, 32223),
    "flux2_klein": (25, 512, 3876),
    "flux_dev": (57, 512, 11901),
    "flux_schnell": (57, 256, 11891),
    "hidream_i1": (48, 384, 17106),
    "hunyuan_dit": (10, 333, 1500),
    "hunyuan_image": (60, 256, 17426),
    "kandinsky5": (50, 128, 6022),
    "kolors": (70, 256, 2579),
    "krea2": (28, 256, 12820),
    "longcat_image": (30, 512, 6271),
    "lumina2": (26, 256, 2610),
    "ovis_image": (33, 256, 7370),
    "pixart_alpha": (28, 120, 611),
    "pixart_sigma": (28, 300, 611),
    "pixart_sigma_512": (8, 300, 611),
    "playground2": (70, 77, 2567),
    "prx": (16, 256, 1171),
    "qwen_image": (60, 256, 20430),
    "qwen_image_21": (32, 256, 7115),
    "qwen_image_2512": (60, 256, 20430),
    "sana": (20, 300, 1604),
    "sana15": (60, 300, 4722),
    "sd15": (16, 77, 860),
    "sd21": (16, 77, 866),
    "sd3": (24, 333, 2028),
    "sd35": (24, 333, 2243),
    "sdxl": (70, 77, 2567),
    "z_image": (30, 512, 6155),
    "z_image_turbo": (30, 512, 6155),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_layer_name_resolves_in_the_full_size_model(model):
    count, tokens, millions = EXPECTED[model]
    cfg = config.compose([f"model={model}"])
    backbone = config.build(cfg, "model").sketch()
    assert round(sum(p.numel() for p in backbone.denoiser.parameters()) / 1e6) == millions
    for aggregation, composed in (("goca", cfg), ("manual", config.compose([f"model={model}", "aggregation=manual"]))):
        chosen = config.build(composed, "aggregation")
        plan = plan_layers(backbone, chosen, backbone.layers.affinity, [backbone.layers.reference])
        assert len(plan.self_attention) >= 1
        if aggregation == "goca":
            assert len(plan.cross) == count
            assert plan.reference in plan.cross
    seen = {layer.name: layer for layer in observable_layers(backbone)}
    assert set(seen) == set(backbone.attention_modules)
    assert {seen[name].tokens for name in plan.cross} == {tokens}
    assert all(seen[paired].grid for paired in plan.cross.values())


@pytest.mark.machine("seconds of CPU on the cores of today")
@pytest.mark.parametrize("model", MODELS)
def test_a_full_size_model_is_looked_at_within_ten_seconds(model):
    began = time.process_time()
    test_every_layer_name_resolves_in_the_full_size_model(model)
    assert time.process_time() - began < 10  # of one core, whatever else runs


@pytest.mark.parametrize(
    ("model", "paper"),
    [
        ("sdxl", {"down_blocks.1": 4, "down_blocks.2": 20, "mid_block": 10, "up_blocks.0": 30, "up_blocks.1": 6}),
        ("flux_dev", {"transformer_blocks": 19, "single_transformer_blocks": 38}),
        ("sd15", {"down_blocks": 6, "mid_block": 1, "up_blocks": 9}),
    ],
)
def test_the_layers_are_those_the_paper_counts(model, paper):
    cfg = config.compose([f"model={model}"])
    plan = plan_layers(config.build(cfg, "model").sketch(), config.build(cfg, "aggregation"))
    assert {start: sum(name.startswith(start + ".") for name in plan.cross) for start in paper} == paper


def test_large_variants_of_sd3_are_taken_by_its_config():
    cfg = config.compose(["model=sd35", "model.checkpoint=stabilityai/stable-diffusion-3.5-large"])
    assert len(plan_layers(config.build(cfg, "model").sketch(), config.build(cfg, "aggregation")).cross) == 38


def test_every_published_pipeline_has_an_adapter():
    for checkpoint, facts in architectures.published().items():
        assert facts["pipeline"] in find_adapter(facts["pipeline"]).pipelines, checkpoint
    assert len(ADAPTERS) >= 10


def test_every_published_checkpoint_is_whole():
    for checkpoint, facts in architectures.published().items():
        assert {"vae", "text_encoder"} <= set(facts["components"]), checkpoint


def _rows_of_the_docs(heading):
    """Model -> cells of its row in the section's table."""
    rows = {}
    section = (ROOT / "docs" / "backbones.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `") and "model=" not in line:
            name, *cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
            rows[name] = cells
    return rows


def test_every_family_is_in_every_table_of_the_docs():
    for heading in ("Families", "Components", "Memory"):
        assert sorted(_rows_of_the_docs(heading)) == MODELS


counted_anew = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="the transformers that the docs are counted with; 5.0 counts tied embeddings of a network without weights twice",
)


@counted_anew
def test_what_the_docs_count_is_counted_from_the_architectures():
    """Parameters of the components and the memory of their weights, in one test: building the networks is what takes long."""
    components, memory = _rows_of_the_docs("Components"), _rows_of_the_docs("Memory")
    for model in components:
        backbone = config.build(config.compose([f"model={model}"]), "model")
        parts = architectures.published()[backbone.checkpoint]["components"]
        counted = {name: f"{parts[name]['class']} {n / 1e6:.0f}" for name, n in parameters(backbone.checkpoint).items()}
        encoders = ", ".join(text for name, text in counted.items() if name.startswith("text_encoder"))
        assert components[model] == [counted[backbone.denoiser_name], encoders, counted["vae"]], model
        gib = weights_memory(backbone.checkpoint, backbone.denoiser_name, backbone.large_encoder)
        assert memory[model] == [f"{part:.1f}" for part in gib.values()], model
