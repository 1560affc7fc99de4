"""Small repositories in the layout of the published ones: variants, shards, and files beside them that nobody needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_pipelines import tiny_pipeline

# Files of the published repositories that a run does not read; fetching one is a fault.
DECOYS = (
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.ckpt",
    "README.md",
    ".gitattributes",
    "comparison.png",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "safety_checker/pytorch_model.bin",
    "feature_extractor/preprocessor_config.json",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/model.onnx",
    "{denoiser}/diffusion_pytorch_model.non_ema.safetensors",
    "{denoiser}/diffusion_pytorch_model.bin",
    "{denoiser}/diffusion_flax_model.msgpack",
    "{denoiser}/model.onnx",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "vae/diffusion_pytorch_model.bin",
)


@dataclass(frozen=True)
class Official:
    """A repository's folder, and the files that diffusers saves of the pipeline: plain ones, and those of the variant."""

    folder: Path
    plain: frozenset[str]
    variant: frozenset[str]


def official(family: str, folder: Path, variant: str | None = "fp16", sharded: bool = False, decoys: bool = True) -> Official:
    """The family's small pipeline as its repository would hold it: full precision, the variant beside it, and decoys.

    Args:
        variant: also saved, in half precision; None for repositories that have none.
        sharded: weights in several files where they are large enough.
    """
    pipeline = tiny_pipeline(family)
    shards = {"max_shard_size": "40KB"} if sharded else {}
    pipeline.save_pretrained(folder, **shards)
    plain = _files(folder)
    if variant is not None:
        pipeline.to(torch.float16).save_pretrained(folder, variant=variant, **shards)
    settings = {file for file in plain if not file.endswith((".safetensors", ".safetensors.index.json"))}
    of_variant = (_files(folder) - plain) | settings
    index = json.loads((folder / "model_index.json").read_text())
    if not sharded:
        old_names(folder)
    if decoys:
        if "feature_extractor" in index:
            index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        if "safety_checker" in index:
            index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        denoiser = "unet" if (folder / "unet").is_dir() else "transformer"
        for decoy in DECOYS:
            path = folder / decoy.format(denoiser=denoiser)
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"not to be read")
    if family.startswith("pixart"):
        index["transformer"] = ["diffusers", "Transformer2DModel"]  # as the published index still says
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return Official(folder, frozenset(plain), frozenset(of_variant))


def _files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def old_names(folder: Path) -> None:
    """Weights as they were named in older repositories: attention of the autoencoder, CLIP's prefix and positions."""
    old = json.loads((folder / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    for file in (folder / "vae").glob("*.safetensors") if old else ():
        names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
        _rename(file, lambda key, names=names: _replaced(key, names) if ".attentions." in key else key)
    for encoder in folder.glob("text_encoder*"):
        kind = json.loads((encoder / "config.json").read_text()).get("architectures", [""])[0]
        for file in encoder.glob("*.safetensors"):
            if kind.startswith("CLIPText") and "index" not in file.name and "-of-" not in file.name:
                positions = {"text_model.embeddings.position_ids": torch.arange(4)[None]}
                _rename(file, lambda key: key if key.startswith("text_") else f"text_model.{key}", positions)


def truncate_keys(file: Path, drop: str | None = None, rename: tuple[str, str] | None = None) -> list[str]:
    """Remove or rename the keys that contain a string; returns those that are gone."""
    weights = load_file(file)
    gone = [key for key in weights if drop and drop in key] + [key for key in weights if rename and rename[0] in key]
    kept = {(key.replace(*rename) if rename else key): value for key, value in weights.items() if not (drop and drop in key)}
    save_file(kept, file, {"format": "pt"})
    return gone


def lora(
    family: str,
    folder: Path,
    seed: int = 0,
    name: str = "pytorch_lora_weights.safetensors",
    targets: Sequence[str] = ("to_q",),
) -> Path:
    """Random LoRA weights of the denoiser's queries, or of other layers."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = tiny_pipeline(family)
    part = "unet" if "unet" in pipeline.components else "transformer"
    network = getattr(pipeline, part)
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False))
    layers: Any = {f"{part}_lora_layers": get_peft_model_state_dict(network)}
    pipeline.save_lora_weights(folder, weight_name=name, **layers)
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def _rename(file: Path, rename: Any, more: dict[str, torch.Tensor] | None = None) -> None:
    weights = {rename(key): value for key, value in load_file(file).items()}
    save_file({**weights, **(more or {})}, file, {"format": "pt"})


def _replaced(key: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        key = key.replace(new, old)
    return key
