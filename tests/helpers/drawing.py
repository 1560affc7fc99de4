"""Drawing with the small pipelines: what each family's call needs."""

import inspect
from typing import Any

import diffusers
import torch
from torch import Tensor

from goca.layer_names import resolve
from goca.method import Method
from goca.method.aggregation import Aggregation
from goca.method.calibration import Calibration
from goca.segmentor import Segmentor
from goca.watching.session import Options, Watch
from tests.helpers.generation_families import drawing_pipeline
from tests.helpers.tiny_pipelines import tiny_backbone

PROMPT, NEGATIVE = "circle, grass", "a dog"
# What the call of a family needs beyond the others'.
_OPTIONS: dict[str, dict[str, Any]] = {
    "longcat_image": {"enable_prompt_rewrite": False},
    "hidream_i1": {"max_sequence_length": 32},
    "hunyuan_dit": {"height": 64, "width": 128},
    "lumina2": {"height": 64, "width": 128},
}


def drawing(family: str) -> Any:
    """The small pipeline of a family, ready to draw the same picture twice."""
    pipeline = drawing_pipeline(family)
    if family == "kandinsky5":
        pipeline.resolutions = [(64, 32)]  # it draws no other sizes
    if family == "hidream_i1":  # every picture is drawn with as many pixels as its square
        pipeline.default_sample_size = 23
    if family == "longcat_image":  # the number of latent channels is wired into its call
        torch.manual_seed(0)
        config = {**pipeline.transformer.config, "in_channels": 64, "out_channels": 64}
        pipeline.transformer = diffusers.LongCatImageTransformer2DModel.from_config(config)
    # How many tokens of the template are left out is a number that fits the published tokenizer.
    if family in ("qwen_image", "kandinsky5", "hunyuan_image"):
        pipeline.prompt_template_encode_start_idx = tiny_backbone(family).borrow(pipeline)._dropped
    if family == "krea2":
        count = tiny_backbone(family).borrow(pipeline)._count
        pipeline.prompt_template_encode_start_idx = count(pipeline.prompt_template_encode_prefix)
        pipeline.prompt_template_encode_num_suffix_tokens = count(pipeline.prompt_template_encode_suffix)
    if family == "qwen_image_21":
        pipeline._drop_idx = tiny_backbone(family).borrow(pipeline)._dropped
    if family == "ovis_image":
        pipeline.user_prompt_begin_id = tiny_backbone(family).borrow(pipeline)._dropped
    if family == "z_image":
        pipeline.vae.register_to_config(shift_factor=0.1)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline


def draw(pipeline: Any, family: str = "sd", **options: Any) -> Tensor:
    """Latents of what a pipeline draws, at a size that is not square; options that its call does not know are left out."""
    known = inspect.signature(pipeline.__call__).parameters
    usual: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "height": 32,
        "width": 64,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "true_cfg_scale": 3.0,
        "use_resolution_binning": False,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }
    given = {**usual, **_OPTIONS.get(family, {}), **options}
    result = pipeline(**{name: value for name, value in given.items() if name in known})
    images = result.images if hasattr(result, "images") else result.image
    return images if isinstance(images, Tensor) else torch.stack(list(images))


def embedded(pipeline: Any, family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a call needs where a family's text has to be encoded beforehand."""
    if family != "prx":  # its cleaning of text needs a package that is not installed
        return {}, {}
    tokens = pipeline.tokenizer([PROMPT, NEGATIVE], padding="max_length", max_length=24, return_tensors="pt")
    mask = tokens["attention_mask"].bool()
    with torch.no_grad():
        states = pipeline.text_encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
    given = {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:]}
    masks = {"prompt_attention_mask": mask[:1], "negative_prompt_attention_mask": mask[1:]}
    return {"prompt": None, "negative_prompt": None, **given, **masks}, {"prompt": (PROMPT,)}


def watching(family: str, pipeline: Any, first: bool = False, **options: Any) -> Watch:
    """As `goca.watch`, with the layers of the family's small model at hand instead of looked up; or the first one alone."""
    backbone = tiny_backbone(family).borrow(pipeline)
    cross = backbone.layers.cross
    if first:
        texts = [name for name in backbone.attention_modules if backbone.is_text_layer(name)]
        cross = resolve(cross, texts, "layers")[:1]
    aggregation = Aggregation("average", "average", tuple(cross), feature_size=8)
    return Watch(pipeline, Segmentor(backbone, Method(aggregation, Calibration(("per_pixel", "minmax")))), Options(**options))
