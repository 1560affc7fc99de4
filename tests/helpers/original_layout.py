"""Stable Diffusion's weights under the names of its authors' code, as single-file checkpoints hold them."""

from typing import Any

from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_MID = {"mid_block.resnets.0": "mid.block_1", "mid_block.attentions.0": "mid.attn_1", "mid_block.resnets.1": "mid.block_2"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_state(pipeline: Any) -> dict[str, Tensor]:
    """A whole checkpoint of a Stable Diffusion 1.x pipeline: denoiser, autoencoder and text encoder."""
    state = _renamed(pipeline.unet.state_dict(), _unet_blocks(pipeline.unet), "model.diffusion_model.", _RESNET)
    state |= _autoencoder(pipeline.vae)
    for key, value in pipeline.text_encoder.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        state[f"cond_stage_model.transformer.{name}"] = value
    return {key: value.contiguous().clone() for key, value in state.items()}


def _unet_blocks(unet: Any) -> dict[str, str]:
    """Diffusers' name of every block -> the authors', who number them through."""
    names, layers = dict(_UNET_ENDS), unet.config.layers_per_block
    for level, block in enumerate(unet.down_blocks):
        for layer in range(layers):
            number = 1 + level * (layers + 1) + layer
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
        if block.downsamplers:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
    for level, block in enumerate(unet.up_blocks):
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            names[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
        if block.upsamplers:
            last = 2 if hasattr(block, "attentions") else 1
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{level * (layers + 1) + layers}.{last}.conv"
    return names


def _autoencoder(vae: Any) -> dict[str, Tensor]:
    names, levels = {}, len(vae.config.block_out_channels)
    for side in ("encoder", "decoder"):
        half = getattr(vae, side)
        blocks = half.down_blocks if side == "encoder" else half.up_blocks
        way = "down" if side == "encoder" else "up"
        for level, block in enumerate(blocks):
            place = level if side == "encoder" else levels - 1 - level
            for layer in range(len(block.resnets)):
                names[f"{side}.{way}_blocks.{level}.resnets.{layer}"] = f"{side}.{way}.{place}.block.{layer}"
            names[f"{side}.{way}_blocks.{level}.{way}samplers.0.conv"] = f"{side}.{way}.{place}.{way}sample.conv"
        names |= {f"{side}.{old}": f"{side}.{new}" for old, new in _VAE_MID.items()}
        names[f"{side}.conv_norm_out"] = f"{side}.norm_out"
    state = _renamed(vae.state_dict(), names, "first_stage_model.", {"conv_shortcut": "nin_shortcut", **_VAE_ATTENTION})
    return {
        key: value[..., None, None] if ".attn_1." in key and value.ndim == 2 else value  # there a 1 x 1 convolution
        for key, value in state.items()
    }


def _renamed(state: dict[str, Tensor], blocks: dict[str, str], prefix: str, parts: dict[str, str]) -> dict[str, Tensor]:
    """Every key with its block's name and, in a resnet or the autoencoder's attention, its layer's name replaced."""
    found = {}
    for key, value in state.items():
        block = max((name for name in blocks if key.startswith(name + ".")), key=len, default="")
        rest = key[len(block) :].lstrip(".")
        if "resnets" in block or "mid.attn_1" in blocks.get(block, ""):
            layer = rest.rpartition(".")[0]
            rest = parts.get(layer, layer) + rest[len(layer) :]
        found[prefix + (f"{blocks[block]}.{rest}" if block else key)] = value
    return found
