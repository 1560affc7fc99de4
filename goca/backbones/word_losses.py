"""How well a backbone predicts a picture given each class's word: forwards of their own, beside the one that is observed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from goca.backbones.base import Backbone, image_noise
from goca.data.base import Sample
from goca.data.sizes import Window
from goca.errors import ConfigError, ModelError
from goca.method.losses import LossExponents, noise_error
from goca.prompts.prompt import Prompt


def class_exponents(
    method: LossExponents,
    backbone: Backbone,
    sample: Sample,
    prompts: Sequence[Prompt],
    seed: int,
    windows: Sequence[Window] = (),
) -> dict[int, float]:
    """Class -> exponent of its map; a forward per noise level and window, the image's classes side by side."""
    ids = list(dict.fromkeys(i for prompt in prompts for i in prompt.class_tokens))
    names = {entity.class_id: entity.text for prompt in prompts for entity in prompt.entities}
    if method.fixed or len(ids) < 2:
        return method(dict.fromkeys(ids, 0.0))
    if missing := [i for i in ids if i not in names]:
        raise ConfigError(f"calibration.exponents: classes {missing} of this prompt have no name that a text could hold")
    texts = [method.text.replace("{name}", names[i]) for i in ids]
    assert sample.pixels is not None
    parts = [window.cut(sample.pixels) for window in windows] or [sample.pixels]
    found = torch.zeros(())
    for number, part in enumerate(parts):
        image_id = f"{sample.image_id}/window{number}" if number else sample.image_id
        found = found + prediction_errors(backbone, part, texts, image_id, seed, method.timesteps).cpu()
    return method(dict(zip(ids, (found / len(parts)).tolist(), strict=True)))


@torch.inference_mode()
def prediction_errors(
    backbone: Backbone, pixels: Tensor, texts: Sequence[str], image_id: str, seed: int, timesteps: Sequence[int]
) -> Tensor:
    """How far the predicted noise of one picture (3, H, W) is off given each text, summed over noise levels: (C,).

    All texts meet the same noise.

    Raises:
        ModelError: a model that predicts packed latents.
    """
    latents = backbone.encode_image(pixels[None].to(backbone.torch_device, backbone.torch_dtype))
    conditioning = backbone.conditioning(texts)
    total = torch.zeros(len(texts), device=latents.device)
    for timestep in timesteps:
        with backbone.at(timestep):
            noise = image_noise(latents.shape[1:], [f"{image_id}/loss{timestep}"], seed).to(latents)
            noisy = backbone.add_noise(latents, noise).expand(len(texts), -1, -1, -1)
            prediction = backbone.denoise(noisy, conditioning)
            if prediction.ndim != 4:
                raise ModelError(f"{backbone.name}: losses of classes compare latents, and this model predicts them packed")
            kept, predicts = backbone.prediction_kind()
            parts = prediction[:, : latents.shape[1]].float(), noise.float(), latents.float()
            total += noise_error(*parts, kept, predicts)
    return total
