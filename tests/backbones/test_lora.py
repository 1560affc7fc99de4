"""LoRA weights are fused into what they belong to, or refused."""

import pytest
import torch
from safetensors.torch import save_file

from goca.errors import ModelError
from tests.helpers.saved_pipeline import backbone, seen
from tests.helpers.tiny_pipelines import tiny_backbone, tiny_pipeline


def _save_lora(pipeline, component, targets, path):
    """Random LoRA weights for one component."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    network = getattr(pipeline, component)
    network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    pipeline.save_lora_weights(path, **{f"{component}_lora_layers": get_peft_model_state_dict(network)})


def test_a_lora_is_fused_and_changes_the_maps(folder, expected, tmp_path):
    _save_lora(tiny_pipeline("flux_dev"), "transformer", ["to_q"], tmp_path)
    loaded = backbone(folder, lora=str(tmp_path)).load()
    assert not torch.allclose(seen(loaded), expected)
    assert not any("lora" in name for name, _ in loaded.denoiser.named_modules())
    first = backbone(folder, lora=str(tmp_path), text_encoders="first").load()
    assert torch.equal(seen(first), seen(loaded))


def test_a_lora_of_the_text_encoder_needs_it_resident(folder, expected, tmp_path):
    _save_lora(tiny_pipeline("flux_dev"), "text_encoder", ["q_proj"], tmp_path)
    assert not torch.equal(seen(backbone(folder, lora=str(tmp_path)).load()), expected)
    with pytest.raises(ModelError, match=r"model\.lora: .* needs model\.text_encoders=resident"):
        backbone(folder, lora=str(tmp_path), text_encoders="first").load()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("transformer.transformer_blocks.0.attn.to_q", "its weights do not fit this model"),
        ("transformer.elsewhere", "its weights do not fit|no such layer|not found"),
        ("unet.down_blocks.0", "none of its weights belong"),
    ],
)
def test_a_lora_of_another_model_is_refused(folder, tmp_path, layer, message):
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 3), f"{layer}.lora_B.weight": torch.ones(3, 2)}
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ModelError, match=rf"model\.lora: .* could not be loaded: .*({message})"):
        backbone(folder, lora=str(tmp_path)).load()


def test_a_family_that_takes_no_lora_says_so(tmp_path, no_weights):
    tiny_pipeline("pixart_alpha").save_pretrained(tmp_path / "pixart")
    with pytest.raises(ModelError, match=r"model\.lora: diffusers' PixArtAlphaPipeline takes no LoRA"):
        tiny_backbone("pixart_alpha", checkpoint=str(tmp_path / "pixart"), lora="owner/lora").load()
